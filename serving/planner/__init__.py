"""`headrace plan`: how a model is laid over GPUs, and why so."""
