"""`headrace keys` changes a file whole, shows a key once, and leaves what others wrote alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from gateway.__main__ import main
from gateway.tenants.document import read_documents
from gateway.tenants.keys import digest
from gateway.tenants.watch import read_files


def keys(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["keys", *arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize("name", ["tenants.yaml", "tenants.json", ""])
def test_a_key_is_made_listed_and_revoked(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    code, out, err = keys(capsys, "create", "--tenant", "acme", "--path", str(path))
    assert (code, err) == (0, "")
    key = out.strip()
    document = read_documents(read_files(path))
    [entry] = document.keys
    assert entry.sha256 == digest(key.encode()).hex()
    assert key.startswith(entry.id)
    assert document.salt_secret is not None
    [file] = list(tmp_path.iterdir())
    assert key.removeprefix(entry.id) not in file.read_text()
    assert file.stat().st_mode & 0o777 == 0o600

    keys(capsys, "create", "--tenant", "acme", "--path", str(path))
    _, out, _ = keys(capsys, "list", "--path", str(path))
    assert [line.split("\t")[1] for line in out.splitlines()] == ["acme", "acme"]
    assert entry.sha256 not in out
    assert keys(capsys, "revoke", entry.id, "--path", str(path))[0] == 0
    again = read_documents(read_files(path))
    assert entry.id not in [each.id for each in again.keys]
    assert len(again.keys) == 1
    assert again.salt_secret == document.salt_secret  # or every cache would be cold
    code, _, err = keys(capsys, "revoke", entry.id, "--path", str(path))
    assert code == 2
    assert entry.id in err


def test_in_a_folder_only_its_own_file_is_written(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    ours = "# by hand\ntenants:\n- {name: acme, weight: 3}\n"
    (tmp_path / "tenants.yaml").write_text(ours)
    assert keys(capsys, "create", "--tenant", "acme", "--path", str(tmp_path))[0] == 0
    assert (tmp_path / "tenants.yaml").read_text() == ours
    assert "tenants" not in yaml.safe_load((tmp_path / "keys.yaml").read_text())
    assert len(read_documents(read_files(tmp_path)).keys) == 1


def test_what_cannot_be_used_is_left_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: [")
    assert keys(capsys, "create", "--tenant", "acme", "--path", str(path))[0] == 2
    path.write_text("tenants: []")
    code, out, err = keys(capsys, "create", "--tenant", "a b", "--path", str(path))
    assert (code, out) == (2, "")
    assert "name" in err
    assert path.read_text() == "tenants: []"
    assert [each.name for each in tmp_path.iterdir()] == ["tenants.yaml"]
    orphan = f"keys: [{{id: hr-1, tenant: gone, sha256: {'a' * 64}}}]"
    path.write_text(orphan)
    code, out, err = keys(capsys, "create", "--tenant", "acme", "--path", str(path))
    assert (code, out) == (2, "")
    assert "gone" in err
    assert path.read_text() == orphan
    assert keys(capsys, "list", "--path", str(tmp_path / "no" / "folder"))[0] == 0
    missing = str(tmp_path / "no" / "folder")
    assert keys(capsys, "create", "--tenant", "acme", "--path", missing)[0] == 2


def test_files_of_a_mounted_secret_are_read_and_hidden_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "keys").write_text("keys: []")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "keys").symlink_to("..data/keys")
    (tmp_path / "keys~").write_text("nonsense: 1")
    (tmp_path / ".keys-half").write_text("nonsense: 1")
    assert read_files(tmp_path) == {"keys": b"keys: []"}
