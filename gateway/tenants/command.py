"""`headrace keys create | list | revoke`: the file of keys, changed whole or not at all.

A key is printed once, when it is made, on standard output and nowhere else. The new content is
checked as the gateway would check it, written beside the old one and renamed over it. Comments in
the file do not survive: what people write goes into another file of the same folder.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from gateway.section import SettingsError
from gateway.tenants.document import Document, read_documents, read_unfinished
from gateway.tenants.keys import ID_BYTES, SECRET_BYTES, digest, new_key
from gateway.tenants.watch import read_files

if TYPE_CHECKING:
    import argparse

OWN_FILE: Final = "keys.yaml"  # in a folder: what this command writes


class KeysCommand:
    """`headrace keys`."""

    help = "make, list and revoke the API keys of tenants"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """What to do, and where the tenants are."""
        what = parser.add_subparsers(dest="what", metavar="create|list|revoke", required=True)
        create = what.add_parser("create", help="make a key and print it, this once")
        create.add_argument("--tenant", required=True, help="whose; a new one has no limits")
        listed = what.add_parser("list", help="print id, tenant and date of every key")
        revoke = what.add_parser("revoke", help="make a key open nothing any more")
        revoke.add_argument("id", metavar="ID", help="as `list` shows it")
        for each in (create, listed, revoke):
            each.add_argument(
                "--path", required=True,
                help="what tenants.path names: a YAML file, or a folder of them",
            )  # fmt: skip

    def run(self, args: argparse.Namespace) -> int:
        """Do it; 2 where it cannot be done."""
        try:
            store = Store(Path(args.path))
            if args.what == "create":
                sys.stdout.write(store.create(args.tenant) + "\n")
            elif args.what == "revoke":
                store.revoke(args.id)
            else:
                for key in store.document.keys:
                    sys.stdout.write(f"{key.id}\t{key.tenant}\t{key.created or '-'}\n")
        except (SettingsError, OSError) as error:
            sys.stderr.write(f"headrace: {error}\n")
            return 2
        return 0


class Store:
    """The tenants at a path, and the one file among theirs that is written here."""

    def __init__(self, path: Path) -> None:
        """Raises OSError or SettingsError for what is there already."""
        self._file = path / OWN_FILE if path.is_dir() else path
        self._files = read_files(path) if path.exists() else {}
        self.document: Document = read_unfinished(self._files)

    def create(self, tenant: str) -> str:
        """A new key of a tenant, who is described if it was not. Returns the key."""
        made = new_key(secrets.token_bytes(ID_BYTES + SECRET_BYTES))
        own = self._own()
        if all(each.name != tenant for each in self.document.tenants):
            own.setdefault("tenants", []).append({"name": tenant})
        if self.document.salt_secret is None:
            own["salt_secret"] = secrets.token_urlsafe(SECRET_BYTES)
        entry = {
            "id": made.id,
            "tenant": tenant,
            "sha256": digest(made.key.encode()).hex(),
            "created": datetime.now(UTC).date().isoformat(),
        }
        own.setdefault("keys", []).append(entry)
        self._write(own)
        return made.key

    def revoke(self, key_id: str) -> None:
        """Take a key out. Raises SettingsError where there is none of this id in our file."""
        own = self._own()
        keys = own.get("keys", [])
        left = [each for each in keys if each["id"] != key_id]
        if len(left) == len(keys):
            raise SettingsError(f"there is no key {key_id} in {self._file}")
        own["keys"] = left
        self._write(own)

    def _own(self) -> dict[str, Any]:
        return yaml.safe_load(self._files.get(self._file.name, b"")) or {}

    def _write(self, own: dict[str, Any]) -> None:
        """Check, then replace. Only the owner may read a new file; an old one's mode stays."""
        is_json = self._file.suffix == ".json"
        text = json.dumps(own, indent=1) if is_json else yaml.safe_dump(own, sort_keys=False)
        content = text.encode()
        read_documents({**self._files, self._file.name: content})
        mode = self._file.stat().st_mode & 0o777 if self._file.exists() else 0o600
        descriptor, name = tempfile.mkstemp(prefix=".keys-", dir=self._file.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(descriptor)
            os.chmod(name, mode)
            os.replace(name, self._file)
        except OSError:
            os.unlink(name)
            raise
