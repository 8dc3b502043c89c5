"""Policies, evaluated: our own objects pass all of them, and each refuses what it is there for."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.charts.policies import IN_CEL, Rego, messages, names, refusals
from tests.charts.tools import (
    CHARTS,
    KUBERNETES,
    Charts,
    Object,
    Refused,
    examples,
    find,
    kserve_pods,
    read_values,
)

VERSION = KUBERNETES[-1]
EXAMPLE = CHARTS / "platform/ci/policies-values.yaml"
DIGEST = "sha256:" + "0" * 64
IMAGE = f"registry.example.org/image@{DIGEST}"


def pinned(each: Any) -> Any:
    """With images as a production release names them: by digest, from a registry of one's own."""
    if isinstance(each, list):
        return [pinned(it) for it in each]
    if not isinstance(each, dict):
        return each
    found = {key: pinned(it) for key, it in each.items()}
    names = [key for key in ("image", "reference") if isinstance(found.get(key), str)]
    return found | dict.fromkeys(names, IMAGE)


def merged(values: Any, over: Any) -> Any:
    """As helm does with two files of values."""
    if isinstance(values, dict) and isinstance(over, dict):
        return values | {key: merged(values.get(key), it) for key, it in over.items()}
    return over


@pytest.fixture(scope="module")
def policies(charts: Charts) -> list[Object]:
    return charts.rendered("platform", read_values(EXAMPLE), VERSION)


@pytest.fixture(scope="module")
def good(charts: Charts) -> dict[str, Object]:
    """Objects that pass, by kind."""
    image = {"repository": "registry.example.org/image", "digest": DIGEST}
    model = {"model": {"id": "org/name"}, "engine": {"image": image}}
    found = charts.rendered("model", model, VERSION)
    deployment = find(found, "Deployment")
    wide = {"parallelism": {"tensor": 8, "pipeline": 2}, "gpu": {"count": 8}}
    group = find(charts.rendered("model", model | wide, VERSION), "LeaderWorkerSet")
    template = copy.deepcopy(deployment["spec"]["template"])
    pod = {"apiVersion": "v1", "kind": "Pod"} | template
    claim = {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaimTemplate",
        "metadata": {"name": "gpus"},
        "spec": {"spec": {"devices": {"requests": [
            {"name": "gpus", "exactly": {"deviceClassName": "gpu.nvidia.com", "count": 8}}]}}},
    }  # fmt: skip
    cron = {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": deployment["metadata"],
        "spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template}}},
    }
    jobs = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": deployment["metadata"],
        "spec": {
            "replicatedJobs": [{"name": "work", "template": {"spec": {"template": template}}}]
        },
    }
    return {
        "Deployment": deployment,
        "LeaderWorkerSet": group,
        "JobSet": jobs,
        "Pod": pod,
        "CronJob": cron,
        "NetworkPolicy": find(found, "NetworkPolicy"),
        "ResourceClaimTemplate": claim,
    }


@pytest.mark.parametrize(
    ("chart", "path"), examples(), ids=[f"{chart}-{path.stem}" for chart, path in examples()]
)
def test_what_our_charts_render_passes(
    charts: Charts, policies: list[Object], chart: str, path: Path
) -> None:
    """Every object of every example, by every judge, with its images pinned."""
    found = charts.rendered(chart, read_values(path), VERSION)
    for each in [*found, *kserve_pods(found)]:
        assert refusals(policies, pinned(each)) == {
            "ValidatingAdmissionPolicy": set(),
            "ValidatingPolicy": set(),
            "ConstraintTemplate": set(),
        }, each["kind"]


def test_what_is_good_passes(policies: list[Object], good: dict[str, Object]) -> None:
    assert names(policies) == ["egress", "gpus", "images", "labels", "privilege"]
    for each in good.values():
        assert not set.union(*refusals(policies, each).values())


def _spec(each: Object) -> Any:
    """Of its pod, or of the last of its pods."""
    spec = each["spec"]
    match each["kind"]:
        case "Pod":
            return spec
        case "CronJob":
            return spec["jobTemplate"]["spec"]["template"]["spec"]
        case "JobSet":
            return spec["replicatedJobs"][-1]["template"]["spec"]["template"]["spec"]
        case "LeaderWorkerSet":
            return spec["leaderWorkerTemplate"]["workerTemplate"]["spec"]
        case _:
            return spec["template"]["spec"]


def _container(each: Object) -> Any:
    return _spec(each)["containers"][0]


def _set(place: Callable[[Object], Any], **fields: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        place(each).update(fields)

    return change


def _security(**fields: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        _container(each)["securityContext"].update(fields)

    return change


def _without(place: Callable[[Object], Any], key: str) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        del place(each)[key]

    return change


def _volume(**source: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        _spec(each)["volumes"].append({"name": "more"} | source)

    return change


def _host_path(path: str) -> Callable[[Object], None]:
    return _volume(hostPath={"path": path})


def _init(**fields: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        _spec(each)["initContainers"] = [copy.deepcopy(_container(each)) | fields]

    return change


def _limit(name: str, count: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        _container(each)["resources"]["limits"][name] = count

    return change


def _leader(each: Object) -> None:
    each["spec"]["leaderWorkerTemplate"]["leaderTemplate"]["spec"]["hostNetwork"] = True


def _unlabelled(each: Object) -> None:
    del each["spec"]["template"]["metadata"]["labels"]["app.kubernetes.io/name"]


def _request(**fields: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        each["spec"]["spec"]["devices"]["requests"][0]["exactly"].update(fields)

    return change


def _either(each: Object) -> None:
    devices = each["spec"]["spec"]["devices"]
    [first] = devices["requests"]
    devices["requests"] = [
        first,
        {"name": "more", "firstAvailable": [{"name": "a", "deviceClassName": "b", "count": 9}]},
    ]


def _rule(**rule: Any) -> Callable[[Object], None]:
    def change(each: Object) -> None:
        each["spec"]["egress"].append(rule)

    return change


WORLD = {"ipBlock": {"cidr": "0.0.0.0/0"}}
POD = ("Pod", "Deployment", "CronJob", "JobSet", "LeaderWorkerSet")
CLAIM, NETWORK = ("ResourceClaimTemplate",), ("NetworkPolicy",)
BAD: list[tuple[str, str, tuple[str, ...], Callable[[Object], None]]] = [
    ("images", "by tag", POD, _set(_container, image="registry.example.org/image:1")),
    ("images", "elsewhere", POD, _set(_container, image=f"other.example.org/image@{DIGEST}")),
    ("images", "half the name", POD, _set(_container, image=f"registry.example.org.x/y@{DIGEST}")),
    ("images", "in an init container", POD, _init(image="registry.example.org/image:1")),
    ("images", "half a digest", POD, _set(_container, image=IMAGE[:-1])),
    ("images", "as a volume", POD, _volume(image={"reference": "registry.example.org/weights:1"})),
    ("privilege", "in the leader alone", ("LeaderWorkerSet",), _leader),
    ("privilege", "host network", POD, _set(_spec, hostNetwork=True)),
    ("privilege", "host processes", POD, _set(_spec, hostPID=True)),
    ("privilege", "host memory", POD, _set(_spec, hostIPC=True)),
    ("privilege", "host folder", POD, _host_path("/etc")),
    ("privilege", "a folder so named", POD, _host_path("/var/lib/models-of-others")),
    ("privilege", "privileged", POD, _security(privileged=True)),
    ("privilege", "escalation", POD, _security(allowPrivilegeEscalation=True)),
    ("privilege", "escalation unsaid", POD, _set(_container, securityContext={
        "capabilities": {"drop": ["ALL"]}})),
    ("privilege", "nothing said", POD, _without(_container, "securityContext")),
    ("privilege", "capabilities kept", POD, _security(capabilities={"drop": ["NET_RAW"]})),
    ("privilege", "capabilities added", POD, _security(
        capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]})),
    ("privilege", "root", POD, _security(runAsNonRoot=False)),
    ("privilege", "perhaps root", POD, _without(_spec, "securityContext")),
    ("privilege", "in an init container", POD, _init(securityContext={})),
    ("gpus", "nine", POD, _limit("nvidia.com/gpu", 9)),
    ("gpus", "nine in words", POD, _limit("nvidia.com/gpu", "9")),
    ("gpus", "a thousand in a word", POD, _limit("nvidia.com/gpu", "1k")),
    ("gpus", "slices", POD, _limit("nvidia.com/mig-1g.10gb", 16)),
    ("gpus", "of another maker", POD, _limit("amd.com/gpu", 16)),
    ("gpus", "twice", POD, _set(_spec, resourceClaims=[
        {"name": "gpus", "resourceClaimTemplateName": "gpus"}])),
    ("gpus", "a claim of nine", CLAIM, _request(count=9)),
    ("gpus", "a claim of all", CLAIM, _request(allocationMode="All")),
    ("gpus", "one claim of two", CLAIM, _either),
    ("labels", "on the object", POD, _without(
        lambda each: each["metadata"]["labels"], "app.kubernetes.io/instance")),
    ("labels", "no labels", POD, _without(lambda each: each["metadata"], "labels")),
    ("labels", "on its pods", ("Deployment",), _unlabelled),
    ("egress", "to anywhere", NETWORK, _rule()),
    ("egress", "any port", NETWORK, _rule(to=[WORLD])),
    ("egress", "another port", NETWORK, _rule(to=[WORLD], ports=[{"port": 443}, {"port": 22}])),
    ("egress", "a range", NETWORK, _rule(to=[WORLD], ports=[{"port": 443, "endPort": 9999}])),
    ("egress", "only a protocol", NETWORK, _rule(ports=[{"protocol": "TCP"}])),
    ("egress", "half of the world", NETWORK, _rule(to=[{"ipBlock": {"cidr": "128.0.0.0/1"}}])),
    ("egress", "the other world", NETWORK, _rule(to=[{"ipBlock": {"cidr": "::/0"}}])),
    ("egress", "not said", NETWORK, _set(lambda each: each["spec"], policyTypes=["Ingress"])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("policy", "kinds", "change"),
    [pytest.param(it[0], it[2], it[3], id=f"{it[0]}: {it[1]}") for it in BAD],
)
def test_what_is_bad_is_refused_by_its_policy_alone(
    policies: list[Object],
    good: dict[str, Object],
    policy: str,
    kinds: tuple[str, ...],
    change: Callable[[Object], None],
) -> None:
    """By all three judges alike, whatever kind of object makes the pod."""
    for kind in kinds:
        bad = copy.deepcopy(good[kind])
        change(bad)
        assert refusals(policies, bad) == {
            "ValidatingAdmissionPolicy": {policy},
            "ValidatingPolicy": {policy},
            "ConstraintTemplate": {policy},
        }, kind


def test_every_rule_refuses_something(policies: list[Object], good: dict[str, Object]) -> None:
    """No rule, in CEL or in Rego, is there in vain."""
    said: dict[str, set[str]] = {}
    for name, _, kinds, change in BAD:
        bad = copy.deepcopy(good[kinds[0]])
        change(bad)
        said.setdefault(name, set()).update(messages(policies, name, bad))
    for each in policies:
        if each["kind"] == IN_CEL[0]:
            rules = {rule["message"] for rule in each["spec"]["validations"]}
            assert said[each["metadata"]["name"].removeprefix("demo-")] == rules


@pytest.mark.parametrize("policy", ["images", "privilege", "gpus", "labels", "egress"])
def test_every_line_of_rego_is_tried(
    policies: list[Object], good: dict[str, Object], policy: str
) -> None:
    """By objects that are good and bad; what all policies share, by one of them."""
    tried = [it for it in good.values() if policy != "egress" or it["kind"] == "NetworkPolicy"]
    for name, _, kinds, change in BAD:
        if name == policy:
            tried.append(copy.deepcopy(good[kinds[0]]))
            change(tried[-1])
    template = find(policies, "ConstraintTemplate", f"headrace{policy}")
    constraint = find(policies, template["spec"]["crd"]["spec"]["names"]["kind"])
    judge = Rego(template, constraint)
    for each in tried:
        judge.violations(each)
    own = (CHARTS / f"platform/policies/{policy}.rego").read_text(encoding="utf-8").splitlines()
    assert not [line for line in judge.untried() if policy == "images" or line in own]


def test_what_is_trusted_is_let_in(policies: list[Object], good: dict[str, Object]) -> None:
    """The edges of what is refused."""
    for kind, change in (
        ("Pod", _host_path("/var/lib/models/of-ours")),
        ("Pod", _limit("nvidia.com/gpu", 8)),
        ("Pod", _limit("nvidia.com/gpu", "8")),
        ("NetworkPolicy", _rule(to=[WORLD], ports=[{"port": 443}, {"port": 6443}])),
        ("NetworkPolicy", _rule(to=[{"ipBlock": {"cidr": "10.0.0.0/8"}}])),
        ("NetworkPolicy", _rule(to=[{"namespaceSelector": {}}])),
    ):
        each = copy.deepcopy(good[kind])
        change(each)
        assert not set.union(*refusals(policies, each).values())


def test_a_policy_can_be_left_out_or_only_told(charts: Charts) -> None:
    values = merged(
        read_values(EXAMPLE), {"policies": {"enforce": False, "gpus": {"enabled": False}}}
    )
    found = charts.rendered("platform", values, VERSION)
    assert "gpus" not in names(found)
    binding = find(found, "ValidatingAdmissionPolicyBinding", "demo-images")["spec"]
    assert binding["validationActions"] == ["Warn", "Audit"]
    assert find(found, "HeadraceImages")["spec"]["enforcementAction"] == "warn"
    assert find(found, "ClusterPolicy")["spec"]["validationFailureAction"] == "Audit"


def test_constraints_wait_until_their_kinds_are_known(charts: Charts) -> None:
    """Gatekeeper makes them from the templates, and helm refuses kinds that are not known yet."""
    values = {"policies": {"gatekeeper": True}}
    kinds = {each["kind"] for each in charts.rendered("platform", values, VERSION)}
    assert "ConstraintTemplate" in kinds
    assert not any(kind.startswith("Headrace") for kind in kinds)
    known = [f"constraints.gatekeeper.sh/v1beta1/Headrace{name}" for name in ("Images", "Gpus")]
    found = {each["kind"] for each in charts.rendered("platform", values, VERSION, known)}
    assert found - kinds == {"HeadraceImages", "HeadraceGpus"}


def test_policies_judge_in_the_namespaces_that_are_said(policies: list[Object]) -> None:
    """All three, and the signatures too."""
    wanted = ["models", "batch"]
    for each in policies:
        spec = each.get("spec", {})
        if each["kind"] == "ValidatingAdmissionPolicyBinding":
            [selector] = spec["matchResources"]["namespaceSelector"]["matchExpressions"]
            assert selector["values"] == wanted
        elif each["kind"] == "ValidatingPolicy":
            [selector] = spec["matchConstraints"]["namespaceSelector"]["matchExpressions"]
            assert selector["values"] == wanted
        elif each["kind"].startswith("Headrace"):
            assert spec["match"]["namespaces"] == wanted
        elif each["kind"] == "ClusterPolicy":
            [match] = spec["rules"][0]["match"]["any"]
            assert match["resources"]["namespaces"] == wanted


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"images": {"registries": ["registry.example.org"]}}, "/policies/images/registries/0"),
        ({"signatures": {"enabled": True}}, "/policies/signatures/images"),
        ({"signatures": {"enabled": True, "images": ["x/*"]}}, "/policies/signatures"),
        ({"gpus": {"most": 0}}, "/policies/gpus/most"),
        ({"labels": {"required": []}}, "/policies/labels/required"),
        ({"privilege": {"hostPaths": ["/models/"]}}, "/policies/privilege/hostPaths/0"),
    ],
)
def test_says_what_is_wrong(charts: Charts, values: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused) as refused:
        charts.rendered("platform", {"policies": values}, VERSION)
    assert refused.value.names(said)


def test_admission_policies_need_a_kubernetes_that_knows_them(charts: Charts) -> None:
    with pytest.raises(Refused, match=r"ValidatingAdmissionPolicy needs Kubernetes 1\.30"):
        charts.rendered("platform", {"policies": {"admission": True}}, KUBERNETES[0])
