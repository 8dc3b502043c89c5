"""The rendered policies, and what each of the three that may judge by them says of an object.

Judges are given what an API server, Gatekeeper or Kyverno would read in the object: which kinds a
policy is about, its variables in turn, its rules. Where a policy applies is not looked at.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import regorus

from tests.charts.cel import evaluated
from tests.charts.tools import Object

_PLURALS: Final = {
    "Pod": "pods", "Deployment": "deployments", "StatefulSet": "statefulsets",
    "DaemonSet": "daemonsets", "Job": "jobs", "CronJob": "cronjobs", "JobSet": "jobsets",
    "LeaderWorkerSet": "leaderworkersets", "NetworkPolicy": "networkpolicies",
    "ResourceClaim": "resourceclaims", "ResourceClaimTemplate": "resourceclaimtemplates",
}  # fmt: skip
IN_CEL: Final = ("ValidatingAdmissionPolicy", "ValidatingPolicy")


def names(objects: list[Object]) -> list[str]:
    """Of the policies that are rendered."""
    found = {
        each["metadata"]["name"].removeprefix("demo-") for each in objects if each["kind"] in IN_CEL
    }
    return sorted(found)


def refusals(objects: list[Object], judged: Object) -> dict[str, set[str]]:
    """By each judge, the names of the policies that refuse the object."""
    found = {kind: set(_by_cel(objects, kind, judged)) for kind in IN_CEL}
    return found | {"ConstraintTemplate": set(_by_rego(objects, judged))}


def _by_cel(objects: list[Object], kind: str, judged: Object) -> Iterator[str]:
    for policy in objects:
        if policy["kind"] != kind or not _is_about(policy["spec"]["matchConstraints"], judged):
            continue
        if any(_broken(policy["spec"], judged)):
            yield policy["metadata"]["name"].removeprefix("demo-")


def _is_about(constraints: Any, judged: Object) -> bool:
    group, _, version = judged["apiVersion"].rpartition("/")
    return any(
        group in rule["apiGroups"]
        and {version, "*"} & set(rule["apiVersions"])
        and "CREATE" in rule["operations"]
        and _PLURALS.get(judged["kind"]) in rule["resources"]
        for rule in constraints["resourceRules"]
    )


def _broken(spec: Any, judged: Object) -> Iterator[str]:
    """The messages of the rules that do not hold; each variable sees those before it."""
    variables: dict[str, Any] = {}
    for each in spec["variables"]:
        known = {"object": judged, "variables": dict(variables)}
        variables[each["name"]] = evaluated(each["expression"], known)
    for rule in spec["validations"]:
        if evaluated(rule["expression"], {"object": judged, "variables": variables}) is not True:
            yield rule["message"]


def messages(objects: list[Object], name: str, judged: Object) -> list[str]:
    """What the one admission policy says of an object."""
    for policy in objects:
        if policy["kind"] == IN_CEL[0] and policy["metadata"]["name"] == f"demo-{name}":
            return list(_broken(policy["spec"], judged))
    raise AssertionError(f"no policy {name}")


def _by_rego(objects: list[Object], judged: Object) -> Iterator[str]:
    templates = {
        each["spec"]["crd"]["spec"]["names"]["kind"]: each
        for each in objects
        if each["kind"] == "ConstraintTemplate"
    }
    for constraint in objects:
        template = templates.get(constraint["kind"])
        if not template or not _is_matched(constraint["spec"]["match"], judged):
            continue
        if Rego(template, constraint).violations(judged):
            yield template["metadata"]["name"].removeprefix("headrace")


def _is_matched(match: Any, judged: Object) -> bool:
    group = judged["apiVersion"].rpartition("/")[0]
    return any(
        group in rule["apiGroups"] and judged["kind"] in rule["kinds"] for rule in match["kinds"]
    )


class Rego:
    """A template of Gatekeeper with its constraint."""

    def __init__(self, template: Object, constraint: Object) -> None:
        [code] = template["spec"]["targets"][0]["code"]
        self._text: str = code["source"]["rego"]
        self._parameters = constraint["spec"]["parameters"]
        self._engine = regorus.Engine()
        self._engine.set_enable_coverage(True)
        self._engine.add_policy(template["metadata"]["name"], self._text)
        self._rule = f"data.{template['metadata']['name']}.violation"

    def violations(self, judged: Object) -> list[str]:
        """What it says of an object. Truth values go by JSON: the binding for Python's own objects
        makes numbers of them."""
        review = {"object": judged, "kind": {"kind": judged["kind"]}, "operation": "CREATE"}
        given = {"review": review, "parameters": self._parameters}
        self._engine.set_input_json(json.dumps(given))
        found = json.loads(self._engine.eval_rule_as_json(self._rule))
        return [each["msg"] for each in found] if isinstance(found, list) else []

    def untried(self) -> list[str]:
        """The lines that no object so far has come to."""
        [file] = json.loads(self._engine.get_coverage_report_as_json())["files"]
        lines = self._text.splitlines()
        return [lines[number - 1] for number in file["not_covered"]]
