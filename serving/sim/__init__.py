"""The simulated replica: a pure continuous-batching engine behind a thin HTTP server.

It is asked to be a vLLM 0.32 replica that costs almost nothing: the same routes, errors, metrics
and KV-cache events, with step times from a profile instead of a model. It answers with invented
words, but everything a gateway can decide by is kept true: queues, batches, prefix hits, KV usage,
aborts. It must never be taken for a measurement of a real engine: every profile says how its
figures were made.

The floors, from the bottom: `block_hash` and `blocks` (the paged KV cache), `kv_cache` (what one
request holds of it), `timing` and `engine` (the step machine), `tokens` (a tokenizer and a
language that need no model): all pure. On the shore: `runner` (paces steps in real time), `wire`
and `call` (HTTP and the faults injected into it), the routes, `publisher` (events over ZeroMQ),
`server` (puts it together).
"""
