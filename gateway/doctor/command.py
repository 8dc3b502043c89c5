"""`headrace doctor URL...`: is each replica as the gateway would have it, and what to change?"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING

from gateway.doctor.checks import Finding, Verdict, findings

if TYPE_CHECKING:
    from gateway.doctor.evidence import Evidence


class DoctorCommand:
    """`headrace doctor`."""

    help = "examine replicas end to end, and say in a line each what to change"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Whom to examine."""
        parser.add_argument(
            "urls", nargs="+", metavar="URL", help="a replica, such as http://10.0.0.1:8000"
        )
        parser.add_argument(
            "--tokenizer", metavar="DIR",
            help="the model's folder; without it the replica's own /tokenize is believed",
        )  # fmt: skip
        parser.add_argument("--json", action="store_true", help="one JSON document instead of text")

    def run(self, args: argparse.Namespace) -> int:
        """0 if nothing is to be changed, 1 if something is, 2 for a folder that is no model's."""
        from gateway.doctor.examine import examine, reader

        try:
            read = reader(args.tokenizer) if args.tokenizer else None
        except (OSError, ValueError) as error:
            print(f"headrace: --tokenizer {args.tokenizer}: {error}", file=sys.stderr)
            return 2
        urls = [url.rstrip("/") for url in args.urls]
        with ThreadPoolExecutor(len(urls)) as threads:
            seen = list(threads.map(lambda url: examine(url, read), urls))
        found = {each.url: findings(each) for each in seen}
        sys.stdout.write(_document(found) if args.json else _text(seen, found))
        is_bad = any(one.verdict is Verdict.BAD for each in found.values() for one in each)
        return 1 if is_bad else 0


def _document(found: dict[str, list[Finding]]) -> str:
    told = {url: [asdict(one) for one in each] for url, each in found.items()}
    return json.dumps(told, indent=2) + "\n"


def _text(seen: list[Evidence], found: dict[str, list[Finding]]) -> str:
    lines = []
    for each in seen:
        lines.append(each.url)
        width = max(len(one.check) for one in found[each.url])
        lines += [
            f"  {one.verdict:<7}  {one.check:<{width}}  {one.says}" for one in found[each.url]
        ]
    bad = sum(one.verdict is Verdict.BAD for each in found.values() for one in each)
    lines.append(f"{bad} thing{'s' if bad != 1 else ''} to change" if bad else "nothing to change")
    return "\n".join(lines) + "\n"
