"""The gateway inside gVisor: a kernel of its own, and a request through it answered.

`runsc` is Debian's; where it is not on the PATH, or this machine does not let it make a sandbox,
the test is skipped. No network reaches in or out: gateway, replica and client share the sandbox's
loopback. Another machine's files are not needed: it sees ours, and cannot write them.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
INSIDE = Path(__file__).with_name("gvisor_inside.py")


def sandboxed(*command: str, within_s: float) -> subprocess.CompletedProcess[str]:
    """Run it there, in the root of the repository. Skips where there is no sandbox to be had."""
    runsc = shutil.which("runsc")
    if runsc is None:
        pytest.skip("runsc is not installed here (Debian: apt-get install runsc)")
    return subprocess.run(
        [runsc, "--rootless", "--network=none", "do", "--cwd", str(ROOT), *command],
        capture_output=True,
        text=True,
        timeout=within_s,
        check=False,
        cwd=ROOT,
    )


def test_a_gateway_answers_inside_a_sandbox_and_stops_in_order() -> None:
    tried = sandboxed("uname", "-r", within_s=60)
    if tried.returncode:
        pytest.skip(f"runsc can make no sandbox here: {(tried.stderr or tried.stdout)[-300:]}")
    done = sandboxed("env", f"PYTHONPATH={ROOT}", sys.executable, str(INSIDE), within_s=240)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    assert told["kernel"] != platform.release()
    assert told["finish_reason"] == "length"
    assert told["events"] >= 6  # five tokens and [DONE]
    assert told["ended"] == 0
