"""What of a head goes on, in both directions, and what stays (RFC 9110, section 7.6.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from gateway.relay.relay import LONG_BYTES
from tests.builders import a_chat, a_get, a_post
from tests.house import Shared, shared_house
from tests.scripted import STREAM_HEAD, Scripted, a_reply, chunked

MADE = re.compile(r"req-[0-9a-f]{8}-[0-9a-f]+")
Headers = list[tuple[str, str]]


class Place:
    """The gateway and the replica behind it."""

    def __init__(self, shared: Shared, replica: Scripted) -> None:
        self.shared = shared
        self.running = shared.running
        self.replica = replica


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    replica = Scripted()
    with shared_house({}, [replica]) as shared:
        yield Place(shared, replica)


async def sent_upstream(place: Place, headers: Headers) -> dict[str, list[str]]:
    """Ask with these fields; the fields that reached the replica, by name."""
    place.replica.received.clear()
    place.replica.answer = a_reply()
    assert (await place.running.ask(a_post(headers=headers))).status == 200
    (received,) = place.replica.received
    names = [line.partition(":")[0] for line in received.lines[1:]]
    assert names == [name.lower() for name in names]
    return {name: received.all(name) for name in names}


def test_the_body_goes_on_byte_for_byte_with_a_length_and_the_replicas_own_host(
    place: Place,
) -> None:
    async def law() -> None:
        body = b' {"model" : "m",\n"unheard-of": {"a":[1.0e+2,"\\u00e9\xc3\xa9"]} }\n'
        place.replica.received.clear()
        place.replica.answer = a_reply()
        assert (await place.running.ask(a_post(body))).status == 200
        (received,) = place.replica.received
        assert received.body == body
        assert received.all("content-length") == [str(len(body))]
        assert received.all("host") == [f"127.0.0.1:{place.replica.port}"]
        assert received.lines[0] == "POST /v1/chat/completions HTTP/1.1"

    place.shared.run(law())


@pytest.mark.parametrize("size", [LONG_BYTES - 1, LONG_BYTES, LONG_BYTES + 1, 3_000_000])
def test_a_body_of_any_length_goes_on_whole(place: Place, size: int) -> None:
    async def law() -> None:
        body = a_chat(("abcdefg" * size)[: size - len(a_chat(""))])
        assert len(body) == size
        place.replica.received.clear()
        place.replica.answer = a_reply()
        for _ in range(2):
            assert (await place.running.ask(a_post(body))).status == 200
        assert [each.body for each in place.replica.received] == [body, body]

    place.shared.run(law())


def test_fields_for_the_replica_go_on_as_they_came(place: Place) -> None:
    async def law() -> None:
        fields = [
            ("Authorization", "Bearer sk-1 2"),
            ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
            ("tracestate", "a=b,c=d"),
            ("OpenAI-Organization", "o"),
            ("X-Twice", "one"),
            ("X-Twice", "two"),
            ("X-Latin", "caf\xe9"),
            ("X-Empty", ""),
            ("Accept", "text/event-stream"),
            ("User-Agent", "tests/1"),
        ]
        found = await sent_upstream(place, fields)
        assert {name.lower() for name, _ in fields} <= set(found)
        assert found["authorization"] == ["Bearer sk-1 2"]
        assert found["x-twice"] == ["one", "two"]
        assert found["x-latin"] == ["caf\xe9"]
        assert found["x-empty"] == [""]
        assert found["content-type"] == ["application/json"]

    place.shared.run(law())


def test_fields_for_the_next_hop_only_do_not_go_on(place: Place) -> None:
    async def law() -> None:
        fields = [
            ("Connection", "keep-alive, X-Mine, x-other , Authorization"),
            ("X-Mine", "secret"),
            ("X-OTHER", "secret"),
            ("Authorization", "Bearer secret"),
            ("Keep-Alive", "timeout=5"),
            ("Proxy-Authorization", "Basic secret"),
            ("Proxy-Connection", "keep-alive"),
            ("TE", "trailers"),
            ("Trailer", "X-T"),
            ("Accept-Encoding", "gzip, br"),
            ("X-Kept", "yes"),
        ]
        found = await sent_upstream(place, fields)
        assert set(found) == {"host", "content-type", "content-length", "x-request-id", "x-kept"}

    place.shared.run(law())


def test_what_frames_the_body_cannot_be_named_away(place: Place) -> None:
    async def law() -> None:
        named = "close, content-length, content-type, host, x-request-id, transfer-encoding"
        found = await sent_upstream(place, [("Connection", named)])
        assert found["content-length"] == [str(len(a_chat()))]
        assert found["content-type"] == ["application/json"]
        assert len(found["x-request-id"]) == len(found["host"]) == 1

    place.shared.run(law())


@pytest.mark.parametrize("given", ["abc-123", "!" * 128, "a,b;c=d/{}~"])
def test_a_request_id_that_is_good_is_passed_on_and_returned(place: Place, given: str) -> None:
    async def law() -> None:
        headers = [("X-Request-ID", given)]
        assert (await sent_upstream(place, headers))["x-request-id"] == [given]
        place.replica.answer = a_reply(headers=("X-Request-Id: the replica's own",))
        for body in (a_chat(), b"{}", a_chat(model="nope")):
            answer = await place.running.ask(a_post(body, headers=headers))
            assert answer.header("x-request-id") == given

    place.shared.run(law())


@pytest.mark.parametrize(
    "given", ["", "x" * 129, "x" * 20_000, "two words", "caf\xe9", "a\tb", None], ids=repr
)
def test_a_request_id_that_is_none_is_replaced_by_one_of_ours(
    place: Place, given: str | None
) -> None:
    async def law() -> None:
        headers = [] if given is None else [("x-request-id", given)]
        (upstream,) = (await sent_upstream(place, headers))["x-request-id"]
        assert MADE.fullmatch(upstream)
        seen = {upstream}
        for body in (a_chat(), a_chat(stream=True), b"{}"):
            answer = await place.running.ask(a_post(body, headers=headers))
            seen.add(answer.header("x-request-id") or "")
        assert len(seen) == 4
        assert all(MADE.fullmatch(each) for each in seen)

    place.shared.run(law())


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(
            a_reply(
                headers=(
                    "Connection: keep-alive, X-Hop",
                    "X-Hop: secret",
                    "Keep-Alive: timeout=5",
                    "Proxy-Authenticate: Basic",
                    "Proxy-Connection: x",
                    "Upgrade: h2c",
                    "Trailer: X-T",
                    "X-Kept: yes",
                    "Set-Cookie: a=b",
                    "Set-Cookie: c=d",
                    "content-type: application/json",
                )
            ),
            id="unary",
        ),
        pytest.param(
            STREAM_HEAD.replace(
                b"\r\n\r\n",
                b"\r\nConnection: X-Hop\r\nX-Hop: secret\r\nKeep-Alive: timeout=5\r\nX-Kept: yes"
                b"\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\r\n",
            )
            + chunked(b"data: 1\n\n"),
            id="streamed",
        ),
    ],
)
def test_the_replicas_own_hop_stays_between_it_and_us(place: Place, answer: bytes) -> None:
    async def law() -> None:
        place.replica.answer = answer
        found = await place.running.ask(a_post())
        assert {name for name, _ in found.headers} <= {
            "x-kept",
            "set-cookie",
            "content-type",
            "content-length",
            "transfer-encoding",
            "x-request-id",
        }
        assert [value for name, value in found.headers if name == "set-cookie"] == ["a=b", "c=d"]
        assert found.header("x-kept") == "yes"

    place.shared.run(law())


@pytest.mark.parametrize("status", [200, 400, 401, 404, 422, 429, 500])
def test_a_replicas_own_answer_goes_back_as_it_came(place: Place, status: int) -> None:
    async def law() -> None:
        place.replica.answer = a_reply(b'{"own": 1}', status=status, headers=("Retry-After: 7",))
        async with place.running.wire() as wire:
            await wire.send(a_post() + a_get())
            answer = await wire.reply()
            assert (answer.status, answer.body) == (status, b'{"own": 1}')
            assert answer.header("retry-after") == "7"
            assert (await wire.reply()).status == 200

    place.shared.run(law())
