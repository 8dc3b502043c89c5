"""Accept: bytes from a client become an Exchange, and an Exchange's response becomes bytes.

Asked: "is this HTTP we take, which door does it go through, and is anybody still listening?"
POSTs to the inference routes go down the express lane and become Exchanges; everything else
(health, metrics, models) goes on to an ordinary Starlette app on the same port.

It must never look into a body, never choose a replica, never let a malformed request change
anything but its own connection, and never write a second response head.
"""
