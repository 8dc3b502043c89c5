"""What stands behind the gateway: engines, real and simulated, and the tools that start them."""
