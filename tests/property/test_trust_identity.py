"""SPIFFE IDs beside a slow reading of the specification; handshakes beside what they must be."""

from __future__ import annotations

import contextlib
import ssl
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.trust.identity import Allowed, NotAllowed, identity_of
from gateway.trust.mutual_tls import Credentials, MutualTls, Refusal, load_pem
from tests.workload_api import DOMAIN, Authority

PATH = "abcXYZ019-_./"
TEXT = st.text(
    st.sampled_from([*PATH, "%", " ", "\x00", "é", ":", "@", "?", "#", "*"]), max_size=20
)
URI = st.one_of(
    st.builds(
        lambda scheme, domain, path: f"{scheme}://{domain}{path}",
        st.sampled_from(["spiffe", "SPIFFE", "https", ""]),
        st.one_of(st.just(DOMAIN), TEXT),
        st.one_of(TEXT, st.lists(TEXT, max_size=4).map(lambda parts: "/" + "/".join(parts))),
    ),
    st.text(max_size=30),
)


def certificate(*uris: str) -> dict[str, Any]:
    return {"subjectAltName": (("DNS", "any"), *(("URI", uri) for uri in uris))}


def is_spiffe_id(uri: str) -> bool:
    """SPIFFE-ID, sections 2.1 and 2.2, letter by letter."""
    head, slash, path = uri.removeprefix("spiffe://").partition("/")
    segments = path.split("/")
    return (
        uri.startswith("spiffe://")
        and len(uri) <= 2048
        and 0 < len(head) <= 255
        and all(each in "abcdefghijklmnopqrstuvwxyz0123456789.-_" for each in head)
        and bool(slash)
        and all(segment not in ("", ".", "..") for segment in segments)
        and all(
            each.isascii() and (each.isalnum() or each in ".-_")
            for segment in segments
            for each in segment
        )
    )


@given(st.lists(URI, max_size=3))
def test_an_identity_is_one_uri_that_is_a_spiffe_id(uris: list[str]) -> None:
    if len(uris) == 1 and is_spiffe_id(uris[0]):
        assert identity_of(certificate(*uris)) == uris[0]
    else:
        with pytest.raises(NotAllowed):
            identity_of(certificate(*uris))


@given(st.text(max_size=20), st.integers(2000, 2100))
def test_an_identity_is_not_too_long(tail: str, length: int) -> None:
    uri = f"spiffe://{DOMAIN}/".ljust(length, "a")
    if length <= 2048:
        assert identity_of(certificate(uri)) == uri
    else:
        with pytest.raises(NotAllowed):
            identity_of(certificate(uri))


SEGMENTS = st.lists(st.sampled_from(["ns", "models", "llama", "llam"]), min_size=1, max_size=3)
PATTERN = st.builds(lambda parts, end: (tuple(parts), end), SEGMENTS, st.booleans())


@given(st.lists(PATTERN, min_size=1, max_size=4), SEGMENTS, st.sampled_from([DOMAIN, "a.example"]))
def test_a_pattern_stands_for_an_id_or_for_all_below(
    patterns: list[tuple[tuple[str, ...], bool]], parts: list[str], domain: str
) -> None:
    allowed = Allowed.of(
        [f"spiffe://{DOMAIN}/" + "/".join(path) + "/*" * below for path, below in patterns]
    )
    is_meant = domain == DOMAIN and any(
        len(parts) > len(path) and tuple(parts[: len(path)]) == path
        if below
        else tuple(parts) == path
        for path, below in patterns
    )
    try:
        allowed.check(certificate(f"spiffe://{domain}/" + "/".join(parts)))
    except NotAllowed:
        assert not is_meant
    else:
        assert is_meant


AUTHORITIES = (Authority(), Authority(), Authority())
NAMES = (f"spiffe://{DOMAIN}/models/a", f"spiffe://{DOMAIN}/models/b", f"spiffe://{DOMAIN}/other")
REPLICAS = {
    (signed_by, name): authority.issue(name)
    for signed_by, authority in enumerate(AUTHORITIES)
    for name in NAMES
}
OURS = AUTHORITIES[0].issue("spiffe://example.org/gateway")

RENEWAL = st.tuples(st.sets(st.integers(0, 2), min_size=1), st.integers(0, 20))
CONNECTING = st.tuples(st.integers(0, 2), st.sampled_from(NAMES), st.integers(0, 20))


def handshake(tls: MutualTls, server: ssl.SSLContext) -> ssl.SSLObject:
    """Both sides in memory. Raises ssl.SSLError where ours refuses."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = tls.wrap_bio(back, there, server_side=False, server_hostname="any")
    theirs = server.wrap_bio(there, back, server_side=True)
    for _ in range(4):
        try:
            ours.do_handshake()
        except ssl.SSLWantReadError:
            pass
        else:
            return ours
        with contextlib.suppress(ssl.SSLWantReadError):
            theirs.do_handshake()
    raise AssertionError("no end")


@settings(max_examples=60)
@given(st.lists(st.one_of(RENEWAL, CONNECTING), max_size=12))
def test_handshakes_go_by_the_newest_credentials_alone(steps: list[tuple[Any, ...]]) -> None:
    """A step is a second. Is ours valid, is theirs trusted, is it one of those allowed?"""
    now = 0.0
    tls = MutualTls(Allowed.of([f"spiffe://{DOMAIN}/models/*"]), lambda: now)
    trusted: set[int] = set()
    expires = 0.0
    refused = dict.fromkeys(Refusal, 0)
    for step in steps:
        now += 1.0
        if isinstance(step[0], set):
            trusted, expires = step[0], now + step[1]
            tls.renew(told(trusted, expires))
            continue
        signed_by, name, pause = step
        now += pause
        wrong: Refusal | None = None
        if now >= expires:
            wrong = Refusal.NO_SVID
        elif signed_by not in trusted:
            wrong = Refusal.UNTRUSTED
        elif name not in NAMES[:2]:
            wrong = Refusal.NOT_ALLOWED
        if wrong is None:
            handshake(tls, replica(signed_by, name))
        else:
            refused[wrong] += 1
            with pytest.raises(ssl.SSLError):
                handshake(tls, replica(signed_by, name))
        assert tls.refused == refused


def replica(signed_by: int, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    load_pem(context, REPLICAS[signed_by, name].pem)
    return context


def told(trusted: set[int], expires_at: float) -> Credentials:
    authorities = "".join(AUTHORITIES[each].pem for each in trusted)
    return Credentials(OURS.names[0], OURS.serial, expires_at, OURS.pem, authorities)
