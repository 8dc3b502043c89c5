"""Prompts as chains of block hashes: equal beginnings give equal beginnings of the chain.

    h[0] = H(scope, block 0)      h[i] = H(h[i-1], block i)

The blocks are cut from the prompt as it stood in the request body, so nothing is decoded or
tokenised: the next turn of a conversation repeats the bytes of the last one. What else an engine's
cache depends on (model, tools, adapter, salt) goes into the scope. A tail shorter than a block has
no hash, as an engine caches only full blocks. 64 bits, not cryptographic: a collision costs a cache
miss, never a wrong answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import xxhash

if TYPE_CHECKING:
    from gateway.vocabulary import GenerationRequest

BLOCK_BYTES: Final = 512
"""About 128 tokens: vLLM's default block on CPU, its coarsest, and cheap to hash."""

MOST_BLOCKS: Final = 4096
"""2 MB of prompt; what is longer is told apart by then."""


def scope(request: GenerationRequest) -> int:
    """What must be equal, beside the prompt, for a prefix to be shared."""
    digest = xxhash.xxh3_64(request.model.encode())
    digest.update(request.route.path.encode())
    for part in request.context:
        digest.update(b"\x00")
        digest.update(part)
    return digest.intdigest()


def block_hashes(request: GenerationRequest) -> Iterator[int]:
    """The chain of the prompt's full blocks, lazily: who stops early pays for no more."""
    prompt = memoryview(request.prompt)
    above = scope(request)
    digest = xxhash.xxh3_64_intdigest
    end = min(len(prompt), MOST_BLOCKS * BLOCK_BYTES)
    for at in range(BLOCK_BYTES, end + 1, BLOCK_BYTES):
        above = digest(prompt[at - BLOCK_BYTES : at], above)
        yield above
