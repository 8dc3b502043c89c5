"""What an engine says of itself: its /v1/models and its /metrics, read.

Pure. The gateway reads some of it too (gateway/fleet/exposition.py); it stands alone, and so does
this. Source: vLLM 0.32, v1/metrics/loggers.py (`vllm:cache_config_info`).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Final

_CACHE: Final = re.compile(rb"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)
_LABEL: Final = re.compile(rb'(block_size|num_gpu_blocks)="([0-9]{1,12})"')


@dataclass(frozen=True, slots=True)
class Facts:
    """The model served first, and the engine's limits as far as it tells them."""

    model: str
    max_model_len: int
    block_size: int
    blocks: int


def read_facts(listing: bytes, metrics: bytes) -> Facts:
    """Raises ValueError for what is missing."""
    try:
        first = json.loads(listing)["data"][0]
        model, longest = str(first["id"]), int(first["max_model_len"])
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError("its /v1/models names no model with a max_model_len") from error
    found = _CACHE.search(metrics)
    labels = dict(_LABEL.findall(found[1])) if found else {}
    if len(labels) < 2:
        raise ValueError("its /metrics has no vllm:cache_config_info with blocks")
    return Facts(model, longest, int(labels[b"block_size"]), int(labels[b"num_gpu_blocks"]))
