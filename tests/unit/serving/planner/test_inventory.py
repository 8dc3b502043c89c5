"""Where GPUs come from: options, a file, a cluster's nodes, a driver."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.planner.hardware import GIB, Link, kind, kind_of_product, link, worst_link
from serving.planner.inventory import from_document, from_driver, from_nodes, from_options
from serving.planner.model import PlanError
from serving.planner.sources import cluster, seen_by_nvml, seen_by_torch

NONE: dict[str, float] = {}


def node(name: str, labels: dict[str, str], allocatable: dict[str, str]) -> dict[str, Any]:
    """A node as the Kubernetes API gives it, as far as it matters."""
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": allocatable}}


H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "nvidia.com/gpu.memory": "81559"}
NODES = [
    node("whole", H100, {"cpu": "8", "nvidia.com/gpu": "8"}),
    node("cut", H100, {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "7"}),
    node("red", {"amd.com/gpu.product-name": "AMD_Instinct_MI300X_OAM"}, {"amd.com/gpu": "8"}),
    node("plain", {}, {"cpu": "64"}),
    node("away", H100, {"nvidia.com/gpu": "8"}) | {"spec": {"unschedulable": True}},
]


def test_options_make_like_hosts() -> None:
    found = from_options("H200", 8, 2, {"h200": 2.5})
    assert [gpu.id for gpu in found.gpus][:2] == ["node-0/0", "node-0/1"]
    assert len(found.gpus) == 16
    assert {gpu.kind.price for gpu in found.gpus} == {2.5}
    assert worst_link(found.gpus[:8]) is Link.NVSWITCH
    assert worst_link(found.gpus) is Link.NETWORK


def test_pcie_cards_are_two_to_a_switch_and_half_to_a_cpu() -> None:
    cards = from_options("l40s", 8, 1, NONE).gpus
    assert link(cards[0], cards[1]) is Link.PCIE_SWITCH
    assert link(cards[0], cards[3]) is Link.NUMA
    assert link(cards[0], cards[4]) is Link.SYSTEM


def test_a_file_says_what_is_joined_how() -> None:
    found = from_document(
        {
            "nodes": [
                {
                    "name": "box",
                    "count": 2,
                    "gpus": [
                        {"kind": "a100-80gb", "count": 4, "nvlink": [[0, 1], [2, 3]]},
                        {"kind": "mine", "pcie": [], "numa": [[4]]},
                    ],
                }
            ],
            "kinds": {"mine": {"like": "l4", "memory_mib": 40960, "price_per_hour": 0.1}},
        },
        NONE,
    )
    first = found.gpus[:5]
    assert {gpu.node for gpu in found.gpus} == {"box-0", "box-1"}
    assert link(first[0], first[1]) is Link.NVLINK
    assert link(first[1], first[2]) is Link.SYSTEM
    assert first[4].kind.memory == 40 * GIB
    assert first[4].kind.price == 0.1


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (None, "inventory: "),
        ({"nodes": []}, "no GPUs"),
        ({"nodes": [{"name": "a", "gpus": [{"kind": "h9"}]}]}, "no GPU is known as 'h9'"),
        ({"nodes": [{"name": "a", "gpu": []}]}, "inventory: "),
        ({"nodes": [{"name": "a", "gpus": [{"kind": "l4", "count": 0}]}]}, "inventory: "),
        ({"nodes": [{"name": "a", "gpus": [{"kind": "l4", "nvlink": [[7]]}]}]}, "no GPU 7"),
        ({"nodes": [{"name": "a", "gpus": [{"kind": "l4", "pcie": [[0], [0]]}]}]}, "in two sets"),
        ({"nodes": [{"name": "a", "gpus": [{"kind": "l4"}]}] * 2}, "there twice"),
    ],
)
def test_a_file_that_makes_no_sense_is_told_why(document: object, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        from_document(document, NONE)


@pytest.mark.parametrize(
    ("product", "memory", "name"),
    [
        ("NVIDIA H200", 143771, "h200"),
        ("NVIDIA-A100-SXM4-40GB", 40960, "a100-40gb"),
        ("NVIDIA A100-SXM4-80GB", 81920, "a100-80gb"),
        ("NVIDIA-A100-80GB-PCIe", 0, "a100-80gb"),
        ("NVIDIA-L40S", 46068, "l40s"),
        ("NVIDIA L4", 23034, "l4"),
        ("NVIDIA-H100-80GB-HBM3-MIG-1g.10gb", 0, "h100-1g.10gb"),
        ("AMD_Instinct_MI300X_OAM", 0, "mi300x"),
    ],
)
def test_products_are_known_by_the_names_drivers_give(product: str, memory: int, name: str) -> None:
    assert kind_of_product(product, memory) == kind(name)


def test_mig_profiles_have_their_share() -> None:
    whole = kind("a100-80gb")
    for profile, eighths in (("1g.10gb", 1), ("1g.20gb", 2), ("3g.40gb", 4), ("7g.80gb", 8)):
        share = kind(f"a100-80gb-{profile}").memory / whole.memory
        assert eighths / 8 * 0.95 < share < eighths / 8
    assert kind("a100-40gb-1g.5gb").bandwidth == kind("a100-40gb").bandwidth / 8


def test_a_clusters_nodes_are_what_they_can_allocate() -> None:
    found = from_nodes(NODES, NONE)
    counted = {
        (gpu.node, gpu.kind.name): sum(
            other.node == gpu.node and other.kind == gpu.kind for other in found.gpus
        )
        for gpu in found.gpus
    }
    assert counted == {
        ("whole", "h100"): 8,
        ("cut", "h100-1g.10gb"): 7,
        ("red", "mi300x"): 8,
    }
    with pytest.raises(PlanError, match="no node of the cluster"):
        from_nodes([NODES[3]], NONE)
    with pytest.raises(PlanError, match="no GPU is known as 'Voodoo2'"):
        from_nodes(
            [node("a", {"nvidia.com/gpu.product": "Voodoo2"}, {"nvidia.com/gpu": "1"})], NONE
        )


def test_what_one_group_says_is_nothing_to_another() -> None:
    group = {"kind": "a100-80gb", "count": 2}
    groups = [group | {"nvlink": [[0, 1]]}, group | {"nvlink": [[2, 3]]}]
    found = from_document({"nodes": [{"name": "a", "gpus": groups}]}, NONE).gpus
    assert link(found[0], found[1]) is link(found[2], found[3]) is Link.NVLINK
    assert link(found[1], found[2]) is not Link.NVLINK


def test_a_pcie_switch_alone_may_be_told() -> None:
    cards = {"kind": "l40s", "count": 4, "pcie": [[0, 1, 2, 3]]}
    found = from_document({"nodes": [{"name": "a", "gpus": [cards]}]}, NONE).gpus
    assert worst_link(found) is Link.PCIE_SWITCH


_SETS = st.lists(st.lists(st.integers(-1, 9), max_size=3), max_size=3)
_GROUPS = st.fixed_dictionaries(
    {"kind": st.sampled_from(["l4", "h100", "h100-1g.10gb", "a100", "mine", "nothing"])},
    optional={"count": st.integers(-1, 8), "nvlink": _SETS, "pcie": _SETS, "numa": _SETS},
)
_FILES = st.fixed_dictionaries(
    {
        "nodes": st.lists(
            st.fixed_dictionaries(
                {"name": st.sampled_from("ab"), "gpus": st.lists(_GROUPS, max_size=3)},
                optional={"count": st.integers(0, 3)},
            ),
            max_size=3,
        )
    },
    optional={"kinds": st.just({"mine": {"like": "l4"}})},
)


@given(_FILES)
def test_any_file_is_an_inventory_or_a_plan_error(document: dict[str, Any]) -> None:
    try:
        found = from_document(document, NONE)
    except PlanError:
        return
    assert len({gpu.id for gpu in found.gpus}) == len(found.gpus) > 0
    for one, other in itertools.combinations(found.gpus[:8], 2):
        assert link(one, other) is link(other, one)


_WORDS = st.sampled_from(["", "7", "-1", "many", "NVIDIA-L4", "nvidia.com/gpu.product"])
_LABELS = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu.product", "nvidia.com/gpu.memory", "amd.com/gpu.product-name"])
    | _WORDS,
    _WORDS,
)
_RESOURCES = st.dictionaries(
    st.sampled_from(["nvidia.com/gpu", "amd.com/gpu", "nvidia.com/mig-1g.10gb", "cpu"]), _WORDS
)


@given(st.lists(st.builds(node, st.sampled_from("abc"), _LABELS, _RESOURCES), max_size=3))
def test_any_nodes_are_an_inventory_or_a_plan_error(items: list[dict[str, Any]]) -> None:
    try:
        found = from_nodes(items, NONE)
    except PlanError:
        return
    assert found.gpus


@contextmanager
def api_server(items: list[dict[str, Any]]) -> Iterator[str]:
    """An API server on loopback that knows its nodes, and no more."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            listed = self.path.split("?")[0] == "/api/v1/nodes"
            body = json.dumps({"kind": "NodeList", "apiVersion": "v1", "items": items}).encode()
            self.send_response(200 if listed else 404)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Nothing on stderr."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def kubeconfig(folder: Path, server: str) -> str:
    """A kubeconfig file that points there."""
    path = folder / "kubeconfig"
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "clusters": [{"name": "here", "cluster": {"server": server}}],
                "users": [{"name": "me", "user": {}}],
            }
        )
    )
    return str(path)


def test_a_cluster_is_asked_through_its_api(tmp_path: Path) -> None:
    with api_server(NODES) as url:
        found = cluster(kubeconfig(tmp_path, url), NONE)
    assert sorted({gpu.node for gpu in found.gpus}) == ["cut", "red", "whole"]


def test_a_cluster_that_does_not_answer_is_one_line(tmp_path: Path) -> None:
    with api_server([]) as url:
        gone = kubeconfig(tmp_path, url)
    with pytest.raises(PlanError, match="cannot be listed") as raised:
        cluster(gone, NONE)
    assert "\n" not in str(raised.value)


class Driver:
    """NVML as its documentation has it: GPUs in pairs on a PCIe switch, four to a NUMA node."""

    NVML_TOPOLOGY_MULTIPLE, NVML_TOPOLOGY_NODE, SYSTEM = 20, 40, 50
    NVML_P2P_CAPS_INDEX_NVLINK, NVML_P2P_STATUS_OK = 2, 0

    class NVMLError(Exception):
        """What every call may raise."""

    def __init__(self, count: int, name: str, linked: int, slices: tuple[str, ...] = ()) -> None:
        self.count, self.name, self.linked, self.slices = count, name, linked, slices

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None: ...

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetName(self, handle: int | str) -> str | bytes:
        return f"{self.name} MIG {handle}" if isinstance(handle, str) else self.name.encode()

    def nvmlDeviceGetMemoryInfo(self, _: int | str) -> SimpleNamespace:
        return SimpleNamespace(total=81559 * 1024 * 1024)

    def nvmlDeviceGetMaxMigDeviceCount(self, _: int) -> int:
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, _: int, number: int) -> str:
        if number >= len(self.slices):
            raise self.NVMLError
        return self.slices[number]

    def nvmlDeviceGetTopologyCommonAncestor(self, one: int, other: int) -> int:
        if one // 2 == other // 2:
            return self.NVML_TOPOLOGY_MULTIPLE
        return self.NVML_TOPOLOGY_NODE if one // 4 == other // 4 else self.SYSTEM

    def nvmlDeviceGetP2PStatus(self, one: int, other: int, _: int) -> int:
        return 0 if one // self.linked == other // self.linked else 5


def test_a_drivers_gpus_are_joined_as_it_says() -> None:
    behind_a_switch = from_driver(seen_by_nvml(Driver(8, "NVIDIA H100 80GB HBM3", 8)), NONE).gpus
    assert worst_link(behind_a_switch) is Link.NVSWITCH
    assert {gpu.kind.name for gpu in behind_a_switch} == {"h100"}
    bridged = from_driver(seen_by_nvml(Driver(4, "NVIDIA A100 80GB PCIe", 2)), NONE).gpus
    assert link(bridged[0], bridged[1]) is Link.NVLINK
    assert link(bridged[0], bridged[2]) is Link.NUMA
    cards = from_driver(seen_by_nvml(Driver(8, "NVIDIA L40S", 1)), NONE).gpus
    assert link(cards[0], cards[1]) is Link.PCIE_SWITCH
    assert link(cards[0], cards[4]) is Link.SYSTEM


def test_a_driver_with_slices_has_those_and_not_the_whole() -> None:
    driver = Driver(1, "NVIDIA H100 80GB HBM3", 1, ("1g.10gb", "3g.40gb"))
    found = from_driver(seen_by_nvml(driver), NONE).gpus
    assert [gpu.kind.name for gpu in found] == ["h100-1g.10gb", "h100-3g.40gb"]


def test_without_a_driver_there_is_nothing_to_plan_for() -> None:
    with pytest.raises(PlanError, match="no GPU is to be seen here"):
        from_driver([], NONE)


def test_torch_knows_names_and_memory() -> None:
    props = SimpleNamespace(name="NVIDIA L4", total_memory=23034 * 1024 * 1024)
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda _: props)
    found = from_driver(seen_by_torch(SimpleNamespace(cuda=cuda)), NONE)
    assert [gpu.kind.name for gpu in found.gpus] == ["l4", "l4"]
