"""What becomes of the datagrams between gateways, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from gateway.peers.link import Link

RESULTS: Final = ("sent", "heard", "undelivered", "strange", "unreadable")


class PeersCollector(Collector):
    """Of the link, while there is one."""

    def __init__(self, link: Callable[[], Link | None]) -> None:
        """`link` is asked at every scrape."""
        self._link = link

    def __repr__(self) -> str:
        return f"<PeersCollector of {self._link()!r}>"

    def collect(self) -> Iterable[Metric]:
        """Every result, those that never came about at zero."""
        family = CounterMetricFamily(
            "gateway_peer_datagrams",
            "Datagrams between gateways: sent, heard, not delivered, from strangers, unreadable.",
            labels=("result",),
        )
        link = self._link()
        if link is not None:
            for result in RESULTS:
                family.add_metric((result,), link.datagrams[result])
        yield family
