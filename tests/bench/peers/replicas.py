"""`python -m tests.bench.peers.replicas --port P ...`: simulated replicas, all in one process.

They share a core and an event loop, each with its own port, engine, cache and event socket. Events
have the empty topic (vLLM's default, and the only one that vllm-router hears) and the render routes
are on (vLLM's --enable-scale-out), which vllm-router's cache-aware policies ask for tokens.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import uvloop

from serving.sim.server import KvEventSettings, SimSettings, running_sim

MODEL: Final = "sim"
PROFILE: Final = Path(__file__).with_name("profile.json")
_KEEP_ALIVE_S: Final = 120.0  # longer than a run: nobody's connections are closed under its hands


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.peers.replicas")
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--profile", default=str(PROFILE))
    args = parser.parse_args(arguments)
    uvloop.run(_serve(args.port, args.profile))
    return 0


async def _serve(ports: Sequence[int], profile: str) -> None:
    async with AsyncExitStack() as stack:
        for port in ports:
            settings = SimSettings(
                port=port,
                models=(MODEL,),
                profile=profile,
                scale_out=True,
                keep_alive_s=_KEEP_ALIVE_S,
                kv_events=KvEventSettings(endpoint="tcp://127.0.0.1:*"),
            )
            await stack.enter_async_context(running_sim(settings, on_exit=lambda: os._exit(1)))
        print(f"{len(ports)} replicas", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    raise SystemExit(main())
