"""What runs inside the sandbox of `test_gvisor`: a simulated replica, a gateway, and one who asks.

Prints one line of JSON: the kernel that is seen, and what the gateway answered.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any

REPLICA, GATEWAY, MODEL = 9001, 8000, "tiny"
START_S = 150.0


def ask(path: str, body: dict[str, Any] | None = None) -> bytes:
    """Raises OSError."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://127.0.0.1:{GATEWAY}{path}", data)
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as response:
        read: bytes = response.read()
        return read


def until_ready(children: list[subprocess.Popen[bytes]]) -> None:
    """Raises TimeoutError."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert all(child.poll() is None for child in children)
        try:
            ask("/readyz")
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError


def main() -> None:
    """All of it."""
    sim = ["serving.sim.server", "--port", str(REPLICA), "--model", MODEL]
    gateway = ["gateway", "gateway", "--port", str(GATEWAY), "--access-log", "off"]
    gateway += ["--replica", f"http://127.0.0.1:{REPLICA}"]
    children = [subprocess.Popen([sys.executable, "-m", *each]) for each in (sim, gateway)]
    try:
        until_ready(children)
        asked = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        unary = json.loads(ask("/v1/chat/completions", {**asked, "max_tokens": 5}))
        stream = ask("/v1/chat/completions", {**asked, "max_tokens": 5, "stream": True})
        children[1].terminate()
        ended = children[1].wait(60)
    finally:
        for child in children:
            child.kill()
    print(
        json.dumps(
            {
                "kernel": platform.release(),
                "finish_reason": unary["choices"][0]["finish_reason"],
                "events": stream.decode().count("data: "),
                "ended": ended,
            }
        )
    )


if __name__ == "__main__":
    main()
