"""Every example of every chart: linted, rendered, what API servers take, and as reviewed.

After a change that is meant: `GOLDEN=write make charts`, and read the difference.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.charts.cel import broken_rules, defaulted
from tests.charts.tools import (
    KUBERNETES,
    Charts,
    Object,
    constraints,
    crd,
    custom_schema,
    custom_schemas,
    examples,
    is_custom,
    kserve_pods,
    read_values,
    versions,
)

GOLDEN = Path(__file__).parent / "golden"

each_example = pytest.mark.parametrize(
    ("chart", "path"), examples(), ids=[f"{chart}-{path.stem}" for chart, path in examples()]
)


@each_example
def test_is_linted_and_as_reviewed(charts: Charts, chart: str, path: Path) -> None:
    """Compared as objects: versions of helm differ in blank lines."""
    charts.lint(chart, path)
    found = charts.rendered(chart, read_values(path), KUBERNETES[-1])
    golden = GOLDEN / f"{chart}-{path.stem.removesuffix('-values')}.yaml"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(yaml.safe_dump_all(found, sort_keys=False, width=120), encoding="utf-8")
    reviewed = list(yaml.safe_load_all(golden.read_text(encoding="utf-8")))
    assert found == reviewed


@pytest.mark.parametrize(
    ("chart", "path", "version"),
    [
        pytest.param(chart, path, version, id=f"{chart}-{path.stem}-{version}")
        for chart, path in examples()
        for version in versions(path)
    ],
)
def test_kubernetes_takes_it(charts: Charts, chart: str, path: Path, version: str) -> None:
    """Kubernetes' own kinds, by its own schemas, with no field that it does not know."""
    validator: Any = pytest.importorskip("kubernetes_validate", reason="`make charts` installs it")
    for each in charts.rendered(chart, read_values(path), version):
        if not is_custom(each):
            validator.validate(each, version.rpartition(".")[0], strict=True)


@each_example
def test_custom_kinds_are_taken(charts: Charts, chart: str, path: Path) -> None:
    """KEDA's, Kueue's and others' kinds, by the schemas of their projects and the rules in them."""
    jsonschema: Any = pytest.importorskip("jsonschema", reason="`make charts` installs it")
    if not custom_schemas():
        pytest.skip("no schemas of custom kinds beside this checkout (../shared/crds)")
    found = charts.rendered(chart, read_values(path), KUBERNETES[-1])
    made = dict(constraints(each) for each in found if each["kind"] == "ConstraintTemplate")
    for each in filter(is_custom, found):
        schema = made.get(each["kind"]) or custom_schema(each)
        assert schema is not None, f"no schema of {each['apiVersion']} {each['kind']}"
        jsonschema.Draft202012Validator(schema).validate(each)
        if definition := crd(each):
            assert not list(broken_rules(definition, defaulted(definition, each)))


@each_example
def test_pods_may_do_little(charts: Charts, chart: str, path: Path) -> None:
    """The restricted level of Kubernetes, a read-only root, and room to write only in volumes."""
    found = charts.rendered(chart, read_values(path), KUBERNETES[-1])
    specs = [spec for each in [*found, *kserve_pods(found)] for spec in _pod_specs(each)]
    assert specs
    for spec in specs:
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            limits, requests = (container["resources"][key] for key in ("limits", "requests"))
            assert limits["memory"] == requests["memory"]


def _pod_specs(each: Object) -> list[Any]:
    if each["kind"] in ("Deployment", "Job"):
        return [each["spec"]["template"]["spec"]]
    if each["kind"] == "JobSet":
        jobs = [job["template"]["spec"] for job in each["spec"]["replicatedJobs"]]
        return [job["template"]["spec"] for job in jobs]
    if each["kind"] == "Pod":
        return [each["spec"]]
    if each["kind"] == "LeaderWorkerSet":
        group = each["spec"]["leaderWorkerTemplate"]
        return [group["leaderTemplate"]["spec"], group["workerTemplate"]["spec"]]
    return []
