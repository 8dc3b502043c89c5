"""The streaming client and the driver over loopback, before servers that behave and that do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

import gevent
import pytest
from gevent import socket
from gevent.server import StreamServer

from loadtest.arrivals import Poisson
from loadtest.drive import Driver
from loadtest.samples import Marks, Sample
from loadtest.scenario import Plan, Scenario
from loadtest.servers import Servers
from loadtest.stream import Client, Endpoint

CHAT = "/v1/chat/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
END = b"0\r\n\r\n"

Serve = Callable[[socket.socket], None]


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@contextmanager
def served(serve: Serve) -> Iterator[Endpoint]:
    """A server that hands each connection to `serve`, and closes it when that is done."""
    server = StreamServer(("127.0.0.1", 0), lambda each, _: serve(each))
    server.start()
    try:
        yield Endpoint.of(f"http://127.0.0.1:{server.server_port}")
    finally:
        server.stop(timeout=1)


def asked(endpoint: Endpoint, timeout_s: float = 5.0) -> str | None:
    client = Client(endpoint, timeout_s)
    reply = client.post(CHAT, {}, Marks(perf_counter()))
    client.close()
    return reply.error


def after_request(answer: bytes) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(answer)

    return serve


def black_hole(connection: socket.socket) -> None:
    while connection.recv(65536):
        pass


def test_marks_are_when_bytes_came() -> None:
    def serve(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(HEAD + chunk(EVENT[:20]))
        gevent.sleep(0.1)
        connection.sendall(chunk(EVENT[20:]))
        gevent.sleep(0.2)
        connection.sendall(chunk(EVENT + EVENT) + END)

    with served(serve) as endpoint:
        client, marks = Client(endpoint), Marks(perf_counter())
        reply = client.post(CHAT, {}, marks)
        client.close()
    assert reply.error is None
    assert reply.text == "aaa"
    first, second, third = (at_s - marks.intended_s for at_s in marks.outputs_s)
    assert first >= 0.1
    assert second - first >= 0.19
    assert third == second


@pytest.mark.parametrize(
    ("serve", "error"),
    [
        (after_request(HEAD + chunk(EVENT) + END), None),
        (after_request(HEAD + chunk(EVENT)), "truncated"),
        (after_request(b"SSH-2.0-OpenSSH\r\n"), "garbage"),
        (after_request(b"HTTP/1.1 503 X\r\ncontent-length: 0\r\n\r\n"), "status_503"),
        (after_request(b""), "connect"),
        (black_hole, "timeout"),
    ],
)
def test_how_a_request_went_wrong_is_told(serve: Serve, error: str | None) -> None:
    with served(serve) as endpoint:
        assert asked(endpoint, timeout_s=0.3) == error


def test_nobody_there() -> None:
    with served(black_hole) as endpoint:
        pass
    assert asked(endpoint) == "connect"


def test_a_kept_connection_that_was_closed_meanwhile_costs_nothing_but_time() -> None:
    with served(after_request(HEAD + chunk(EVENT) + END)) as endpoint:
        client = Client(endpoint)
        for _ in range(3):
            assert client.post(CHAT, {}, Marks(perf_counter())).error is None
            gevent.sleep(0.01)  # it is closed now, and still on the client's stack
        assert client.opened == 3
        client.close()


def test_connections_are_used_again() -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(HEAD + chunk(EVENT) + END)

    with served(serve) as endpoint:
        client = Client(endpoint)
        for _ in range(3):
            assert client.post(CHAT, {}, Marks(perf_counter())).error is None
        assert client.opened == 1
        client.close()


def test_what_has_no_answer_when_patience_ends_is_a_sample_too() -> None:
    scenario = Scenario(
        question="?", arrivals=Poisson(20.0), duration_s=0.5, warm_up_s=0, patience_s=0.3
    )
    samples: list[Sample] = []
    with served(black_hole) as endpoint:
        client = Client(endpoint)
        driver = Driver(Plan(scenario), client, "m", samples.append)
        began_s = perf_counter()
        driver.run()
        assert perf_counter() - began_s < 20
        client.close()
    assert len(samples) == len(list(Plan(scenario).instants()))
    assert {each.error for each in samples} == {"unfinished"}
    assert driver.open_requests == 0


def test_an_open_loop_waits_for_nobody() -> None:
    """Replies take far longer than the gaps: each request leaves at its instant nevertheless."""

    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            gevent.sleep(0.4)
            connection.sendall(HEAD + chunk(EVENT) + END)

    scenario = Scenario(question="?", arrivals=Poisson(50.0), duration_s=1.0, warm_up_s=0)
    samples: list[Sample] = []
    with served(serve) as endpoint:
        client = Client(endpoint)
        Driver(Plan(scenario), client, "m", samples.append).run()
        client.close()
    instants = list(Plan(scenario).instants())
    assert sorted(each.intended_s for each in samples) == pytest.approx(instants)
    assert sorted(each.lag_s for each in samples)[len(samples) // 2] < 0.3
    assert all(each.ttft_s is not None and each.ttft_s > 0.39 for each in samples)


def test_shares_of_a_run_are_all_of_it_and_none_twice() -> None:
    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(HEAD + chunk(EVENT) + END)

    scenario = Scenario(question="?", arrivals=Poisson(40.0), duration_s=0.5, warm_up_s=0)
    samples: list[Sample] = []
    with served(serve) as endpoint:
        client = Client(endpoint)
        for share in range(3):
            Driver(Plan(scenario), client, "m", samples.append).run(share, 3)
        client.close()
    found = sorted(each.intended_s for each in samples)
    assert found == pytest.approx(list(Plan(scenario).instants()))


def test_servers_that_stop_answering_do_not_hold_up_the_end() -> None:
    page = b"vllm:num_requests_running 1\n"
    answers = [b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(page), page)] * 2

    def serve(connection: socket.socket) -> None:
        while connection.recv(65536):
            if not answers:
                gevent.sleep(30)
            connection.sendall(answers.pop())

    with served(serve) as endpoint:
        servers = Servers(endpoint)
        servers.start()
        gevent.sleep(0.2)  # its third reading hangs
        began_s = perf_counter()
        servers.stop()
        assert perf_counter() - began_s < 10
    (replica,) = servers.replicas()
    assert replica.requests == 0
