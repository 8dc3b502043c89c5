"""Prometheus text for what vLLM 0.32 shows at /metrics: pure counting and rendering.

Asked to observe durations and to render families. Invariants: bucket counts never fall and are
cumulative when rendered; a family's HELP and TYPE lines come once, before its samples.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

LATENCY_BUCKETS_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TTFT_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BUCKETS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5),
    *(10.0, 20.0, 40.0, 80.0),
)
"""Bucket bounds of vLLM 0.32, v1/metrics/buckets.py."""


class Histogram:
    """Observations of one family under one set of labels; `observe` is O(log buckets)."""

    __slots__ = ("_bounds", "_counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> Iterable[tuple[str, int]]:
        """(upper bound as text, observations up to it), the last bound being +Inf."""
        seen = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            seen += count
            yield bound, seen


Labels = Mapping[str, str]


def render_family(
    name: str, kind: str, text: str, samples: Iterable[tuple[Labels, float | Histogram]]
) -> str:
    """One family as exposition text. `name` is without `_total`, which counters get here."""
    sample_name = f"{name}_total" if kind == "counter" else name
    lines = [f"# HELP {sample_name} {text}", f"# TYPE {sample_name} {kind}"]
    for labels, value in samples:
        if isinstance(value, Histogram):
            for bound, count in value.cumulative():
                lines.append(f"{name}_bucket{_braces({**labels, 'le': bound})} {float(count)}")
            lines.append(f"{name}_count{_braces(labels)} {float(value.count)}")
            lines.append(f"{name}_sum{_braces(labels)} {value.total}")
        else:
            lines.append(f"{sample_name}{_braces(labels)} {float(value)}")
    return "\n".join(lines) + "\n"


def _braces(labels: Labels) -> str:
    inside = ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items())
    return f"{{{inside}}}" if inside else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
