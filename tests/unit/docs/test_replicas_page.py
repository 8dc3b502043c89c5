"""docs/replicas.md says nothing that the commands do not understand."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import pytest
import yaml

from gateway.__main__ import Command, GatewayCommand
from serving.calibration.command import CalibrateCommand
from serving.replica.command import ReplicaCommand
from serving.replica.settings import ReplicaSettings, parse
from serving.sim.server import SimCommand

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "replicas.md").read_text()
COMMANDS: dict[str, Command] = {
    "replica": ReplicaCommand(),
    "calibrate": CalibrateCommand(),
    "sim": SimCommand(),
    "gateway": GatewayCommand(),
}


@pytest.mark.parametrize("line", re.findall(r"^\$ headrace (.+)$", PAGE, re.MULTILINE))
def test_a_command_of_the_page_is_understood(line: str) -> None:
    name, *words = shlex.split(line, comments=True)
    parser = argparse.ArgumentParser()
    COMMANDS[name].add_arguments(parser)
    parser.parse_args(words)


def test_the_pages_file_is_settings_and_shows_what_there_is() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    keys = yaml.safe_load(block)
    assert parse(keys).parallelism.devices == 8
    untold = {"python", "kv_cache_mib", "block_size", "warm_up", "settle_s", "log", "env"}
    assert set(ReplicaSettings.__struct_fields__) - untold == set(keys)
