"""Headrace: an inference gateway for vLLM. One request's life is told in `gateway.life`."""

__version__ = "0.1.0"
