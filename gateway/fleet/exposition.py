"""What a replica says of its engine, in its /metrics and its responses, read.

Asked: what are the facts? Invariant: any bytes give EngineFacts; what cannot be read is None.
Of /metrics we need one line, `vllm:cache_config_info{block_size="16",num_gpu_blocks="9000",...} 1`;
there is one for each data-parallel rank, which the label `engine` names. The fingerprint is the
field `system_fingerprint` of a response: `vllm-VERSION[-tpN][-ppN][-dpN][-ep]-HASH`.
SGLang says less: the size of its cache and of a page of it, each a sample of its own.
Source: vLLM 0.32, v1/metrics/loggers.py; SGLang 0.5, its collector of metrics.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from gateway.kv_cache import EngineFacts

_LINE: Final = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_SGLANG: Final = re.compile(
    rb"^sglang:(max_total_num_tokens|page_size)(?:\{[^}\n]*\})? ([0-9]{1,12})(?:\.0)?$",
    re.MULTILINE,
)
_LABEL: Final = re.compile(rb'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
_FINGERPRINT: Final = re.compile(
    r"vllm-(?P<version>[^\s]{1,80}?)(?:-tp(?P<tp>[0-9]{1,4}))?(?:-pp(?P<pp>[0-9]{1,4}))?"
    r"(?:-dp[0-9]{1,4})?(?:-ep)?-[0-9a-f]{8}"
)
_NUMBER: Final = re.compile(r"[0-9]{1,12}")


def read_facts(page: bytes, rank: int | None = None) -> EngineFacts:
    """The facts of one rank's cache in a page of /metrics; None: of the first there is."""
    for line in _LINE.finditer(page):
        labels = {
            name.decode(): value.decode("utf-8", "replace")
            for name, value in _LABEL.findall(line.group(1))
        }
        if rank is None or labels.get("engine") == str(rank):
            return _facts(labels)
    sglang = {name: int(value) or None for name, value in _SGLANG.findall(page)}
    return EngineFacts(
        block_size=sglang.get(b"page_size"), cache_tokens=sglang.get(b"max_total_num_tokens")
    )


def _facts(labels: Mapping[str, str]) -> EngineFacts:
    block_size = _number(labels.get("block_size"))
    blocks = _number(labels.get("num_gpu_blocks"))
    return EngineFacts(
        block_size=block_size,
        cache_tokens=block_size * blocks if block_size and blocks else None,
        prefix_caching=_truth(labels.get("enable_prefix_caching")),
        hash_algorithm=_word(labels.get("prefix_caching_hash_algo")),
    )


def read_fingerprint(fingerprint: str) -> EngineFacts:
    """Version and degrees of parallelism; a degree that is not named is 1."""
    found = _FINGERPRINT.fullmatch(fingerprint)
    if found is None:
        return EngineFacts()
    return EngineFacts(
        version=found["version"],
        tensor_parallel=int(found["tp"] or 1),
        pipeline_parallel=int(found["pp"] or 1),
    )


def _number(value: str | None) -> int | None:
    """None for 0 as well: nothing here can be zero."""
    return int(value) or None if value and _NUMBER.fullmatch(value) else None


def _truth(value: str | None) -> bool | None:
    return {"True": True, "False": False}.get(value or "")


def _word(value: str | None) -> str | None:
    return value if value and value != "None" else None
