"""Coverage-guided fuzzing of what clients send: `python -m tests.fuzz.client_atheris LAW SECONDS`.

LAW is one of json, multipart, head, lane, or all of them for so long each. What is found is written
to the machine's temporary folder; keep it in client_corpus/LAW/ once the fault is mended.
Without atheris (PyPI has it for Linux) it says so and does nothing.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

LAWS = ("json", "multipart", "head", "lane")
CORPUS = Path(__file__).parent / "client_corpus"
MOST_BYTES = 4096


def fuzz(law: str, seconds: int) -> None:
    """Never returns: libFuzzer ends the process, with 0 if nothing was found."""
    atheris = importlib.import_module("atheris")
    with atheris.instrument_imports(include=["gateway", "uvicorn", "python_multipart"]):
        laws = importlib.import_module("tests.fuzz.client_laws").LAWS
    with tempfile.TemporaryDirectory() as found:
        options = [f"-max_total_time={seconds}", f"-max_len={MOST_BYTES}", "-timeout=20"]
        options.append(f"-artifact_prefix={tempfile.gettempdir()}/headrace-{law}-")
        atheris.Setup([sys.argv[0], *options, found, str(CORPUS / law)], laws[law])
        atheris.Fuzz()


def main(arguments: list[str]) -> int:
    """Fuzz one law, or each in a process of its own."""
    law, seconds = [*arguments, *("all", "60")[len(arguments) :]][:2]
    if law not in (*LAWS, "all") or not seconds.isdigit():
        print(f"usage: python -m tests.fuzz.client_atheris [{'|'.join(LAWS)}|all] [SECONDS]")
        return 2
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed (pip install atheris): nothing was fuzzed")
        return 0
    if law != "all":
        fuzz(law, int(seconds))
    command = [sys.executable, "-m", "tests.fuzz.client_atheris"]
    return max(subprocess.run([*command, each, seconds], check=False).returncode for each in LAWS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
