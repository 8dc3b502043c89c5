"""Account: what happened?

Asked at every step of a request's life, and told how it ended. Answers with one closed entry per
request, from which come the metrics, the access log and what the gateway learns. The sums balance:
received = finished + rejected + evicted + failed + client gone + open.

It must never hold a request up, never look a metric up by its labels per chunk, and never write
down a prompt, an answer or a key.
"""
