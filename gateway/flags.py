"""The settings as a file, variables and the command line say them together. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.section import SettingsError
from gateway.settings import Settings

# Of `headrace gateway`: the section and the knob that each sets.
_KNOBS = {
    "host": ("accept", "host"),
    "port": ("accept", "port"),
    "workers": ("peers", "workers"),
    "policy": ("choose", "policy"),
    "batch_folder": ("batch", "folder"),
    "tokenizer": ("tokens", "folder"),
    "access_log": ("account", "access_log"),
    "recording": ("account", "recording"),
}


def settings_said(text: str, environ: Mapping[str, str], flags: Mapping[str, Any]) -> Settings:
    """YAML text, over it `GATEWAY__` variables, over them flags that are not None; `profile` is a
    mapping of knobs of `choose`. Raises SettingsError, also where no replica is named."""
    document = Settings.load(text, environ).document()
    fleet = document["fleet"]
    fleet["replicas"] = [*fleet["replicas"], *flags["replica"]]
    for flag, (section, knob) in _KNOBS.items():
        if flags.get(flag) is not None:
            document[section][knob] = flags[flag]
    document["choose"] |= flags["profile"] or {}
    if flags["kubernetes"] is not None:
        fleet["kubernetes"]["enabled"] = True
        fleet["kubernetes"]["namespaces"] = flags["kubernetes"] or fleet["kubernetes"]["namespaces"]
    if not (fleet["replicas"] or fleet["dns"] or fleet["file"] or fleet["kubernetes"]["enabled"]):
        raise SettingsError(
            "no replicas: name one with --replica http://host:port, say --kubernetes, or name a "
            "list, DNS name or file in the settings (fleet.replicas, fleet.dns, fleet.file)"
        )
    return Settings.of(document)
