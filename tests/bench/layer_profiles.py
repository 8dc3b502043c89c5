"""Profiles for the simulator, put together from layers measured on a GPU (`gpu_layers`).

    python -m tests.bench.layer_profiles docs/benchmarks/2026-11-26-h200-layers-65ee469.json

writes one profile for each shape in KEPT into serving/sim/profiles. A step is its layers and the
output layer; the timing model is fitted to those sums as `headrace calibrate` fits it to an engine.
What the record leaves out (scheduling, sampling, HTTP, all-reduces) is left out here too.

KV capacity: (0.92 of the memory - weights - 6 GiB for activations and graphs) / bytes of a token,
in bfloat16; limits of a step are vLLM 0.32's defaults on such a GPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from serving.calibration.fit import Row, errors, fit
from serving.machine import GIB
from serving.sim.timing import EngineShape, Origin, Profile, StepTiming, StepWork

KEPT: Final = {
    ("llama-3.1-8b", 1): 131_072,
    ("qwen3-32b", 1): 40_960,
    ("llama-3.3-70b", 4): 131_072,
}
"""Shapes worth a file, and the longest context of the models that have them."""
PROFILES: Final = Path(__file__).resolve().parents[2] / "serving" / "sim" / "profiles"
BYTES: Final = 2
BLOCK: Final = 16
REST_BYTES: Final = 6 * GIB


def steps(result: dict[str, Any]) -> list[Row]:
    """What the engine's steps would take, from what layers took."""
    layers = result["shape"]["layers"]
    output = {
        row["sequences"]: row["median_s"] for row in result["rows"] if row["kind"] == "output"
    }
    rows = []
    for row in result["rows"]:
        if row["kind"] == "prefill":
            tokens = row["tokens"]
            work = StepWork(tokens, tokens * (row["context"] + tokens / 2))
            rows.append(Row(layers * row["median_s"] + output[1], work))
        elif row["kind"] == "decode":
            batch = row["sequences"]
            work = StepWork(decode_sequences=batch, decode_context_tokens=batch * row["context"])
            rows.append(Row(layers * row["median_s"] + output[batch], work))
    return rows


def shape_of(shape: dict[str, Any], memory_bytes: int, longest: int) -> EngineShape:
    """The limits of an engine with this model on this GPU."""
    ranks, hidden, layers = shape["tensor_parallel"], shape["hidden"], shape["layers"]
    head = shape["head_dim"]
    attention = hidden * head * 2 * (shape["heads"] + shape["kv_heads"])
    layer = attention + 3 * hidden * shape["intermediate"]
    weights = BYTES * (layers * layer + 2 * shape["vocabulary"] * hidden) / ranks
    token = BYTES * 2 * layers * max(1, shape["kv_heads"] // ranks) * head
    tokens = int((0.92 * memory_bytes - weights - REST_BYTES) / token)
    return EngineShape(BLOCK, tokens // BLOCK, 1024, 8192, min(longest, tokens))


def profile_of(result: dict[str, Any], record: dict[str, Any], longest: int) -> Profile:
    """One shape's profile."""
    shape = result["shape"]
    ranks = shape["tensor_parallel"]
    rows = steps(result)
    timing = fit(rows)
    off, most = errors(timing, rows)
    values = {name: float(f"{value:.4g}") for name, value in msgspec.structs.asdict(timing).items()}
    name = f"h200-{shape['name']}" + (f"-tp{ranks}" if ranks > 1 else "")
    note = (
        "Composed from single layers measured with PyTorch, not from an engine: scheduling, "
        "sampling, HTTP and all-reduces are left out, so an engine is slower. KV capacity is "
        "calculated."
    )
    origin = Origin(
        date=record["date"],
        machine=f"{ranks} x {record['device']}, one measured",
        model=shape["name"],
        engine=f"PyTorch {record['torch']}, layers of these shapes in bfloat16",
        how=f"python -m tests.bench.layer_profiles docs/benchmarks/{record['name']}",
        tensor_parallel=ranks,
        points=len(rows),
        median_error=round(off, 4),
        largest_error=round(most, 4),
    )
    limits = shape_of(shape, record["memory_bytes"], longest)
    return Profile(name, "composed", note, StepTiming(**values), limits, origin)


def main(path: Path) -> int:
    """Write the profiles, and say how well the model fits."""
    record = json.loads(path.read_text())
    record |= {"name": path.name, "date": path.name[:10]}
    for result in record["results"]:
        shape = result["shape"]
        longest = KEPT.get((shape["name"], shape["tensor_parallel"]))
        if longest is None:
            continue
        profile = profile_of(result, record, longest)
        assert profile.origin is not None
        target = PROFILES / f"{profile.name}.json"
        target.write_bytes(msgspec.json.format(msgspec.json.encode(profile), indent=2) + b"\n")
        off, most = profile.origin.median_error, profile.origin.largest_error
        print(f"{profile.name}: off by {off:.0%}, {most:.0%} at most; {profile.timing}")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
