"""Dashboards and alerts in the chart of the gateway: as a sidecar and Prometheus find them."""

from __future__ import annotations

import json
from typing import Any

import yaml

from tests.charts.tools import CHARTS, KUBERNETES, Charts, Object

OPEN: dict[str, Any] = {"settings": {"tenants": {"anonymous": True}}}


def rendered(charts: Charts, **monitoring: Any) -> list[Object]:
    return charts.rendered("gateway", {**OPEN, "monitoring": monitoring}, KUBERNETES[-1])


def test_each_dashboard_is_a_config_map_that_the_sidecar_finds(charts: Charts) -> None:
    labels, notes = {"grafana_dashboard": "1"}, {"grafana_folder": "Headrace"}
    found = rendered(charts, dashboards={"enabled": True, "annotations": notes})
    maps = [
        each
        for each in found
        if each["kind"] == "ConfigMap" and labels.items() <= each["metadata"]["labels"].items()
    ]
    shipped = {path.name: path.read_text("utf-8") for path in CHARTS.glob("gateway/dashboards/*")}
    held = {name: text for each in maps for name, text in each["data"].items()}
    assert {name.removeprefix("headrace-") for name in held} == set(shipped)
    assert all(each["metadata"]["annotations"] == notes for each in maps)
    assert all(len(text) < 1 << 20 for text in held.values()), "what a ConfigMap may hold"
    for name, text in held.items():
        assert json.loads(text) == json.loads(shipped[name.removeprefix("headrace-")])


def test_alerts_are_the_file_s_and_lead_to_where_the_runbooks_are(charts: Charts) -> None:
    found = rendered(charts, alerts=True, runbooks="https://example.com/runbooks/")
    [rule] = [each for each in found if each["kind"] == "PrometheusRule"]
    text = (CHARTS / "gateway/rules/alerts.yaml").read_text("utf-8")
    expected = yaml.safe_load(text.replace("docs/runbooks/", "https://example.com/runbooks/"))
    assert rule["spec"] == expected


def test_there_are_none_unless_they_are_asked_for(charts: Charts) -> None:
    found = rendered(charts)
    assert not [each for each in found if each["kind"] == "PrometheusRule"]
    assert len([each for each in found if each["kind"] == "ConfigMap"]) == 1
