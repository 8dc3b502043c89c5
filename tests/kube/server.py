"""The stand-in's HTTP: paths, queries and bodies as a Kubernetes API server has them.

Every request is written down (`asked`, `asked_by`), by verb and resource, so that what somebody was
seen to ask for can be compared with the Role it is given. A service account may only do what the
Roles in the cluster say; whoever else has a token may do everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import logging
import socket
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.kube import kinds as known
from tests.kube.cluster import Cluster, Follower, Key, Object, Place, Trouble
from tests.kube.kinds import KINDS, Kind
from tests.kube.merging import applied, merged
from tests.kube.patches import APPLY, patched
from tests.kube.protobuf import MAGIC, from_protobuf
from tests.kube.rights import Account, Asked, authorize
from tests.kube.selectors import matching


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
    accounts: dict[str, Account] = field(default_factory=dict)
    """Tokens of service accounts."""
    asked: list[Asked] = field(default_factory=list)
    asked_by: dict[Account, list[Asked]] = field(default_factory=lambda: defaultdict(list))
    """The same of each service account, where it was allowed."""
    applied: dict[tuple[Key, str], Object] = field(default_factory=dict)
    """What each manager has last applied."""
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

    def token_of(self, account: Account) -> str:
        """A new token of a service account."""
        token = uuid.uuid4().hex
        self.accounts[token] = account
        return token

    def kubeconfig(
        self, folder: Path, token: str = "t0", namespace: str = "models", **user: Any
    ) -> Path:
        """A file that leads here; `user` is how a token is had, where it does not say it."""
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(self.kubeconfig_document(token, namespace, **user)))
        return path

    def kubeconfig_document(self, token: str, namespace: str, **user: Any) -> Object:
        """What is in such a file."""
        context = {"cluster": "here", "user": "me", "namespace": namespace}
        return {
            "apiVersion": "v1", "kind": "Config", "current-context": "it",
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": user or {"token": token}}],
            "contexts": [{"name": "it", "context": context}],
        }  # fmt: skip

    # Requests

    async def answer(self, request: Request) -> Response:
        """Whatever is asked."""
        try:
            if self.troubles:
                raise self.troubles.pop(0)
            account = self._identify(request)
            found = self._document(request.url.path.rstrip("/"))
            if found is not None:
                return JSONResponse(found)
            target = self._target(request.url.path)
            asked = _asked(request, target)
            self.asked.append(asked)
            if account is not None:
                authorize(self.cluster, account, asked)
                self.asked_by[account].append(asked)
            return await self._object(request, target, asked.verb)
        except Trouble as trouble:
            after = {"Retry-After": str(trouble.retry_after_s)} if trouble.retry_after_s else None
            return JSONResponse(trouble.document(), trouble.status, after)

    def _identify(self, request: Request) -> Account | None:
        """The service account; None for anybody else who is let in. Raises Trouble, 401."""
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        account = self.accounts.get(token)
        is_known = kind.lower() == "bearer" and token in (self.tokens or ())
        if account is None and self.tokens is not None and not is_known:
            raise Trouble(401, "Unauthorized", "Unauthorized")
        return account

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
            case ["openapi", "v3"]:
                found = known.schemas(kinds)
            case ["openapi", "v3", "all"]:
                found = known.schema(kinds)
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

    async def _object(self, request: Request, target: Target, verb: str) -> Response:
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
        is_dry = "dryRun" in request.query_params
        before: Object = {}
        if kind == APPLY:
            manager = (key, request.query_params.get("fieldManager", ""))
            before = self.applied.get(manager, {})
            if not is_dry:
                self.applied[manager] = copy.deepcopy(body)
            if key not in cluster.objects:
                return self._created(target, key, body, request)
        was = cluster.get(key)
        shown = known.scale_of(was) if target.subresource == "scale" else copy.deepcopy(was)
        if verb == "update":
            new = self._typed(body, target)
        elif kind == APPLY:
            new = applied(shown, before, body)
        else:
            new = patched(shown, kind, body)
        if target.subresource is not None:
            new = _below(was, target.subresource, new)
        found = new if is_dry else cluster.replace(key, known.with_defaults(target.kind, new))
        return JSONResponse(known.scale_of(found) if target.subresource == "scale" else found)

    def _created(self, target: Target, key: Key, body: Object, request: Request) -> Response:
        new = self._typed(body, target)
        if "dryRun" in request.query_params:
            return JSONResponse(new, 201)
        created = self.cluster.create(key, known.with_defaults(target.kind, new))
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
        tells_all = _is_true(query.get("sendInitialEvents"))
        try:
            follower = self.cluster.follow(
                target.place,
                matching(query.get("labelSelector", ""), query.get("fieldSelector", "")),
                None if tells_all or since in ("", "0") else int(since),
            )
        except Trouble as trouble:
            if not self.says_gone_in_stream:
                raise
            event = {"type": "ERROR", "object": trouble.document()}
            return Response(json.dumps(event) + "\n", media_type="application/json")
        if tells_all:
            follower.pending.append(_bookmark(target.kind, self.cluster.version, is_first=True))
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
                    yield json.dumps(_bookmark(kind, version)).encode() + b"\n"
        finally:
            self.cluster.unfollow(follower)


def _asked(request: Request, target: Target) -> Asked:
    """What this request is to the rights."""
    verb = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}.get(
        request.method, "get" if target.name else "list"
    )
    if verb == "list" and _is_true(request.query_params.get("watch")):
        verb = "watch"
    resource = "/".join(filter(None, (target.kind.plural, target.subresource)))
    return Asked(verb, target.kind.group, resource, target.namespace)


def _is_true(value: str | None) -> bool:
    """As the API reads it: clients in Python write True."""
    return value in ("1", "t", "true", "True", "TRUE")


def _bookmark(kind: Kind, version: int, *, is_first: bool = False) -> Object:
    """`is_first`: all that was there when the watch began has been told."""
    meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
    if is_first:
        meta["annotations"] = {"k8s.io/initial-events-end": "true"}
    found = {"kind": kind.kind, "apiVersion": kind.api_version, "metadata": meta}
    return {"type": "BOOKMARK", "object": found}


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
