"""The commands `headrace bench` and `headrace report`.

Exit codes of `bench`: 0 reported; 1 the endpoint does not answer as one; 2 the command line or the
scenario is wrong; 3 refused: the generator was the bottleneck, and nothing is reported.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from loadtest.arrivals import Bursts, OwnTimes, Poisson, Ramp, Users
from loadtest.record import RecordError, read_record
from loadtest.samples import Objectives
from loadtest.scenario import Scenario, ScenarioError, load_scenario, shipped

if TYPE_CHECKING:
    from loadtest.stream import Endpoint

_NEEDS = "headrace bench needs the extra `loadtest`: pip install 'headrace[loadtest]'"
_EXAMPLES = """\
examples:
  headrace bench http://127.0.0.1:8000 --rate 20 --ttft-ms 500 --tpot-ms 50
  headrace bench http://127.0.0.1:8000 --scenario multi-turn --repeat 3
  headrace bench --scenario shared-prefix              simulated replicas are started for it
  headrace bench http://127.0.0.1:8000 --search        the highest rate that meets the objectives
"""


class BenchCommand:
    """`headrace bench`."""

    help = "load-test an OpenAI-compatible endpoint: TTFT, ITL, goodput, and a report of them"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """The scenario says all; flags change some of it."""
        parser.formatter_class = argparse.RawDescriptionHelpFormatter
        parser.epilog = _EXAMPLES
        parser.add_argument("url", nargs="?", metavar="URL", help="default: a simulated fleet")
        parser.add_argument(
            "--scenario", default="shared-prefix", metavar="NAME|FILE",
            help=f"{', '.join(shipped())}, or a YAML file (%(default)s)",
        )  # fmt: skip
        parser.add_argument("--model", help="default: the first at /v1/models")
        parser.add_argument("--api-key-variable", default="OPENAI_API_KEY", metavar="NAME",
                            help="environment variable with the key (%(default)s)")  # fmt: skip
        parser.add_argument("--insecure", action="store_true", help="take any certificate")
        load = parser.add_argument_group("the load, where it is not the scenario's")
        load.add_argument(
            "--rate", type=_positive, help="requests per second, in the mean: open loop"
        )
        load.add_argument("--users", type=int, help="so many who wait for answers: closed loop")
        load.add_argument("--duration-s", type=_positive)
        load.add_argument("--warm-up-s", type=float)
        load.add_argument("--seed", type=int)
        load.add_argument("--no-force-length", action="store_true",
                          help="do not send `ignore_eos`: not all endpoints take it")  # fmt: skip
        goals = parser.add_argument_group("objectives, where they are not the scenario's")
        for name in ("ttft", "tpot", "e2e", "longest-gap"):
            goals.add_argument(f"--{name}-ms", type=_positive)
        goals.add_argument("--share", type=_share, help="of requests that must meet them, 0..1")
        how = parser.add_argument_group("how often, and what is written")
        how.add_argument("--repeat", type=_some, default=1, help="runs, each with the next seed")
        how.add_argument("--search", action="store_true",
                         help="find the highest rate that meets the objectives")  # fmt: skip
        how.add_argument("--label", help="what the report calls these runs (the scenario's name)")
        how.add_argument("--out", type=Path, default=Path("loadtest-results"), metavar="FOLDER",
                         help="for the report: JSON, Markdown, HTML (%(default)s)")  # fmt: skip
        how.add_argument("--against", type=Path, nargs="*", default=[], metavar="JSON",
                         help="records of earlier runs to compare with")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """See the module for what is returned."""
        try:
            import gevent  # noqa: F401
        except ImportError:
            return _complain(_NEEDS, 2)
        from loadtest.bench import Refused, bench
        from loadtest.run import EndpointError

        try:
            scenario = changed(load_scenario(args.scenario), args)
            earlier = [run for path in args.against for run in read_record(path.read_bytes()).runs]
            with _endpoint(args, scenario) as endpoint:
                return bench(scenario, endpoint, args, earlier)
        except Refused as refusal:
            return _complain(f"no report: {refusal}", 3)
        except EndpointError as error:
            return _complain(str(error), 1)
        except (ScenarioError, RecordError, ValueError, OSError) as error:
            return _complain(str(error), 2)


@contextmanager
def _endpoint(args: argparse.Namespace, scenario: Scenario) -> Iterator[Endpoint]:
    """The one that was named, or one of our own for as long as the block lasts."""
    from loadtest.local_fleet import local_fleet
    from loadtest.stream import Endpoint

    if args.url is None:
        with local_fleet(scenario.fleet) as url:
            yield Endpoint.of(url)
        return
    key = os.environ.get(args.api_key_variable)
    yield Endpoint.of(args.url, api_key=key, verifies=not args.insecure)


class ReportCommand:
    """`headrace report`."""

    help = "make one report of the records of several runs: repeats by label, labels compared"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Records in, one page out."""
        parser.add_argument("records", type=Path, nargs="+", metavar="JSON")
        parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE",
                            help="*.html or *.md (%(default)s)")  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """2 where a file is no record."""
        from loadtest.record import Record
        from loadtest.report.markdown import markdown
        from loadtest.report.page import page

        try:
            records = [read_record(path.read_bytes()) for path in args.records]
            found = [each.found for each in records if each.found is not None]
            whole = Record([run for each in records for run in each.runs], next(iter(found), None))
            text = markdown(whole) if args.out.suffix == ".md" else page(whole)
            args.out.write_text(text, encoding="utf-8")
        except (RecordError, OSError) as error:
            return _complain(str(error), 2)
        print(args.out)
        return 0


bench_command = BenchCommand()
report_command = ReportCommand()


def changed(scenario: Scenario, args: argparse.Namespace) -> Scenario:
    """The scenario with what the flags say. Raises ScenarioError."""
    changes: dict[str, Any] = {
        name: value
        for name in ("duration_s", "warm_up_s", "seed")
        if (value := getattr(args, name)) is not None
    }
    if args.duration_s is not None and args.warm_up_s is None:
        changes["warm_up_s"] = min(scenario.warm_up_s, args.duration_s / 5)
    if args.rate is not None:
        changes["arrivals"] = at_rate(scenario, args.rate)
    if args.users is not None:
        changes["arrivals"] = Users(args.users)
    if args.no_force_length:
        changes["force_length"] = False
    changes["objectives"] = _objectives(scenario.objectives, args)
    try:
        return msgspec.structs.replace(scenario, **changes)
    except ValueError as error:
        raise ScenarioError(str(error)) from error


def at_rate(scenario: Scenario, rate_per_s: float) -> Poisson | Bursts | Ramp:
    """The scenario's arrivals at another mean rate; Poisson where they have none."""
    arrivals = scenario.arrivals
    if isinstance(arrivals, Users | OwnTimes):
        return Poisson(rate_per_s)
    return arrivals.at_rate(rate_per_s)


def _objectives(own: Objectives, args: argparse.Namespace) -> Objectives:
    changes = {
        f"{name}_s": value / 1e3
        for name in ("ttft", "tpot", "e2e", "longest_gap")
        if (value := getattr(args, f"{name}_ms")) is not None
    }
    if args.share is not None:
        changes["share"] = args.share
    return msgspec.structs.replace(own, **changes)


def _positive(word: str) -> float:
    if (value := float(word)) > 0:
        return value
    raise argparse.ArgumentTypeError(f"{word} is not above 0")


def _some(word: str) -> int:
    _positive(word)
    return int(word)


def _share(word: str) -> float:
    if 0 < (value := float(word)) <= 1:
        return value
    raise argparse.ArgumentTypeError(f"{word} is not within 0 and 1")


def _complain(text: str, code: int) -> int:
    sys.stderr.write(f"headrace: {text}\n")
    return code
