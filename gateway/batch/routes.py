"""`/v1/files` and `/v1/batches`, as OpenAI's API has them.

Routes for the control app. What is wrong with a request is raised as a GatewayError, which the app
tells in OpenAI's shape; nothing here waits on a disk or a database but in a thread.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, Final

import msgspec
import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from gateway.batch.documents import batch_document, file_document, page, window_s
from gateway.batch.lines import ENDPOINTS
from gateway.batch.nouns import Batch, File
from gateway.batch.store import Page
from gateway.batch.upload import Upload
from gateway.errors import BodyTooLarge, ClientGone, InvalidRequest
from gateway.vocabulary import TENANT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from gateway.batch.files import Draft
    from gateway.batch.service import Batches
    from gateway.settings import BatchSettings
    from gateway.vocabulary import Tenant

_FILES_PATH: Final = "/v1/files"
_FORM_BYTES: Final = 64 * 1024  # what a form may be beside its file
_READ_BYTES: Final = 256 * 1024
_MOST_PAIRS, _LONGEST_KEY, _LONGEST_VALUE = 16, 64, 512  # of metadata


class _Creation(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST to /v1/batches."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


def uploads(settings: BatchSettings) -> dict[bytes, int]:
    """Which paths take bodies larger than others', and how large."""
    return {_FILES_PATH.encode(): settings.max_file_bytes + _FORM_BYTES}


def batch_routes(batches: Batches) -> list[Route]:
    """The routes, over the room's keeper."""
    files, desk = _FileRoutes(batches), _BatchRoutes(batches)
    return [
        Route(_FILES_PATH, files.create, methods=["POST"]),
        Route(_FILES_PATH, files.list, methods=["GET"]),
        Route("/v1/files/{file_id}", files.retrieve, methods=["GET"]),
        Route("/v1/files/{file_id}", files.delete, methods=["DELETE"]),
        Route("/v1/files/{file_id}/content", files.content, methods=["GET"]),
        Route("/v1/batches", desk.create, methods=["POST"]),
        Route("/v1/batches", desk.list, methods=["GET"]),
        Route("/v1/batches/{batch_id}", desk.retrieve, methods=["GET"]),
        Route("/v1/batches/{batch_id}/cancel", desk.cancel, methods=["POST"]),
    ]


class _FileRoutes:
    def __init__(self, batches: Batches) -> None:
        self._desk = batches

    async def create(self, request: Request) -> Response:
        """Take in a file as it comes; it exists once it is whole."""
        desk = self._desk
        upload = Upload(request.headers.get("content-type", "").encode())
        file_id = f"file-{secrets.token_hex(12)}"
        draft: Draft = await desk.blocking(desk.files.draft, file_id)
        is_whole = False
        try:
            await self._receive(request, upload, draft)
            file = File(
                file_id,
                desk.wall(),
                draft.size,
                upload.filename,
                upload.purpose(),
                _tenant(request),
            )
            await desk.blocking(draft.keep)
            is_whole = True
        finally:
            if not is_whole:
                await desk.blocking(draft.discard)
        await desk.blocking(desk.store.add_file, file)
        return _json(file_document(file))

    async def _receive(self, request: Request, upload: Upload, draft: Draft) -> None:
        most = self._desk.settings.max_file_bytes
        try:
            async for data in request.stream():
                pieces = upload.feed(data)
                if pieces:
                    await self._desk.blocking(draft.write, pieces)
                    if draft.size > most:
                        raise BodyTooLarge(f"A file has at most {most} bytes.", param="file")
        except ClientDisconnect:
            raise ClientGone from None

    async def list(self, request: Request) -> Response:
        """Newest first, unless asked otherwise."""
        order = request.query_params.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest("`order` is asc or desc.", param="order")
        limit, desk = _limit(request, 10_000, 10_000), self._desk
        wanted = Page(request.query_params.get("after"), limit + 1, order == "asc")
        purpose = request.query_params.get("purpose")
        found: list[File] = await desk.blocking(desk.store.files, _tenant(request), purpose, wanted)
        documents = [file_document(file) for file in found[:limit]]
        return _json(page(documents, has_more=len(found) > limit))

    async def retrieve(self, request: Request) -> Response:
        """One file's description."""
        return _json(file_document(await self._file(request)))

    async def delete(self, request: Request) -> Response:
        """Forget it, then remove its bytes."""
        desk, file_id = self._desk, request.path_params["file_id"]
        await desk.blocking(desk.store.remove_file, _tenant(request), file_id)
        await desk.blocking(desk.files.remove, file_id)
        return _json({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        """Its bytes, as they are read."""
        file = await self._file(request)
        handle = await self._desk.blocking(self._desk.files.open, file.id)

        async def pieces() -> AsyncIterator[bytes]:
            try:
                while piece := await self._desk.blocking(handle.read, _READ_BYTES):
                    yield piece
            finally:
                await self._desk.blocking(handle.close)

        return StreamingResponse(
            pieces(),
            media_type="application/octet-stream",
            headers={"content-length": str(file.size)},
        )

    async def _file(self, request: Request) -> File:
        file: File = await self._desk.blocking(
            self._desk.store.file, _tenant(request), request.path_params["file_id"]
        )
        return file


class _BatchRoutes:
    def __init__(self, batches: Batches) -> None:
        self._desk = batches

    async def create(self, request: Request) -> Response:
        """A new batch, to be validated soon."""
        desk = self._desk
        asked = _creation(await request.body())
        seconds = window_s(asked.completion_window)
        if seconds is None:
            message = "`completion_window` is a time such as `24h`, up to 7 days."
            raise InvalidRequest(message, param="completion_window")
        if asked.endpoint not in ENDPOINTS:
            message = f"`endpoint` is one of {', '.join(ENDPOINTS)}."
            raise InvalidRequest(message, param="endpoint")
        now = desk.wall()
        batch = Batch(
            id=f"batch_{secrets.token_hex(16)}",
            endpoint=asked.endpoint,
            input_file_id=asked.input_file_id,
            completion_window=asked.completion_window,
            metadata=asked.metadata,
            created_at=now,
            expires_at=now + seconds,
            tenant=_tenant(request),
        )
        await desk.blocking(desk.store.add_batch, batch)
        desk.wake()
        return _json(batch_document(batch))

    async def list(self, request: Request) -> Response:
        """Newest first."""
        limit, desk = _limit(request, 20, 100), self._desk
        wanted = Page(request.query_params.get("after"), limit + 1)
        found: list[Batch] = await desk.blocking(desk.store.batches, _tenant(request), wanted)
        documents = [batch_document(batch) for batch in found[:limit]]
        return _json(page(documents, has_more=len(found) > limit))

    async def retrieve(self, request: Request) -> Response:
        """How far it is."""
        desk = self._desk
        batch_id = request.path_params["batch_id"]
        batch = await desk.blocking(desk.store.batch, _tenant(request), batch_id)
        return _json(batch_document(batch))

    async def cancel(self, request: Request) -> Response:
        """Stop it; what has been answered by then is in its files."""
        desk = self._desk
        batch_id = request.path_params["batch_id"]
        batch = await desk.blocking(desk.store.cancel, _tenant(request), batch_id, desk.wall())
        desk.wake()
        return _json(batch_document(batch))


def _tenant(request: Request) -> str:
    """Whose request it is; the control app has asked for a key, if keys are asked for."""
    tenant: Tenant = request.scope[TENANT]
    return tenant.name


def _creation(body: bytes) -> _Creation:
    try:
        asked = msgspec.json.decode(body, type=_Creation)
    except msgspec.ValidationError as error:
        raise InvalidRequest(f"The batch cannot be read: {str(error)[:200]}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest("The request body is not valid JSON.") from None
    pairs = asked.metadata or {}
    if len(pairs) > _MOST_PAIRS or any(
        len(key) > _LONGEST_KEY or len(value) > _LONGEST_VALUE for key, value in pairs.items()
    ):
        raise InvalidRequest(
            f"`metadata` has at most {_MOST_PAIRS} pairs, keys of {_LONGEST_KEY} and values of "
            f"{_LONGEST_VALUE} characters.",
            param="metadata",
        )
    return asked


def _limit(request: Request, usual: int, most: int) -> int:
    text = request.query_params.get("limit", str(usual))
    if not (text.isascii() and text.isdigit() and 1 <= int(text[:9]) <= most):
        raise InvalidRequest(f"`limit` is from 1 to {most}.", param="limit")
    return int(text)


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
