"""What the documents say is true: links lead somewhere, settings load, commands and paths exist."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from gateway.__main__ import OWN, main
from gateway.settings import Settings, TenantsSettings
from gateway.tenants.document import read_documents
from gateway.tenants.watch import read_files
from gateway.vocabulary import ROUTES
from loadtest.scenario import read_scenario, shipped

ROOT = Path(__file__).resolve().parents[3]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")],
    key=str,
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("http") or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:gateway|serving|tests|docs)/[\w/.-]+\.\w+)`", text))
    missing = [name for name in named if "NNNN" not in name and not (ROOT / name).exists()]
    assert not missing


def test_the_settings_in_the_readme_can_be_used() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    for block in blocks:
        assert Settings.load(block, {}).fleet.replicas
    assert Settings.load("", {"GATEWAY__ADMIT__DRAIN_GRACE_S": "90"}).admit.drain_grace_s == 90


def test_the_commands_in_the_readme_exist(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    known = capsys.readouterr().out
    for name in re.findall(r"`headrace ([a-z][a-z-]+)", text):
        assert re.search(rf"^\s+{name}\s", known, re.MULTILINE), name
    line = next(line for line in text.splitlines() if line.startswith("$ headrace gateway"))
    flags = [word for word in shlex.split(line) if word.startswith("--")]
    with pytest.raises(SystemExit):
        main(["gateway", "--help"])
    shown = capsys.readouterr().out
    assert "gateway" in OWN
    assert not [flag for flag in flags if flag not in shown]


def test_what_the_page_on_tenants_says_can_be_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (ROOT / "docs" / "tenants.md").read_text(encoding="utf-8")
    here = text.replace("/etc/headrace/tenants", str(tmp_path))
    [settings] = re.findall(r"```yaml\n(.*?)```", here, re.DOTALL)
    assert Settings.load(settings, {}).tenants.path == str(tmp_path)
    [tenants] = re.findall(r"```yaml tenants\n(.*?)```", here, re.DOTALL)
    (tmp_path / "tenants.yaml").write_text(tenants)
    made = ""
    for line in re.findall(r"^\$ headrace (keys .*)", here, re.MULTILINE):
        assert main(shlex.split(line.replace("hr-abcd2345", made))) == 0
        made = made or capsys.readouterr().out[: len("hr-abcd2345")]
    document = read_documents(read_files(tmp_path))
    assert [each.name for each in document.tenants] == ["acme", "nightly"]
    assert not document.keys
    knobs = set(re.findall(r"`tenants\.(\w+)`", text))
    assert knobs <= {each.name for each in fields(TenantsSettings)}


def test_the_make_targets_in_the_documents_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for name in re.findall(r"(?:`|\$ )make ([a-z0-9]+)", page.read_text(encoding="utf-8")):
            assert re.search(rf"^{name}:", makefile, re.MULTILINE), f"{page.name}: make {name}"


def test_every_path_in_the_readme_is_served() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    served = {route.path for route in ROUTES} | {
        "/v1/models", "/v1/files", "/v1/batches", "/healthz", "/readyz", "/metrics", "/debug/fleet",
        "/debug/route", "/console",
    }  # fmt: skip
    for path in re.findall(r"`(/[a-z0-9/]+)`", text):
        assert path in served


def test_what_the_page_on_load_tests_says_can_be_done(capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "load-testing.md").read_text(encoding="utf-8")
    for name in ("bench", "report", "record"):
        with pytest.raises(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        lines = re.findall(rf"headrace {name} (.*?)[`\n]", text)
        assert lines
        flags = {word for line in lines for word in line.split() if word.startswith("--")}
        assert not [flag for flag in flags if flag not in shown]
    [scenario] = re.findall(r"```yaml scenario\n(.*?)```", text, re.DOTALL)
    assert read_scenario(scenario).question
    [named] = re.findall(r"chosen by name: (.*?)\.\n", text)
    assert set(re.findall(r"`([\w-]+)`", named)) == set(shipped())


def test_what_the_page_on_observability_says_can_be_done() -> None:
    text = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
    [settings] = re.findall(r"```yaml settings\n(.*?)```", text, re.DOTALL)
    assert Settings.load(settings, {}).account.traces.endpoint
    [values] = re.findall(r"```yaml values\n(.*?)```", text, re.DOTALL)
    shipped = yaml.safe_load((ROOT / "charts/gateway/values.yaml").read_text(encoding="utf-8"))
    assert set(yaml.safe_load(values)["monitoring"]) <= set(shipped["monitoring"])
    exported = "".join(path.read_text("utf-8") for path in (ROOT / "gateway").rglob("*metrics.py"))
    for name in re.findall(r"`(gateway_[a-z_]+[a-z])`", text):
        assert f'"{name.removesuffix("_total")}"' in exported, name
