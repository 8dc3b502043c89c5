"""`headrace plan`: lay a model over GPUs, say why so, and write it down for those who run it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serving.planner.model import PlanError

if TYPE_CHECKING:
    from serving.planner.hardware import Inventory
    from serving.planner.memory import Budget
    from serving.planner.predict import Demand
    from serving.planner.search import Plan

FORMATS = ("args", "replica", "helm", "dra", "platform", "json")


class PlanCommand:
    """The `plan` command of `headrace`."""

    help = "lay a model over GPUs: which parallelism, how many replicas, on which GPUs, and why"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options."""
        parser.add_argument(
            "model", nargs="?", help="a folder with a config.json, or a well-known model's name"
        )
        parser.add_argument("--list-models", action="store_true", help="print the names we know")
        _add_gpus(parser.add_argument_group("GPUs (without any: this machine's)"))
        _add_demand(parser.add_argument_group("demand"))
        _add_engine(parser.add_argument_group("engine"))
        parser.add_argument(
            "--write", nargs=2, action="append", default=[], metavar=("FORMAT", "FILE"),
            help=f"write the plan as {', '.join(FORMATS)}; FILE may be - for standard output",
        )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """0, or 2 with one line for what is wrong or cannot be."""
        try:
            if args.list_models:
                return _list_models()
            plan, inventory = _plan(args)
            texts = [
                each for what, path in args.write for each in _texts(what, path, plan, inventory)
            ]
            if all(path != "-" for path, _ in texts):
                _show(plan)
            for path, text in texts:
                _put(path, text)
        except PlanError as error:
            print(f"headrace plan: {error}", file=sys.stderr)
            return 2
        return 0


def _add_gpus(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--gpu", metavar="KIND", help="such as h200, l4, h100-1g.10gb, cpu")
    group.add_argument("--count", type=int, default=1, help="of them on each node (%(default)s)")
    group.add_argument("--nodes", type=int, default=1, help="so many alike (%(default)s)")
    group.add_argument("--inventory", metavar="FILE", help="YAML: see docs/planning.md")
    group.add_argument(
        "--cluster", nargs="?", const="", metavar="KUBECONFIG", help="the nodes of a cluster"
    )
    group.add_argument(
        "--price", action="append", default=[], metavar="KIND=PRICE",
        help="of one GPU an hour, in place of a list price; repeatable",
    )  # fmt: skip


def _add_demand(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--rate", type=float, help="requests a second; without: all they can serve")
    group.add_argument("--prompt-tokens", type=float, default=1000, help="mean (%(default)s)")
    group.add_argument("--output-tokens", type=float, default=200, help="mean (%(default)s)")
    group.add_argument("--ttft", type=float, default=2.0, help="objective in s (%(default)s)")
    group.add_argument("--tpot", type=float, default=0.05, help="objective in s (%(default)s)")
    group.add_argument("--trace", metavar="FILE", help="rate and lengths from a trace instead")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--max-model-len", type=int, metavar="TOKENS",
        help="default: twice the longest request, in whole 1024s, at most the model's",
    )  # fmt: skip
    group.add_argument("--max-num-seqs", type=int, default=256, help="(%(default)s)")
    group.add_argument("--max-num-batched-tokens", type=int, default=8192, help="(%(default)s)")
    group.add_argument("--gpu-memory-utilization", type=float, default=0.92, help="(%(default)s)")
    group.add_argument("--kv-cache-dtype", choices=["auto", "fp8"], default="auto", help="(auto)")
    group.add_argument("--split", help="only this one, such as TP2 or TP8-PP2-EP; else the best")
    group.add_argument(
        "--profile", action="append", default=[], metavar="KIND/SPLIT=FILE",
        help="measured step times in place of the roofline: h200/TP2=profile.json; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--prefill-rate", action="append", default=[], metavar="KIND/SPLIT=TOKENS_PER_S",
        help="bring the roofline to a rate that is known, as the gateway learns it; repeatable",
    )  # fmt: skip


def _list_models() -> int:
    from serving.planner.sources import catalogue

    print("\n".join(sorted(catalogue())))
    return 0


def _plan(args: argparse.Namespace) -> tuple[Plan, Inventory]:
    """And the GPUs that it is over."""
    from serving.planner.legal import read_split
    from serving.planner.search import Request, search
    from serving.planner.sources import read_model, read_profiles, read_rates

    for what, _ in args.write:
        if what not in FORMATS:
            raise PlanError(f"--write {what}: expected one of {', '.join(FORMATS)}")
    if args.model is None:
        raise PlanError("which model? Give a folder or a name (--list-models)")
    model = read_model(args.model)
    demand = _demand(args)
    budget = _budget(args, demand, model.max_len)
    measured, rates = read_profiles(args.profile), read_rates(args.prefill_rate)
    only = None if args.split is None else read_split(args.split)
    inventory = _inventory(args)
    return search(model, inventory, Request(demand, budget, measured, rates, only)), inventory


def _inventory(args: argparse.Namespace) -> Inventory:
    from serving.planner.inventory import from_options
    from serving.planner.sources import cluster, read_inventory, this_machine

    said = [each for each in ("gpu", "inventory", "cluster") if getattr(args, each) is not None]
    if len(said) > 1:
        raise PlanError(f"--{said[0]} and --{said[1]} both say which GPUs there are: give one")
    prices = _prices(args.price)
    if args.gpu is not None:
        return from_options(args.gpu, args.count, args.nodes, prices)
    if args.inventory is not None:
        return read_inventory(args.inventory, prices)
    if args.cluster is not None:
        return cluster(args.cluster or None, prices)
    return this_machine(prices)


def _prices(said: list[str]) -> dict[str, float]:
    from serving.planner.hardware import kind

    found: dict[str, float] = {}
    for each in said:
        name, _, price = each.partition("=")
        what = kind(name).name
        try:
            found[what] = float(price)
        except ValueError as error:
            raise PlanError(f"--price {each}: expected KIND=PRICE") from error
        if not 0 < found[what] < float("inf"):
            raise PlanError(f"--price {each}: not a price")
    return found


def _demand(args: argparse.Namespace) -> Demand:
    from serving.planner.predict import Demand, Objectives, demand_of_trace
    from serving.planner.sources import read_trace

    for name in ("rate", "prompt_tokens", "output_tokens", "ttft", "tpot"):
        value = getattr(args, name)
        if value is not None and not 0 < value < 1e9:
            raise PlanError(f"--{name.replace('_', '-')} must be more than 0, and finite")
    if args.prompt_tokens < 1 or args.output_tokens < 1:
        raise PlanError("--prompt-tokens and --output-tokens must be at least 1")
    objectives = Objectives(args.ttft, args.tpot)
    if args.trace is not None:
        return demand_of_trace(read_trace(args.trace), objectives)
    prompt, output = args.prompt_tokens, args.output_tokens
    return Demand(args.rate, prompt, output, objectives, prompt, round(prompt + output))


def _budget(args: argparse.Namespace, demand: Demand, most: int) -> Budget:
    from serving.planner.memory import Budget

    if not 0.1 <= args.gpu_memory_utilization <= 1:
        raise PlanError("--gpu-memory-utilization must be between 0.1 and 1")
    if args.max_num_seqs < 1 or args.max_num_batched_tokens < 1:
        raise PlanError("--max-num-seqs and --max-num-batched-tokens must be at least 1")
    length = args.max_model_len
    if length is None:
        length = min(most, -(-2 * demand.longest // 1024) * 1024)
    elif not demand.longest <= length <= most:
        raise PlanError(
            f"--max-model-len {length} must be between the longest request, {demand.longest}, and "
            f"the model's {most}"
        )
    return Budget(
        utilisation=args.gpu_memory_utilization,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        kv_bits=8 if args.kv_cache_dtype == "fp8" else 16,
        max_model_len=length,
    )


def _show(plan: Plan) -> None:
    from rich.console import Console

    from serving.planner.report import show

    console = Console()
    show(plan, console if console.is_terminal else Console(width=140))


def _texts(what: str, path: str, plan: Plan, inventory: Inventory) -> list[tuple[str, str]]:
    """What is to be written where: one file, or one for each kind of GPU."""
    from serving.planner import nodes, write

    if what == "json":
        return [(path, write.as_json(plan))]
    if what == "platform":
        return [(path, nodes.as_platform(plan, inventory))]
    if what == "args":
        return [(path, write.as_arguments(plan))]
    make = {"helm": write.as_helm, "dra": write.as_dra, "replica": write.as_replica}[what]
    if len(plan.pools) == 1 or path == "-":
        return [(path, "---\n".join(make(plan, pool) for pool in plan.pools))]
    whole = Path(path)
    return [
        (str(whole.with_stem(f"{whole.stem}-{pool.candidate.kind.name}")), make(plan, pool))
        for pool in plan.pools
    ]


def _put(path: str, text: str) -> None:
    if path == "-":
        sys.stdout.write(text)
        return
    try:
        Path(path).write_text(text, encoding="utf-8")
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error


command = PlanCommand()
