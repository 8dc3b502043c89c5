"""The file of tenants and keys: what may stand in it, read whole or not at all.

Several files (a folder, a mounted Secret) say together what one could say alone, so that machines
can write keys into one while people write limits into another. What is wrong with a file is told
without a word of what is in it: it holds a secret.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated

from gateway.section import Matching, Section, SectionError, SettingsError, knob
from gateway.tenants.limits import Limits
from gateway.vocabulary import ModelName, ServiceClass, Tenant

Name = Annotated[str, Matching(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Names stand in logs and metrics."""


class TenantDocument(Section):
    """What a tenant may have."""

    name: Name = knob(description="in logs and metrics")
    service_class: ServiceClass = knob(
        ServiceClass.DEFAULT, alias="class", description="interactive, default or batch"
    )
    weight: float = knob(1.0, gt=0, le=1000, description="share of service within its class")
    models: tuple[str, ...] | None = knob(None, description="unset: all")
    requests_per_minute: int | None = knob(None, gt=0, description="unset: any number")
    tokens_per_minute: int | None = knob(None, gt=0, description="prompt and generated")
    tokens_per_day: int | None = knob(None, gt=0, description="the same, by UTC days")
    max_concurrent: int | None = knob(None, gt=0, description="requests open at once")
    ttft_objective_s: float | None = knob(None, gt=0, description="hoped for: to the first byte")
    isolate_cache: bool = knob(False, description="shares no cached prompts with other tenants")

    def tenant(self) -> Tenant:
        """As the other rooms know it."""
        models = self.models
        return Tenant(
            self.name,
            self.service_class,
            self.weight,
            self.ttft_objective_s,
            None if models is None else frozenset(ModelName(model) for model in models),
        )

    def limits(self) -> Limits:
        """As numbers to count against."""
        return Limits(
            self.requests_per_minute,
            self.tokens_per_minute,
            self.tokens_per_day,
            self.max_concurrent,
        )


class KeyDocument(Section):
    """A key: whose it is, and its hash."""

    id: Name = knob(description="in logs and lists")
    tenant: Name = knob(description="whose it is")
    sha256: str = knob(
        pattern=r"^[0-9a-f]{64}$", is_secret=True, description="of the whole key, in hexadecimal"
    )
    created: str | None = knob(None, description="a date, for people")


class Document(Section):
    """One file, or all of them."""

    salt_secret: str | None = knob(
        None,
        min_length=32,
        is_secret=True,
        description="of which the salts of isolated tenants are made",
    )
    tenants: tuple[TenantDocument, ...] = knob((), description="who there is")
    keys: tuple[KeyDocument, ...] = knob((), description="what opens")


def read_documents(files: Mapping[str, bytes]) -> Document:
    """What files say together, by name. Raises SettingsError naming everything that is wrong."""
    whole = read_unfinished(files)
    wrong = _contradictions(whole)
    if wrong:
        raise SettingsError("the tenants cannot be used:\n" + "\n".join(f"  {it}" for it in wrong))
    return whole


def read_unfinished(files: Mapping[str, bytes]) -> Document:
    """The same, where something may still be missing. Raises SettingsError."""
    read = [_read(name, content) for name, content in files.items()]
    secrets = {each.salt_secret for each in read} - {None}
    if len(secrets) > 1:
        raise SettingsError("the tenants cannot be used: there are two values of salt_secret")
    return Document(
        salt_secret=secrets.pop() if secrets else None,
        tenants=tuple(tenant for each in read for tenant in each.tenants),
        keys=tuple(key for each in read for key in each.keys),
    )


def _read(name: str, content: bytes) -> Document:
    """One file. YAML's own complaints quote the text, so only the place is passed on."""
    from gateway.yaml_text import NotYaml, read_yaml

    try:
        document = read_yaml(content)
    except NotYaml as error:
        where = "" if error.line is None else f" at line {error.line}"
        raise SettingsError(f"{name} is not YAML{where}") from None
    if document is None:
        document = {}
    if not isinstance(document, dict):
        raise SettingsError(f"{name} must be a mapping of tenants and keys")
    try:
        return Document.of(document)
    except SectionError as error:
        lines = [f"  {each}" for each in error.problems]
        raise SettingsError("\n".join([f"{name} cannot be used:", *lines])) from None


def _contradictions(whole: Document) -> list[str]:
    names = [tenant.name for tenant in whole.tenants]
    ids = [key.id for key in whole.keys]
    hashes = [key.sha256 for key in whole.keys]
    known = set(names)
    wrong = [f"there are two tenants named {name}" for name in _twice(names)]
    wrong += [f"there are two keys with the id {key}" for key in _twice(ids)]
    wrong += [
        f"key {key.id} is the same as another" for key in whole.keys if hashes.count(key.sha256) > 1
    ]
    wrong += [
        f"key {key.id} is of tenant {key.tenant}, which is not described"
        for key in whole.keys
        if key.tenant not in known
    ]
    if whole.salt_secret is None:
        wrong += [
            f"tenant {tenant.name} has isolate_cache, but there is no salt_secret"
            for tenant in whole.tenants
            if tenant.isolate_cache
        ]
    return wrong


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)
