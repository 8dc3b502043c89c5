"""`headrace sim`: a simulated vLLM replica on the command line; `running_sim` for tests."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

import uvloop

from serving.sim.block_hash import HashAlgorithm
from serving.sim.replica import Sim, running_sim
from serving.sim.settings import KvEventSettings, SimSettings, shipped_profiles
from serving.sim.tls import add_tls_arguments, tls_of

__all__ = ["KvEventSettings", "Sim", "SimSettings", "command", "main", "running_sim"]

_EXAMPLES = """\
examples:
  headrace sim --port 9001
  headrace sim --model llama --lora support=adapters/support --profile cpu-tiny --speed 4
  headrace sim --port 9001 --kv-events-endpoint tcp://127.0.0.1:5557 \\
               --kv-replay-endpoint tcp://127.0.0.1:5558
  curl -X POST localhost:9001/sim/faults -d '{"reset": {"after_chunks": 3, "next": 1}}'

faults (POST /sim/faults merges, null ends one, DELETE ends all; every one but slow and health takes
"next": N requests and "ratio": 0..1):
  {"slow": 5}                                        steps take five times as long
  {"stuck": {"where": "before_head"}}                accept, never answer (or "after_head")
  {"drop": {}}  {"garbage": {}}                      end without an answer; bytes that are no HTTP
  {"refuse": {"status": 503}}                        an error status
  {"reset": {"after_chunks": 3}}                     TCP reset in the middle of a stream
  {"truncate": {"after_chunks": 3}}                  end in the middle of a chunk
  {"health": {"status": 503}}  {"health": {"hangs": true}}
  {"crash": "exit"}  {"crash": "drop"}               the process ends; every connection ends
"""


class SimCommand:
    """The `sim` command of `headrace`."""

    help = "run a simulated vLLM replica: its API, metrics and KV events, without a model"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = _EXAMPLES
        default = SimSettings()
        where = parser.add_argument_group("where")
        where.add_argument(
            "--host", default=default.host, help="address to listen on (%(default)s)"
        )
        where.add_argument("--port", type=int, default=9001, help="0 picks one (%(default)s)")
        where.add_argument(
            "--keep-alive-s",
            type=float,
            default=default.keep_alive_s,
            help="idle connections are closed after this (%(default)s, as vLLM)",
        )
        where.add_argument(
            "--shutdown-timeout",
            type=float,
            default=0.0,
            metavar="S",
            help="how long requests may go on after SIGTERM (%(default)s, as vLLM)",
        )
        where.add_argument(
            "--load-s", type=float, default=0.0, help="refuse connections for so long at the start"
        )
        what = parser.add_argument_group("what is served")
        what.add_argument(
            "--model", action="append", metavar="NAME", help="served name; may be repeated (sim)"
        )
        what.add_argument(
            "--lora", action="append", metavar="NAME[=PATH]", help="adapter; may be repeated"
        )
        what.add_argument("--seed", type=int, default=0, help="chooses the replies (%(default)s)")
        what.add_argument(
            "--mean-output-tokens",
            type=int,
            default=default.mean_output_tokens,
            metavar="N",
            help="mean length of a reply nothing else ends (%(default)s)",
        )
        what.add_argument(
            "--no-prompt-tokens-details", action="store_true", help="leave out cached_tokens"
        )
        what.add_argument(
            "--enable-scale-out", action="store_true", help="serve /v1/.../render, as vLLM's flag"
        )
        what.add_argument(
            "--enable-sleep-mode", action="store_true", help="serve /sleep, /wake_up, /is_sleeping"
        )
        what.add_argument(
            "--wake-s", type=float, default=0.0, help="how long it takes to wake (%(default)s)"
        )
        add_tls_arguments(parser)
        self._add_engine(parser.add_argument_group("engine (defaults from the profile)"))
        self._add_events(parser.add_argument_group("KV-cache events"))

    def run(self, args: argparse.Namespace) -> int:
        """Serve until SIGINT or SIGTERM. 2 for settings that do not fit together."""
        try:
            settings = _settings(args)
            uvloop.run(_serve(settings))
        except (ValueError, OSError) as error:
            print(f"headrace sim: {error}", file=sys.stderr)
            return 2
        return 0

    def _add_engine(self, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--profile",
            default=SimSettings().profile,
            metavar="NAME|FILE",
            help=f"{', '.join(shipped_profiles())}, or a JSON file (%(default)s)",
        )
        group.add_argument(
            "--speed", type=float, default=1.0, help="steps go so many times as fast (%(default)s)"
        )
        for flag, text in (
            ("--block-size", "tokens in a KV block"),
            ("--blocks", "KV blocks"),
            ("--max-num-seqs", "requests in a batch"),
            ("--max-num-batched-tokens", "tokens in a step"),
            ("--max-model-len", "tokens of prompt and reply"),
        ):
            group.add_argument(flag, type=int, metavar="N", help=text)
        group.add_argument("--no-prefix-caching", action="store_true", help="reuse nothing")
        group.add_argument(
            "--prefix-caching-hash-algo",
            choices=[str(algorithm) for algorithm in HashAlgorithm],
            default=str(HashAlgorithm.SHA256),
            help="as vLLM's flag of this name (%(default)s)",
        )

    def _add_events(self, group: argparse._ArgumentGroup) -> None:
        group.add_argument(
            "--kv-events-endpoint",
            metavar="tcp://HOST:PORT",
            help="publish events here (PUB, bound; port * picks one: see GET /kv_event_sources)",
        )
        group.add_argument(
            "--kv-replay-endpoint", metavar="tcp://HOST:PORT", help="replay batches here (ROUTER)"
        )
        group.add_argument("--kv-events-topic", default="", help="topic of every batch")


command = SimCommand()


def _settings(args: argparse.Namespace) -> SimSettings:
    return SimSettings(
        host=args.host,
        port=args.port,
        models=tuple(args.model or SimSettings().models),
        loras=tuple(args.lora or ()),
        profile=args.profile,
        speed=args.speed,
        seed=args.seed,
        mean_output_tokens=args.mean_output_tokens,
        block_size=args.block_size,
        blocks=args.blocks,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_model_len=args.max_model_len,
        prefix_caching=not args.no_prefix_caching,
        hash_algorithm=HashAlgorithm(args.prefix_caching_hash_algo),
        prompt_tokens_details=not args.no_prompt_tokens_details,
        scale_out=args.enable_scale_out,
        sleep_mode=args.enable_sleep_mode,
        wake_s=args.wake_s,
        keep_alive_s=args.keep_alive_s,
        shutdown_timeout_s=args.shutdown_timeout,
        load_s=args.load_s,
        tls=tls_of(args),
        kv_events=KvEventSettings(
            args.kv_events_endpoint, args.kv_replay_endpoint, args.kv_events_topic
        ),
    )


async def _serve(settings: SimSettings) -> None:
    """Run a replica until a signal."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopping.set)
    async with running_sim(settings, on_exit=lambda: os._exit(1)) as sim:
        print(f"simulated replica of {', '.join(settings.models)} at {sim.url}", flush=True)
        await stopping.wait()
        await sim.drain()


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m serving.sim.server ...`"""
    parser = argparse.ArgumentParser(prog="headrace sim", description=command.help)
    command.add_arguments(parser)
    return command.run(parser.parse_args(argv))


if __name__ == "__main__":
    raise SystemExit(main())
