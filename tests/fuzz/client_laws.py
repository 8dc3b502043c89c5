"""Laws of everything that reads what clients send: any bytes at all give a value or a GatewayError.

Used by pytest, over a corpus and over Hypothesis's bytes, and by the atheris harness beside this
file. The lane is run on a transport in memory, in front of an echo instead of the road.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import Any

import uvicorn
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from gateway.accept.control import control_app
from gateway.accept.door import Door
from gateway.accept.exchange import Exchange
from gateway.accept.head import REQUEST_ID, read_head
from gateway.accept.lane import Lane
from gateway.errors import ClientError, GatewayError, InvalidRequest
from gateway.parse.multipart import parse_multipart
from gateway.parse.openai import parse_json
from gateway.request import GenerationRequest
from gateway.settings import AcceptSettings
from gateway.vocabulary import ANYBODY, ROUTES, ModelCard, ModelName, Tenant
from tests.builders import a_route

MAX_BODY = 4096
MAX_HEAD = 2048


def json_law(data: bytes) -> None:
    """A body is read or refused, whatever the route."""
    for route in (a_route("/v1/chat/completions"), a_route("/v1/embeddings")):
        try:
            found = parse_json(data, route, lambda _, prompt_bytes: prompt_bytes)
        except InvalidRequest:
            continue
        check_request(found, len(data))


def multipart_law(data: bytes) -> None:
    """A form is read or refused: its first line is the content type, the rest the body."""
    content_type, _, body = data.partition(b"\n")
    for kind in (content_type, b"multipart/form-data; boundary=b"):
        try:
            found = parse_multipart(body, kind, a_route("/v1/audio/transcriptions"))
        except InvalidRequest:
            continue
        check_request(found, len(body))


def check_request(found: GenerationRequest, size: int) -> None:
    """What every parsed request is."""
    assert found.model
    found.model.encode()
    assert isinstance(found.stream, bool)
    assert 0 <= found.prompt_bytes <= size
    assert found.max_tokens is None or found.max_tokens >= 0


def head_law(data: bytes) -> None:
    """A head is read, or read with a fault; what goes on holds one id and no framing."""
    version, *lines = data.split(b"\n")
    fields = [
        (name.strip().lower(), value.strip(b"\r "))
        for name, colon, value in (line.partition(b":") for line in lines)
        if colon
    ]
    for spoken in (version.decode("latin-1"), "1.1", "1.0"):
        head = read_head(fields, spoken, b"made")
        assert head.fault is None or isinstance(head.fault, ClientError)
        assert REQUEST_ID.fullmatch(head.request_id)
        names = [line.partition(b":")[0] for line in head.forwarded.split(b"\r\n")]
        assert names.count(b"x-request-id") == 1
        assert not {b"content-length", b"transfer-encoding", b"connection", b"te"} & set(names)


class Pipe(asyncio.Transport):
    """A transport in memory, as strict as a socket's: no write after the end."""

    def __init__(self, lane: Lane) -> None:
        super().__init__()
        self.written = bytearray()
        self.has_ended = False
        self.is_closed = False
        self.reads = True
        self._lane = lane

    def write(self, data: Any) -> None:
        """Raises RuntimeError where a socket's transport would."""
        if self.has_ended:
            raise RuntimeError("Cannot call write() after write_eof()")
        if not self.is_closed:
            self.written += data

    def can_write_eof(self) -> bool:
        """As TCP."""
        return True

    def write_eof(self) -> None:
        """Nothing more comes."""
        self.has_ended = True

    def close(self) -> None:
        """Tells the lane, later, as every loop does."""
        if not self.is_closed:
            self.is_closed = True
            asyncio.get_running_loop().call_soon(self._lane.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        """Has been closed from this side."""
        return self.is_closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Nothing is known."""
        return default

    def get_write_buffer_size(self) -> int:
        """Everything has been taken."""
        return 0

    def pause_reading(self) -> None:
        """Whoever feeds the lane may look at `reads`."""
        self.reads = False

    def resume_reading(self) -> None:
        """As before."""
        self.reads = True


async def no_metrics() -> CollectorRegistry:
    """Nothing is counted."""
    return CollectorRegistry()


class NoPanel:
    """What the control app reads: nothing is there."""

    is_ready = False

    def models(self) -> dict[ModelName, ModelCard]:
        """None."""
        return {}

    def serves(self, model: ModelName) -> bool:
        return False

    def tenant(self, fields: Mapping[bytes, bytes]) -> Tenant:
        """Anybody."""
        return ANYBODY

    def fleet_document(self) -> dict[str, Any]:
        """None."""
        return {}

    def route_document(self, path: str, body: bytes, tenant: Tenant) -> dict[str, Any]:
        """Nowhere."""
        return {"path": path, "bytes": len(body)}


class Fixture:
    """A door whose requests are answered with their own target and body."""

    def __init__(self, most_bytes: int = MAX_BODY) -> None:
        settings = AcceptSettings(
            max_body_bytes=most_bytes, max_upload_bytes=most_bytes, max_header_bytes=MAX_HEAD
        )
        self.now = 0.0
        self.received = 0
        self.door = Door(settings, self.live, lambda: self.now)
        self.config = uvicorn.Config(
            control_app(NoPanel(), no_metrics), lifespan="off", log_config=None
        )
        self.config.load()
        self.state = ServerState()

    async def live(self, exchange: Exchange) -> None:
        """Echo, or refuse."""
        self.received += 1
        try:
            body = exchange.target + b"\n" + exchange.body
            exchange.start(200, b"", len(body), chunked=False)
            exchange.write(body)
            exchange.finish()
        except GatewayError as error:
            exchange.refuse(error)

    def lane(self) -> tuple[Lane, Pipe]:
        """A connection."""
        loop = asyncio.get_running_loop()
        lane = Lane(self.door, self.config, self.state, {}, loop)
        pipe = Pipe(lane)
        lane.connection_made(pipe)
        return lane, pipe


async def settle(fixture: Fixture) -> None:
    """Let everything that can happen now happen."""
    for _ in range(8):
        await asyncio.sleep(0)
    while fixture.state.tasks:
        await asyncio.wait(list(fixture.state.tasks))


async def served(data: bytes, cut: int) -> tuple[bytes, bool, int, int]:
    """What a lane answers to bytes that come in reads of `cut`; whether it closed; the counts.

    All reads come before anything else can happen, so that only the cutting differs.
    """
    fixture = Fixture()
    lane, pipe = fixture.lane()
    for at in range(0, len(data), cut):
        lane.data_received(data[at : at + cut])
    await settle(fixture)
    for later_s in (1.0, 50.0, 200.0, 210.0):  # whatever is unfinished runs into its time
        fixture.now = fixture.door.now = later_s
        lane.check(later_s)
        await settle(fixture)
    written = bytes(pipe.written)
    assert pipe.is_closed, (lane, data)
    await settle(fixture)
    assert not fixture.door.lanes
    assert not fixture.state.connections
    return written, pipe.has_ended, fixture.received, fixture.door.malformed


OURS = re.compile(rb"req-[0-9a-f]{8}-[0-9a-f]+")
REPLY = re.compile(rb"HTTP/1\.1 \d\d\d [ -~]*\r\n(?:[a-z-]+: [ -~]*\r\n)*\r\n")


def check_replies(written: bytes) -> None:
    """What was written is whole responses, one after the other, and at most one refusal last."""
    at = 0
    while at < len(written):
        head = REPLY.match(written, at)
        assert head, written[at : at + 200]
        at = head.end()
        length = re.search(rb"content-length: (\d+)", head[0])
        at += int(length[1]) if length else 0
        if b"connection: close" in head[0]:
            assert at == len(written), "nothing follows the last response"
    assert at == len(written)


def lane_law(data: bytes) -> None:
    """Any bytes get whole replies, the same however they are cut; every connection ends."""

    async def law() -> None:
        async with asyncio.timeout(10):
            whole = await served(data, max(1, len(data)))
            cut = await served(data, 1)
        check_replies(whole[0])
        check_replies(cut[0])
        # What is too large is refused once it shows; of offers to upgrade, one a read is taken:
        # there, how bytes are cut may tell.
        if len(data) <= MAX_HEAD and data.lower().count(b"upgrade") <= 1:
            assert OURS.sub(b"", whole[0]) == OURS.sub(b"", cut[0]), data
            assert whole[1:] == cut[1:], data

    # What answers HEAD has no body, and so cannot be read without knowing what was asked.
    if b"HEAD " not in data:
        with asyncio.Runner() as runner:
            runner.run(law())


LAWS: dict[str, Callable[[bytes], None]] = {
    "json": json_law,
    "multipart": multipart_law,
    "head": head_law,
    "lane": lane_law,
}

ROUTE_PATHS = tuple(route.path.encode() for route in ROUTES)
