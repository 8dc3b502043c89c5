"""What clients must not send, on raw sockets: each gets its refusal, and nothing else changes.

While each case runs, another client is in the middle of a stream; it goes on and ends as it should.
No byte of a refused request reaches the replica.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gateway.vocabulary import Outcome
from tests.builders import a_chat, a_get, a_post
from tests.house import RunningHouse, Shared, shared_house
from tests.scripted import Held, Scripted, chunked

MAX_BODY = 8000
MAX_HEAD = 1500
CHAT = b"POST /v1/chat/completions HTTP/1.1"
HOST = b"Host: gateway\r\n"
BODY = a_chat()
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def raw(head: bytes, body: bytes = BODY, line: bytes = CHAT) -> bytes:
    """A request from a request line, header lines that end in CRLF, and a body."""
    return line + b"\r\n" + head + b"\r\n" + body


class Place:
    """The gateway, the replica behind it, and what it has been sent."""

    def __init__(self, shared: Shared, replica: Scripted) -> None:
        self.shared = shared
        self.running: RunningHouse = shared.running
        self.replica = replica


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    replica = Scripted()
    accept = {
        "max_body_bytes": MAX_BODY,
        "max_upload_bytes": MAX_BODY,
        "max_header_bytes": MAX_HEAD,
    }
    with shared_house({"accept": accept}, [replica], loop=request.param) as shared:
        yield Place(shared, replica)


@asynccontextmanager
async def bystander(place: Place, *, received: int) -> AsyncIterator[None]:
    """Another client streams meanwhile, unharmed; `received` is what the body adds to the sums."""
    accounts = place.running.house.accounts
    before, finished = accounts.received, place.running.outcomes.get(Outcome.FINISHED, 0)
    place.replica.answer = held = Held()
    place.replica.received.clear()
    async with place.running.wire() as wire:
        await wire.send(a_post(a_chat("held", stream=True)))
        assert (await wire.head()).status == 200
        stream = wire.chunks()
        assert await anext(stream) == Held.HALF
        yield
        held.released.set()
        assert b"".join([piece async for piece in stream]) == Held.REST
        await wire.send(a_get())
        assert (await wire.reply()).status == 200
    assert len(place.replica.received) == 1, "only the other client's request went upstream"
    assert accounts.received == before + 1 + received
    assert place.running.outcomes[Outcome.FINISHED] == finished + 1


MALFORMED: dict[str, bytes] = {
    "negative length": raw(HOST + b"Content-Length: -5\r\n"),
    "plus length": raw(HOST + b"Content-Length: +5\r\n"),
    "hex length": raw(HOST + b"Content-Length: 0x10\r\n"),
    "underscored length": raw(HOST + b"Content-Length: 1_0\r\n"),
    "list of lengths": raw(HOST + b"Content-Length: 5, 5\r\n"),
    "empty length": raw(HOST + b"Content-Length:\r\n"),
    "two equal lengths": raw(HOST + LENGTH + LENGTH),
    "two lengths": raw(HOST + LENGTH + b"Content-Length: 3\r\n"),
    "length beyond 64 bits": raw(HOST + b"Content-Length: 99999999999999999999999\r\n"),
    "length in two words": raw(HOST + b"Content-Length: 1 0\r\n"),
    "length, then chunked": raw(HOST + LENGTH + CHUNKED, chunked(BODY)),
    "chunked, then length": raw(HOST + CHUNKED + LENGTH, chunked(BODY)),
    "chunked twice": raw(HOST + CHUNKED + CHUNKED, chunked(BODY)),
    "chunked, then identity": raw(HOST + CHUNKED + b"Transfer-Encoding: identity\r\n"),
    "chunked not last": raw(HOST + b"Transfer-Encoding: chunked, gzip\r\n", chunked(BODY)),
    "vertical tab before chunked": raw(HOST + b"Transfer-Encoding: \x0bchunked\r\n"),
    "bare LF everywhere": raw(HOST + LENGTH).replace(b"\r\n", b"\n"),
    "bare LF after a field": raw(b"Host: gateway\n" + LENGTH),
    "bare LF at the end of the head": CHAT + b"\r\n" + HOST + LENGTH + b"\n" + BODY,
    "bare CR in a value": raw(HOST + b"X: a\rb\r\n" + LENGTH),
    "bare CR after the request line": CHAT + b"\r" + HOST + LENGTH + b"\r\n" + BODY,
    "folded field": raw(HOST + b"X: a\r\n b\r\n" + LENGTH),
    "folded coding": raw(HOST + b"Transfer-Encoding:\r\n chunked\r\n", chunked(BODY)),
    "space before the colon": raw(HOST + b"X : a\r\n" + LENGTH),
    "space before the coding's colon": raw(HOST + b"Transfer-Encoding : chunked\r\n" + LENGTH),
    "space before the first field": raw(b" " + HOST + LENGTH),
    "NUL in a value": raw(HOST + b"X: a\0b\r\n" + LENGTH),
    "NUL in a name": raw(HOST + b"X\0: a\r\n" + LENGTH),
    "NUL in the target": raw(HOST + LENGTH, line=b"POST /v1/chat/completions\0 HTTP/1.1"),
    "control character in a value": raw(HOST + b"X: a\x01b\r\n" + LENGTH),
    "field without a colon": raw(HOST + b"foo\r\n" + LENGTH),
    "field without a name": raw(HOST + b": foo\r\n" + LENGTH),
    "two hosts": raw(HOST + HOST + LENGTH),
    "no host": raw(LENGTH),
    "HTTP/1.2": raw(HOST + LENGTH, line=b"POST /v1/chat/completions HTTP/1.2"),
    "HTTP/2.0": raw(HOST + LENGTH, line=b"POST /v1/chat/completions HTTP/2.0"),
    "HTTP/0.9 with a head": raw(HOST + LENGTH, line=b"POST /v1/chat/completions HTTP/0.9"),
    "version without a dot": raw(HOST + LENGTH, line=b"POST /v1/chat/completions HTTP/11"),
    "tab in the request line": raw(HOST + LENGTH, line=b"POST\t/v1/chat/completions HTTP/1.1"),
    "unknown method": raw(HOST, b"", line=b"FOO / HTTP/1.1"),
    "method in lower case": raw(HOST, b"", line=b"post /v1/chat/completions HTTP/1.1"),
    "CONNECT": raw(HOST, b"", line=b"CONNECT example.com:443 HTTP/1.1"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0",
    "a TLS hello": b"\x16\x03\x01\0\xc8\x01\0\0\xc4\x03\x03" + bytes(64),
    "something else altogether": b"SSH-2.0-OpenSSH_9.6\r\n",
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_what_is_not_http_is_refused_and_its_connection_closed(place: Place, data: bytes) -> None:
    async def law() -> None:
        malformed = place.running.house.malformed
        async with bystander(place, received=0), place.running.wire() as wire:
            await wire.send(data)
            answer = await wire.reply()
            assert (answer.status, answer.code) == (400, "malformed_http")
            assert answer.header("connection") == "close"
            assert await wire.rest() == b""
        assert place.running.house.malformed == malformed + 1

    place.shared.run(law())


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_byte_by_byte_it_is_refused_as_well(place: Place, data: bytes) -> None:
    async def law() -> None:
        async with place.running.wire() as wire:
            for byte in data:
                await wire.send(bytes([byte]))
            answer = await wire.reply()
            assert (answer.status, answer.code) == (400, "malformed_http")
            assert await wire.rest() == b""

    place.shared.run(law())


HEADS: dict[str, tuple[bytes, int, str]] = {
    "gzip under chunked": (
        raw(HOST + b"Transfer-Encoding: gzip, chunked\r\n", chunked(BODY)),
        501,
        "unsupported_transfer_encoding",
    ),
    "an unknown coding": (
        raw(HOST + b"Transfer-Encoding: xchunked\r\n", chunked(BODY)),
        501,
        "unsupported_transfer_encoding",
    ),
    "chunked in HTTP/1.0": (
        raw(HOST + CHUNKED, chunked(BODY), line=b"POST /v1/chat/completions HTTP/1.0"),
        501,
        "unsupported_transfer_encoding",
    ),
    "an unknown expectation": (
        raw(HOST + LENGTH + b"Expect: 200-maybe\r\n"),
        417,
        "expectation_failed",
    ),
    "one huge field": (
        raw(HOST + b"X: " + b"a" * MAX_HEAD + b"\r\n" + LENGTH),
        431,
        "headers_too_large",
    ),
    "many small fields": (
        raw(HOST + b"a: b\r\n" * 100 + LENGTH),
        431,
        "headers_too_large",
    ),
    "a huge target": (
        raw(HOST + LENGTH, line=b"POST /v1/chat/completions?" + b"a" * MAX_HEAD + b" HTTP/1.1"),
        431,
        "headers_too_large",
    ),
    "a huge field that does not end": (
        CHAT + b"\r\n" + HOST + b"X: " + b"a" * 3 * MAX_HEAD,
        431,
        "headers_too_large",
    ),
    "a huge target that does not end": (b"POST /" + b"a" * 3 * MAX_HEAD, 431, "headers_too_large"),
    "small fields that do not end": (
        CHAT + b"\r\n" + HOST + b"a: b\r\n" * 300,
        431,
        "headers_too_large",
    ),
}


@pytest.mark.parametrize(("data", "status", "code"), HEADS.values(), ids=HEADS)
@pytest.mark.parametrize("step", [1, 700, 100_000])
def test_a_head_that_cannot_be_served_is_refused_before_its_body_is_read(
    place: Place, data: bytes, status: int, code: str, step: int
) -> None:
    async def law() -> None:
        async with bystander(place, received=0), place.running.wire() as wire:
            for at in range(0, len(data), step):
                await wire.send(data[at : at + step])
            answer = await wire.reply()
            assert (answer.status, answer.code) == (status, code)
            assert await wire.rest() == b""

    place.shared.run(law())


def test_a_head_just_below_the_limit_is_served_however_it_is_cut(place: Place) -> None:
    async def law() -> None:
        place.replica.answer = Held()
        head = raw(HOST + b"X: " + b"a" * (MAX_HEAD - 300) + b"\r\n" + LENGTH)
        for step in (1, 400, 100_000):
            async with place.running.wire() as wire:
                for at in range(0, len(head), step):
                    await wire.send(head[at : at + step])
                assert (await wire.reply()).status == 200

    place.shared.run(law())


LARGE: dict[str, bytes] = {
    "declared": raw(HOST + b"Content-Length: %d\r\n" % (MAX_BODY + 1), b""),
    "declared, and sent": raw(
        HOST + b"Content-Length: %d\r\n" % (MAX_BODY + 1), b"x" * (MAX_BODY + 1)
    ),
    "declared, to be continued": raw(
        HOST + b"Content-Length: 1000000000\r\nExpect: 100-continue\r\n", b""
    ),
    "chunked": raw(HOST + CHUNKED, chunked(b"x" * MAX_BODY, b"y", end=False)),
    "a form": raw(
        HOST + b"Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000000000\r\n",
        b"",
        line=b"POST /v1/audio/transcriptions HTTP/1.1",
    ),
}


@pytest.mark.parametrize("data", LARGE.values(), ids=LARGE)
def test_a_body_over_the_limit_is_refused_as_soon_as_it_shows(place: Place, data: bytes) -> None:
    async def law() -> None:
        async with bystander(place, received=1), place.running.wire() as wire:
            await wire.send(data)
            answer = await wire.reply()
            assert (answer.status, answer.code) == (413, "body_too_large")
            assert answer.header("connection") == "close"
            assert await wire.rest() == b""

    place.shared.run(law())


def test_a_body_of_exactly_the_limit_is_served(place: Place) -> None:
    async def law() -> None:
        place.replica.answer = Held()
        empty = len(a_chat(""))
        body = a_chat("x" * (MAX_BODY - empty))
        assert len(body) == MAX_BODY
        for data in (a_post(body), raw(HOST + CHUNKED, chunked(body[:999], body[999:]))):
            assert (await place.running.ask(data)).status == 200

    place.shared.run(law())


def test_a_client_that_goes_on_sending_after_its_refusal_still_gets_to_read_it(
    place: Place,
) -> None:
    async def law() -> None:
        loop = asyncio.get_running_loop()
        with socket.socket() as peer:  # which reads nothing until it has sent everything
            peer.setblocking(False)
            await loop.sock_connect(peer, ("127.0.0.1", place.running.port))
            await loop.sock_sendall(peer, raw(HOST + b"Content-Length: 1000000\r\n", b""))
            for _ in range(20):
                await loop.sock_sendall(peer, b"x" * 20_000)
                await asyncio.sleep(0.005)
            assert (await loop.sock_recv(peer, 4096)).startswith(b"HTTP/1.1 413 ")

    place.shared.run(law())


BODIES: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", None),
    "malformed": (b'{"model": "m"', None),
    "two documents": (b'{"model": "m"}{}', None),
    "an array": (b'["model", "m"]', None),
    "a string": (b'"model"', None),
    "null": (b"null", None),
    "no model": (b'{"messages": []}', "model"),
    "model null": (b'{"model": null}', "model"),
    "model a number": (b'{"model": 1}', "model"),
    "model a list": (b'{"model": ["m"]}', "model"),
    "model empty": (b'{"model": ""}', "model"),
    "model not UTF-8": (b'{"model": "\xff"}', "model"),
    "model half a surrogate pair": (b'{"model": "\\ud800"}', None),
    "stream a string": (b'{"model": "m", "stream": "true"}', "stream"),
    "stream a number": (b'{"model": "m", "stream": 1}', "stream"),
    "max_tokens a string": (b'{"model": "m", "max_tokens": "5"}', "max_tokens"),
    "max_tokens a fraction": (b'{"model": "m", "max_tokens": 1.5}', "max_tokens"),
    "max_tokens negative": (b'{"model": "m", "max_tokens": -1}', "max_tokens"),
    "max_completion_tokens a list": (
        b'{"model": "m", "max_completion_tokens": []}',
        "max_completion_tokens",
    ),
    "NaN": (b'{"model": "m", "temperature": NaN}', None),
    "Infinity": (b'{"model": "m", "temperature": Infinity}', None),
    "-Infinity": (b'{"model": "m", "temperature": -Infinity}', None),
    "single quotes": (b"{'model': 'm'}", None),
    "a comment": (b'{"model": "m" /* or n */}', None),
    "a trailing comma": (b'{"model": "m",}', None),
    "a byte order mark": (b'\xef\xbb\xbf{"model": "m"}', None),
    "UTF-16": ('{"model": "m"}'.encode("utf-16-le"), None),
    "two models": (b'{"model": "m", "model": "n"}', None),
    "two equal models": (b'{"model":"m","model":"m"}', None),
    "two models, one escaped": (b'{"model":"m","mod\\u0065l":"n"}', None),
    "two models, spread out": (b'{\n\t"model"\n:\n"m"\n,\n"model" : "n" }', None),
    "two of something else": (b'{"model":"m","seed":1,"seed":2}', None),
    "two models in the room of spaces": (
        b'{"model":"xx","a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"model":"m"}',
        None,
    ),
    "nested too deeply": (b'{"model": "m", "messages": ' + b"[" * 3000 + b"]" * 3000 + b"}", None),
}


@pytest.mark.parametrize(("body", "param"), BODIES.values(), ids=BODIES)
def test_a_body_that_cannot_be_read_is_refused_and_the_connection_lives_on(
    place: Place, body: bytes, param: str | None
) -> None:
    async def law() -> None:
        place.running.house.accounts.endings.clear()
        place.running.house.accounts.received = 0
        async with bystander(place, received=1), place.running.wire() as wire:
            await wire.send(a_post(body))
            answer = await wire.reply()
            assert (answer.status, answer.code) == (400, "invalid_request")
            assert answer.json()["error"]["param"] == param
            await wire.send(a_get())
            assert (await wire.reply()).status == 200
        assert place.running.reasons == {"invalid_request": 1}

    place.shared.run(law())


PATHS: dict[str, tuple[bytes, int, str, str | None]] = {
    "an unknown path": (a_post(path="/v1/nothing"), 404, "unknown_path", None),
    "a slash too many": (a_post(path="/v1/chat/completions/"), 404, "unknown_path", None),
    "two slashes in front": (a_post(path="//v1/chat/completions"), 404, "unknown_path", None),
    "an encoded path": (a_post(path="/v1/chat/%63ompletions"), 404, "unknown_path", None),
    "a path with dots": (a_post(path="/x/../v1/chat/completions"), 404, "unknown_path", None),
    "a fragment": (a_post(path="/v1/chat/completions#x"), 404, "unknown_path", None),
    "the path in capitals": (a_post(path="/V1/CHAT/COMPLETIONS"), 404, "unknown_path", None),
    "an absolute target of nothing": (a_post(path="http://gateway"), 404, "unknown_path", None),
    "GET": (a_get("/v1/chat/completions"), 405, "method_not_allowed", "POST"),
    "PUT with a body": (
        a_post().replace(b"POST", b"PUT", 1),
        405,
        "method_not_allowed",
        "POST",
    ),
    "DELETE": (
        a_get("/v1/embeddings").replace(b"GET", b"DELETE"),
        405,
        "method_not_allowed",
        "POST",
    ),
    "OPTIONS": (
        a_get("/v1/chat/completions").replace(b"GET", b"OPTIONS"),
        405,
        "method_not_allowed",
        "POST",
    ),
    "OPTIONS *": (a_get("*").replace(b"GET", b"OPTIONS"), 404, "unknown_path", None),
    "POST to a GET path": (a_post(path="/healthz"), 405, "method_not_allowed", "GET, HEAD"),
}


@pytest.mark.parametrize(("data", "status", "code", "allow"), PATHS.values(), ids=PATHS)
def test_a_path_or_method_that_does_not_exist_is_refused_and_the_connection_lives_on(
    place: Place, data: bytes, status: int, code: str, allow: str | None
) -> None:
    async def law() -> None:
        async with bystander(place, received=0), place.running.wire() as wire:
            await wire.send(data)
            answer = await wire.reply()
            assert (answer.status, answer.code) == (status, code)
            found = answer.header("allow")
            assert (found and sorted(found.split(", "))) == (allow and sorted(allow.split(", ")))
            await wire.send(a_get())
            assert (await wire.reply()).status == 200

    place.shared.run(law())


CHUNKS: dict[str, bytes] = {
    "a negative size": b"-5\r\nabcde\r\n0\r\n\r\n",
    "a hex prefix": b"0x5\r\nabcde\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"ffffffffffffffffff\r\nabcde\r\n0\r\n\r\n",
    "bare LF": b"5\nabcde\n0\n\n",
    "more than announced": b"5\r\nabcdeX\r\n0\r\n\r\n",
    "a bare LF in an extension": b"5;a\nb\r\nabcde\r\n0\r\n\r\n",
    "a space after the size": b"5 \r\nabcde\r\n0\r\n\r\n",
    "no size": b"\r\nabcde\r\n0\r\n\r\n",
    "a bad trailer": b"5\r\nabcde\r\n0\r\nX : y\r\n\r\n",
}


@pytest.mark.parametrize("framed", CHUNKS.values(), ids=CHUNKS)
def test_a_body_framed_badly_is_refused_and_counted_as_a_request(
    place: Place, framed: bytes
) -> None:
    async def law() -> None:
        malformed = place.running.house.malformed
        async with bystander(place, received=1), place.running.wire() as wire:
            await wire.send(raw(HOST + CHUNKED, framed))
            answer = await wire.reply()
            assert (answer.status, answer.code) == (400, "malformed_http")
            assert await wire.rest() == b""
        assert place.running.house.malformed == malformed

    place.shared.run(law())


def test_a_body_of_endless_trailers_or_chunk_extensions_is_refused(place: Place) -> None:
    async def law() -> None:
        endless = [
            b"0\r\nX: " + b"a" * 900_000,
            b"0\r\n" + b"X: y\r\n" * 150_000,
            b"5;" + b"a" * 900_000,
        ]
        for framed in endless:
            async with bystander(place, received=1), place.running.wire() as wire:
                await wire.send(raw(HOST + CHUNKED, b"1\r\n{\r\n"))
                await wire.send(framed)
                answer = await wire.reply()
                assert (answer.status, answer.code) == (431, "headers_too_large")

    place.shared.run(law())


def test_a_body_for_the_app_that_breaks_off_is_answered_once_and_the_connection_closed(
    place: Place,
) -> None:
    async def law() -> None:
        line = b"PUT /v1/models HTTP/1.1"
        for rest in (b"oops\r\n", chunked(b"x" * (MAX_BODY + 1))):
            async with bystander(place, received=0), place.running.wire() as wire:
                await wire.send(raw(HOST + CHUNKED, b"1\r\n{\r\n", line))
                assert (await wire.reply()).status == 405
                await wire.send(rest)
                assert await wire.rest() == b"", "there is no second answer"

    place.shared.run(law())


@pytest.mark.parametrize(
    ("path", "is_wrapped"), [("/v1/messages", True), ("/v1/chat/completions", False)]
)
def test_a_refusal_is_in_the_dialect_of_its_route(
    place: Place, path: str, is_wrapped: bool
) -> None:
    async def law() -> None:
        document = (await place.running.ask(a_post(b"{}", path=path))).json()
        assert document["error"]["code"] == "invalid_request"
        assert (document.get("type") == "error") == is_wrapped

    place.shared.run(law())


def test_an_unknown_model_is_told_nothing_of_what_there_is(place: Place) -> None:
    async def law() -> None:
        answer = await place.running.ask(a_post(a_chat(model="nope")))
        assert (answer.status, answer.code) == (404, "model_not_found")
        assert answer.json()["error"]["param"] == "model"
        assert str(place.replica.port).encode() not in answer.body

    place.shared.run(law())
