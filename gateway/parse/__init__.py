"""Parse: bytes become a GenerationRequest.

Asked: "what does this body ask for, as far as we decide by it?" Answers with the model, whether it
streams, how long its prompt is and how much it may generate, or raises InvalidRequest naming the
field that is wrong. The body itself is not changed, re-encoded or kept: the relay forwards the
bytes that came, so parameters we have never heard of work.

It must never guess between two readings: what an engine might read otherwise is refused.
"""
