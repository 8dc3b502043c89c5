"""The stand-in's HTTP: paths, queries and bodies as a Kubernetes API server has them.

Every request is written down (`asked`), by verb and resource, so that what somebody was seen to ask
for can be compared with the Role it is given.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.kube import kinds as known
from tests.kube.cluster import Cluster, Follower, Key, Object, Place, Trouble, merged, patched
from tests.kube.kinds import KINDS, Kind
from tests.kube.protobuf import MAGIC, from_protobuf
from tests.kube.selectors import matching


class Asked(NamedTuple):
    """A request, as RBAC sees it."""

    verb: str
    group: str
    resource: str
    namespace: str | None


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names."""

    kind: Kind
    namespace: str | None
    name: str | None
    subresource: str | None

    @property
    def place(self) -> Place:
        """The collection."""
        return Place(self.kind.group, self.kind.plural, self.namespace)

    def key(self, name: str | None = None) -> Key:
        """The object, or one of that name beside it."""
        named = name or self.name or ""
        return Key(self.kind.group, self.kind.plural, self.namespace or "", named)


class Dropped(Exception):
    """The connection is to break here."""


@dataclass
class ApiServer:
    """The server, its cluster, and how it is out of order."""

    cluster: Cluster = field(default_factory=Cluster)
    kinds: dict[tuple[str, str, str], Kind] = field(
        default_factory=lambda: {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
    )
    tokens: set[str] | None = None
    """Those that are accepted; None: nobody is asked."""
    troubles: list[Trouble] = field(default_factory=list)
    """What the next requests are answered with, one each."""
    bookmark_every_s: float = 0.2
    says_gone_in_stream: bool = True
    asked: list[Asked] = field(default_factory=list)
    listed: list[tuple[str, int]] = field(default_factory=list)
    """Lists that were answered to their last page: the resource, and as of which version."""
    port: int = 0
    certificate: Path | None = None
    """A file with its certificate and key: it speaks TLS."""

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"{'https' if self.certificate else 'http'}://127.0.0.1:{self.port}"

    def throttle(self, requests: int, retry_after_s: int) -> None:
        """Answer the next requests with 429."""
        trouble = Trouble(429, "TooManyRequests", "too many requests", retry_after_s)
        self.troubles += [trouble] * requests

    def kubeconfig(
        self, folder: Path, token: str = "t0", namespace: str = "models", **user: Any
    ) -> Path:
        """A file that leads here; `user` is how a token is had, where it does not say it."""
        path = folder / "kubeconfig"
        context = {"cluster": "here", "user": "me", "namespace": namespace}
        document = {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": user or {"token": token}}],
            "contexts": [{"name": "it", "context": context}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(document))
        return path

    # Requests

    async def answer(self, request: Request) -> Response:
        """Whatever is asked."""
        try:
            if self.troubles:
                raise self.troubles.pop(0)
            self._identify(request)
            found = self._document(request.url.path.rstrip("/"))
            if found is not None:
                return JSONResponse(found)
            return await self._object(request, self._target(request.url.path))
        except Trouble as trouble:
            after = {"Retry-After": str(trouble.retry_after_s)} if trouble.retry_after_s else None
            return JSONResponse(trouble.document(), trouble.status, after)

    def _identify(self, request: Request) -> None:
        """Raises Trouble, 401."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if self.tokens is not None and (kind.lower() != "bearer" or token not in self.tokens):
            raise Trouble(401, "Unauthorized", "Unauthorized")

    def _document(self, path: str) -> Object | None:
        """What is said of the server itself; None where the path is an object's."""
        kinds = self.kinds.values()
        found: Object | None = None
        match path.split("/")[1:]:
            case ["version"]:
                found = {"major": "1", "minor": "35", "gitVersion": "v1.35.0"}
            case ["healthz" | "livez" | "readyz"]:
                found = {}
            case ["api"]:
                found = known.versions()
            case ["apis"]:
                found = known.groups(kinds)
            case ["api", version]:
                found = known.resources(kinds, "", version)
            case ["apis", group, version]:
                found = known.resources(kinds, group, version)
        return found

    def _target(self, path: str) -> Target:
        """Raises Trouble, 404."""
        root, *rest = path.strip("/").split("/")
        group = ""
        if root == "apis" and rest:
            group, *rest = rest
        if rest:
            version, *rest = rest
            namespace = None
            if len(rest) > 2 and rest[0] == "namespaces":
                _, namespace, *rest = rest
            if 1 <= len(rest) <= 3 and (group, version, rest[0]) in self.kinds:
                plural, name, subresource = [*rest, None, None][:3]
                return Target(
                    self.kinds[group, version, plural or ""], namespace, name, subresource
                )
        raise Trouble(404, "NotFound", "the server could not find the requested resource")

    async def _object(self, request: Request, target: Target) -> Response:
        query = request.query_params
        verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
            request.method, "get" if target.name else "list"
        )
        if verb == "list" and _is_true(query.get("watch")):
            verb = "watch"
        resource = "/".join(filter(None, (target.kind.plural, target.subresource)))
        self.asked.append(Asked(verb, target.kind.group, resource, target.namespace))
        match verb:
            case "list":
                return self._list(request, target)
            case "watch":
                return self._watch(request, target)
            case "get":
                found = self.cluster.get(target.key())
                return JSONResponse(
                    known.scale_of(found) if target.subresource == "scale" else found
                )
            case "delete":
                return JSONResponse(self.cluster.delete(target.key()))
        return self._write(verb, request, target, _document(await request.body()))

    def _write(self, verb: str, request: Request, target: Target, body: Any) -> Response:
        cluster, key = self.cluster, target.key()
        if verb == "create":
            meta = body.setdefault("metadata", {})
            name = meta.get("name") or meta.get("generateName", "") + uuid.uuid4().hex[:5]
            return self._created(target, target.key(name), body, request)
        kind = request.headers.get("content-type", "").partition(";")[0]
        if kind == "application/apply-patch+yaml" and key not in cluster.objects:
            return self._created(target, key, body, request)
        was = cluster.get(key)
        shown = known.scale_of(was) if target.subresource == "scale" else copy.deepcopy(was)
        new = self._typed(body, target) if verb == "update" else patched(shown, kind, body)
        if target.subresource is not None:
            new = _below(was, target.subresource, new)
        found = new if "dryRun" in request.query_params else cluster.replace(key, new)
        return JSONResponse(known.scale_of(found) if target.subresource == "scale" else found)

    def _created(self, target: Target, key: Key, body: Object, request: Request) -> Response:
        new = self._typed(body, target)
        if "dryRun" in request.query_params:
            return JSONResponse(new, 201)
        created = self.cluster.create(key, new)
        if target.kind.kind == "CustomResourceDefinition":
            self.kinds |= {(kind.group, kind.version, kind.plural): kind
                           for kind in known.kinds_of(created)}  # fmt: skip
        return JSONResponse(created, 201)

    def _typed(self, body: Object, target: Target) -> Object:
        return merged({"kind": target.kind.kind, "apiVersion": target.kind.api_version}, body)

    def _list(self, request: Request, target: Target) -> Response:
        query = request.query_params
        version, items, following = self.cluster.page(
            target.place,
            matching(query.get("labelSelector", ""), query.get("fieldSelector", "")),
            int(query.get("limit", "0")),
            query.get("continue") or None,
        )
        if "as=Table" in request.headers.get("accept", ""):
            return JSONResponse(known.table(items, version))
        meta = {"resourceVersion": str(version)}
        kind = target.kind
        if following is not None:
            meta["continue"] = following
        else:
            self.listed.append((kind.plural, version))
        return JSONResponse(
            {
                "kind": f"{kind.kind}List",
                "apiVersion": kind.api_version,
                "metadata": meta,
                "items": items,
            }
        )

    def _watch(self, request: Request, target: Target) -> Response:
        query = request.query_params
        since = query.get("resourceVersion", "0")
        try:
            follower = self.cluster.follow(
                target.place,
                matching(query.get("labelSelector", ""), query.get("fieldSelector", "")),
                None if since in ("", "0") else int(since),
            )
        except Trouble as trouble:
            if not self.says_gone_in_stream:
                raise
            event = {"type": "ERROR", "object": trouble.document()}
            return Response(json.dumps(event) + "\n", media_type="application/json")
        lasting_s = float(query.get("timeoutSeconds", "300"))
        with_bookmarks = _is_true(query.get("allowWatchBookmarks"))
        return StreamingResponse(
            self._events(follower, target.kind, lasting_s, with_bookmarks),
            media_type="application/json",
        )

    async def _events(
        self, follower: Follower, kind: Kind, lasting_s: float, with_bookmarks: bool
    ) -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + lasting_s
        try:
            while loop.time() < ends_at and not follower.is_over:
                if follower.is_cut:
                    raise Dropped
                told = [json.dumps(event) + "\n" for event in follower.pending]
                follower.pending.clear()
                follower.woken.clear()
                version = self.cluster.version
                if told:
                    yield "".join(told).encode()
                pause_s = max(0.0, min(self.bookmark_every_s, ends_at - loop.time()))
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(follower.woken.wait(), pause_s)
                if with_bookmarks and not follower.woken.is_set() and not follower.is_cut:
                    yield _bookmark(kind, version)
        finally:
            self.cluster.unfollow(follower)


def _is_true(value: str | None) -> bool:
    """As the API reads it: clients in Python write True."""
    return value in ("1", "t", "true", "True", "TRUE")


def _bookmark(kind: Kind, version: int) -> bytes:
    meta = {"resourceVersion": str(version), "creationTimestamp": None}
    found = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}
    return json.dumps({"type": "BOOKMARK", "object": found}).encode() + b"\n"


def _below(was: Object, subresource: str, new: Object) -> Object:
    """The whole object, where a part of it has been written."""
    whole = copy.deepcopy(was)
    whole["metadata"].pop("resourceVersion")
    if subresource == "scale":
        whole.setdefault("spec", {})["replicas"] = new["spec"].get("replicas", 0)
    else:
        whole[subresource] = new.get(subresource)
    return whole


def _document(body: bytes) -> Any:
    if body.startswith(MAGIC):
        return from_protobuf(body)
    try:
        return json.loads(body)
    except ValueError:
        return yaml.safe_load(body)


@asynccontextmanager
async def running_api_server(api: ApiServer | None = None) -> AsyncIterator[ApiServer]:
    """A server on loopback, on the loop of the caller."""
    api = api or ApiServer()
    logging.getLogger("uvicorn.error").disabled = True  # connections that break are what we want
    app = Starlette(routes=[Route("/{path:path}", api.answer, methods=_METHODS)])
    listening = socket.create_server(("127.0.0.1", api.port))
    api.port = listening.getsockname()[1]
    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=0,
        ssl_certfile=api.certificate,
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign, assignment]
    task = asyncio.create_task(server.serve([listening]), name="api server")
    try:
        yield api
    finally:
        api.cluster.drop_watches()
        server.should_exit = True
        await task


_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
