"""What one decoder layer costs on this GPU, in the matrix shapes of known models.

    python tests/bench/gpu_layers.py OUT.json        needs PyTorch and one NVIDIA GPU, nothing else

Where vLLM cannot be brought to a GPU, its step times can still be bounded from below: a prefill
step of n tokens and a decode step of B sequences are, layer for layer, these products, this
attention and these norms in bfloat16, and a step is `layers` times that plus the output layer.
Not measured: the engine's own scheduling and sampling, and between the GPUs of a tensor-parallel
group the all-reduces (a shard of degree N is measured alone). Decode attention is two batched
products over a dense cache of equal contexts, not a paged kernel. Every time is the median of
`REPEATS` replays of a CUDA graph.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

REPEATS: Final = 9
WARM_UPS: Final = 3
HEAD_ROOM: Final = 0.85  # of the GPU's memory
PREFILL_TOKENS: Final = (128, 512, 2048, 8192)
PREFILL_CONTEXTS: Final = (0, 8192, 32768)
DECODE_SEQUENCES: Final = (1, 4, 16, 64, 128, 256)
DECODE_CONTEXTS: Final = (512, 2048, 8192, 32768)


@dataclass(frozen=True)
class Shape:
    """A dense decoder with grouped-query attention, or one shard of it."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tensor_parallel: int = 1

    def shard(self, degree: int) -> Shape:
        """One of `degree` GPUs; KV heads are not split below one."""
        return Shape(
            self.name, self.layers, self.hidden, self.heads // degree,
            max(self.kv_heads // degree, 1), self.head_dim, self.intermediate // degree,
            self.vocabulary // degree, degree,
        )  # fmt: skip


SMALL: Final = Shape("qwen2.5-0.5b", 24, 896, 14, 2, 64, 4864, 151936)
EIGHT: Final = Shape("llama-3.1-8b", 32, 4096, 32, 8, 128, 14336, 128256)
THIRTY: Final = Shape("qwen3-32b", 64, 5120, 64, 8, 128, 25600, 151936)
SEVENTY: Final = Shape("llama-3.3-70b", 80, 8192, 64, 8, 128, 28672, 128256)
SHAPES: Final = (
    SMALL, EIGHT, EIGHT.shard(2), EIGHT.shard(4), THIRTY, THIRTY.shard(2),
    SEVENTY.shard(2), SEVENTY.shard(4), SEVENTY.shard(8),
)  # fmt: skip


class Layer:
    """The weights of one layer and of the output, random."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        width = shape.heads * shape.head_dim
        kv_width = shape.kv_heads * shape.head_dim
        self.qkv = noise(shape.hidden, width + 2 * kv_width)
        self.out = noise(width, shape.hidden)
        self.gate_up = noise(shape.hidden, 2 * shape.intermediate)
        self.down = noise(shape.intermediate, shape.hidden)
        self.norm = noise(shape.hidden)
        self.output = noise(shape.hidden, shape.vocabulary)

    def step(
        self, x: torch.Tensor, attention: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """x: (tokens, hidden); `attention` takes the product with qkv."""
        size = (self.shape.hidden,)
        y = functional.rms_norm(x, size, self.norm)
        x = x + attention(y @ self.qkv) @ self.out
        gate, up = (functional.rms_norm(x, size, self.norm) @ self.gate_up).chunk(2, dim=-1)
        return x + (functional.silu(gate) * up) @ self.down


def noise(*size: int) -> torch.Tensor:
    """Values an arithmetic unit has to work on: zeros draw less power and run faster."""
    return torch.randn(*size, device="cuda", dtype=torch.bfloat16) * 0.02


def timed(work: Callable[[], object]) -> dict[str, float]:
    """Seconds of one replay: median, least and most of REPEATS."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    spans = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        spans.append(begin.elapsed_time(end) / 1e3)
    return {"median_s": statistics.median(spans), "least_s": min(spans), "most_s": max(spans)}


def prefill(layer: Layer, tokens: int, context: int) -> dict[str, float]:
    """One prompt's chunk of `tokens`, after `context` tokens that are cached."""
    shape = layer.shape
    x = noise(tokens, shape.hidden)
    width, kv_width = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    past = noise(2, 1, shape.kv_heads, context, shape.head_dim)
    mask = causal_lower_right(tokens, context + tokens)

    def attention(qkv: torch.Tensor) -> torch.Tensor:
        q, k, v = qkv.split((width, kv_width, kv_width), dim=-1)
        q = q.view(1, tokens, shape.heads, shape.head_dim).transpose(1, 2)
        k, v = (
            torch.cat(
                (old, each.reshape(1, tokens, shape.kv_heads, shape.head_dim).transpose(1, 2)), 2
            )
            for old, each in zip(past, (k, v), strict=True)
        )
        if context:
            done = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        else:
            done = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return done.transpose(1, 2).reshape(tokens, width)

    return timed(lambda: layer.step(x, attention))


def decode(layer: Layer, sequences: int, context: int) -> dict[str, float]:
    """One token each for `sequences` sequences with `context` tokens in the cache."""
    shape = layer.shape
    x = noise(sequences, shape.hidden)
    width = shape.heads * shape.head_dim
    groups, each = sequences * shape.kv_heads, shape.heads // shape.kv_heads
    keys, values = noise(2, groups, context, shape.head_dim)

    def attention(qkv: torch.Tensor) -> torch.Tensor:
        q = qkv[:, :width].reshape(groups, each, shape.head_dim)
        weights = torch.softmax(q @ keys.transpose(1, 2), dim=-1)
        return (weights @ values).reshape(sequences, width)

    return timed(lambda: layer.step(x, attention))


def output(layer: Layer, sequences: int) -> dict[str, float]:
    """The logits of `sequences` tokens."""
    x = noise(sequences, layer.shape.hidden)
    return timed(lambda: x @ layer.output)


def rows(shape: Shape, free_bytes: float) -> Iterator[dict[str, Any]]:
    """All that fits, for one shape."""
    layer = Layer(shape)
    kv_bytes = 2 * shape.kv_heads * shape.head_dim * 2
    for sequences in DECODE_SEQUENCES:
        yield {"kind": "output", "sequences": sequences, **output(layer, sequences)}
        for context in DECODE_CONTEXTS:
            if sequences * context * kv_bytes * 3 < free_bytes:
                found = decode(layer, sequences, context)
                yield {"kind": "decode", "sequences": sequences, "context": context, **found}
    for tokens in PREFILL_TOKENS:
        for context in PREFILL_CONTEXTS:
            found = prefill(layer, tokens, context)
            yield {"kind": "prefill", "tokens": tokens, "context": context, **found}


def main(path: str) -> int:
    """Measure everything and write it down."""
    torch.manual_seed(1)
    device = torch.cuda.get_device_properties(0)
    began = time.time()
    results = []
    for shape in SHAPES:
        try:
            found = list(rows(shape, device.total_memory * HEAD_ROOM))
        except RuntimeError as error:  # out of memory, or a kernel that refuses: said, not hidden
            found = [{"kind": "failed", "why": str(error)[:300]}]
        results.append({"shape": asdict(shape), "rows": found})
        torch.cuda.empty_cache()
        print(f"{shape.name} tp{shape.tensor_parallel}: {len(found)} rows", flush=True)
    document = {
        "device": device.name,
        "memory_bytes": device.total_memory,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "repeats": REPEATS,
        "seed": 1,
        "took_s": time.time() - began,
        "results": results,
    }
    with open(path, "w", encoding="utf-8") as sink:
        json.dump(document, sink, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
