"""A gateway that answers as a test tells it to, in threads: for clients that are not asyncio's."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import monotonic
from typing import Any

Reply = tuple[int, dict[str, str], Any]
"""Status, header fields, and a JSON document."""


@dataclass(frozen=True)
class Asked:
    """One POST: when it came, and what it was."""

    at: float
    path: str
    headers: dict[str, str]
    body: Any


Script = Callable[[Asked], Reply]


@dataclass
class ScriptedGateway:
    """What it was asked, in order, and the most that it was asked at once."""

    script: Script
    url: str = ""
    asked: list[Asked] = field(default_factory=list)
    most: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reply(self, path: str, headers: dict[str, str], body: bytes) -> Reply:
        """Called by each of its threads."""
        with self._lock:
            asked = Asked(monotonic(), path, headers, json.loads(body))
            self.asked.append(asked)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            return self.script(asked)
        finally:
            with self._lock:
                self._now -= 1


@contextmanager
def scripted_gateway(script: Script, port: int = 0) -> Iterator[ScriptedGateway]:
    """Listens on loopback inside the `with`, at a port that the system chooses if none is said."""
    gateway = ScriptedGateway(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            fields = {name.lower(): value for name, value in self.headers.items()}
            status, headers, document = gateway.reply(self.path, fields, body)
            said = json.dumps(document).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    gateway.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield gateway
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
