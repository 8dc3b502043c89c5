"""What a container finds: its volumes, its environment and its command, on this machine.

There are no namespaces of mounts or networks here, so what a container says is translated, in its
command, its environment and the text of its ConfigMaps:

    a path below one of its mounts   the folder or file that stands for the volume
    0.0.0.0                          the pod's own address, on loopback
    SERVICE.NAMESPACE.svc            an address behind that Service, if there is one now

`/tmp` and `/dev/shm` are this machine's own: names of sockets must be short.
"""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.kube.cluster import Cluster, Key, Object
from tests.kube.services import Services

_PYTHON: Final = [sys.executable]
_OURS: Final = {"headrace": [*_PYTHON, "-m", "gateway"], "python": _PYTHON, "python3": _PYTHON}
_THE_MACHINES: Final = ("/tmp", "/dev/shm")
_NAME: Final = re.compile(r"\b([a-z0-9-]+\.[a-z0-9-]+\.svc)(?:\.cluster\.local)?\b")


@dataclass(frozen=True, slots=True)
class Node:
    """What the pods of a machine share."""

    cluster: Cluster
    services: Services
    folder: Path
    images: Mapping[str, Mapping[str, str]]
    """Environment that images bring, by repository."""


class Sandbox:
    """A pod's part of the machine."""

    def __init__(self, node: Node, pod: Object, address: str) -> None:
        self._node = node
        self._pod = pod
        self.address = address
        meta = pod["metadata"]  # another pod may have had its name
        self.folder: Path = node.folder / "pods" / f"{meta['name']}.{meta['uid'][:5]}"
        self._namespace = meta["namespace"]
        self._volumes = {each["name"]: self._place(each) for each in pod["spec"].get("volumes", ())}

    def __repr__(self) -> str:
        return f"<Sandbox {self.folder.name} at {self.address}>"

    def prepare(self) -> None:
        """Make the volumes, and write what is in them."""
        self.folder.mkdir(parents=True)
        for volume in self._pod["spec"].get("volumes", ()):
            place = self._volumes[volume["name"]]
            place.mkdir(parents=True, exist_ok=True)
            for name, content in self._content(volume):
                (place / name).write_bytes(content)

    def command(self, container: Object, words: list[str]) -> list[str]:
        """As it is run here."""
        program, *rest = [self._text(container, str(word)) for word in words]
        return [*_OURS.get(program, [program]), *rest]

    def environment(self, container: Object, kubeconfig: Object | None) -> dict[str, str]:
        """Of its processes, and nothing of our own; `kubeconfig` is how it asks the API."""
        found = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        found |= self._node.images.get(container["image"].partition(":")[0], {})
        for each in container.get("env", ()):
            found[each["name"]] = self._text(container, self._value(each))
        if kubeconfig is not None:
            file = self.folder / "kubeconfig"
            file.write_text(yaml.safe_dump(kubeconfig), encoding="utf-8")
            found["KUBECONFIG"] = str(file)
        return found

    # Volumes

    def _place(self, volume: Object) -> Path:
        """The folder that stands for it. Raises NotImplementedError."""
        shared = self._node.folder / "shared"
        name = str(volume["name"])
        match volume:
            case {"persistentVolumeClaim": {"claimName": str(claim)}}:
                return shared / "claims" / claim
            case {"hostPath": {"path": str(path)}}:
                return shared / "host" / path.lstrip("/")
            case {"image": {"reference": str(image)}}:
                return shared.joinpath("images", *image.split("/"))
            case {"emptyDir": _} | {"configMap": _} | {"secret": _}:
                return self.folder / "volumes" / name
        raise NotImplementedError(f"a volume of {sorted(volume)}")

    def _content(self, volume: Object) -> Iterator[tuple[str, bytes]]:
        cluster = self._node.cluster
        match volume:
            case {"configMap": {"name": name}}:
                data = cluster.get(Key("", "configmaps", self._namespace, name))["data"]
                for file, text in data.items():
                    yield file, self._of_all_mounts(text).encode()
            case {"secret": {"secretName": name}}:
                data = cluster.get(Key("", "secrets", self._namespace, name))["data"]
                for file, text in data.items():
                    yield file, base64.b64decode(text)

    def _mounts(self, container: Object) -> Iterator[tuple[str, Path]]:
        for each in container.get("volumeMounts", ()):
            place = self._volumes[each["name"]]
            yield each["mountPath"], place / each["subPath"] if "subPath" in each else place

    # Text

    def _value(self, variable: Object) -> str:
        """Raises NotImplementedError."""
        cluster, meta = self._node.cluster, self._pod["metadata"]
        match variable:
            case {"value": value}:
                return str(value)
            case {"valueFrom": {"secretKeyRef": {"name": name, "key": key}}}:
                data = cluster.get(Key("", "secrets", self._namespace, name))["data"]
                return base64.b64decode(data[key]).decode()
            case {"valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}:
                return self.address
            case {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}:
                return str(meta["name"])
        raise NotImplementedError(f"a variable from {variable}")

    def _of_all_mounts(self, text: str) -> str:
        """What is in a volume may be read by any container."""
        for container in self._pod["spec"]["containers"]:
            text = self._text(container, text)
        return text

    def _text(self, container: Object, text: str) -> str:
        mounts: dict[str, Any] = dict(self._mounts(container))
        paths = sorted((path for path in mounts if path not in _THE_MACHINES), reverse=True)
        if paths:
            any_path = "|".join(map(re.escape, paths))
            pattern = rf"(?<![\w./-])({any_path})(?=[/\s\"',]|$)"
            text = re.sub(pattern, lambda found: str(mounts[found[1]]), text)
        text = re.sub(r"\b0\.0\.0\.0\b", self.address, text)
        return _NAME.sub(lambda found: self._address(found[1]) or found[0], text)

    def _address(self, name: str) -> str | None:
        return next(iter(self._node.services.addresses(name)), None)
