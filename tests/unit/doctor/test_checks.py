"""What the doctor says of what it has seen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.doctor.checks import CHECKS, Finding, Verdict, findings
from gateway.doctor.evidence import Asked, Evidence, Published, Read, Replayed, Source

WELL = Evidence(
    url="http://r1:8000",
    version="0.32.0",
    models=("m",),
    clock_off_s=0.4,
    prefix_caching=True,
    hash_algorithm="sha256_cbor",
    block_size=16,
    blocks=1000,
    sources=(Source(0, "tcp://r1:5557", "tcp://r1:5558"),),
    asked=Asked(200, 100, 0, 96, "vllm-0.32.0-tp4-0123abcd"),
    published=Published(2, 16, (11, 12, 13)),
    replayed=Replayed(7, is_ended=True),
    read=Read([1, 2, 3], [1, 2, 3]),
    chains={"sha256": (5, 6), "sha256_cbor": (11, 12, 13)},
)


def the(check: str, seen: Evidence) -> Finding:
    """The one finding of a check."""
    (found,) = [each for each in findings(seen) if each.check == check]
    return found


def test_a_replica_that_is_well_has_nothing_to_change() -> None:
    found = findings(WELL)
    assert len(found) == len(CHECKS) + 1
    assert {each.verdict for each in found} == {Verdict.GOOD}
    assert the("parallelism", WELL).says == "tensor-parallel degree 4"
    assert the("hash algorithm", WELL).says == "sha256_cbor, reproduced"


def test_what_cannot_be_reached_is_one_finding() -> None:
    (found,) = findings(Evidence("http://r1:8000", unreachable="connection refused"))
    assert found.verdict is Verdict.BAD
    assert "connection refused" in found.says
    (loading,) = findings(Evidence("http://r1:8000", version="0.32.0"))
    assert "until it has loaded" in loading.says


def test_what_was_not_seen_is_never_called_good() -> None:
    found = findings(Evidence("http://r1:8000", models=("m",)))
    assert [each.verdict for each in found[1:]] == [Verdict.UNKNOWN] * len(CHECKS)


@pytest.mark.parametrize(
    ("check", "seen", "advice"),
    [
        ("prefix caching", replace(WELL, prefix_caching=False), "--enable-prefix-caching"),
        (
            "cached_tokens",
            replace(WELL, asked=Asked(200, 100, None, None)),
            "--enable-prompt-tokens-details",
        ),
        ("cached_tokens", replace(WELL, asked=Asked(200, 100, 0, 0)), "--block-size"),
        ("KV events", replace(WELL, sources=()), "--kv-events-config"),
        ("KV events", replace(WELL, published=Published()), "port"),
        ("replay", replace(WELL, sources=(Source(0, "tcp://r1:1", None),)), "replay_endpoint"),
        ("replay", replace(WELL, replayed=Replayed()), "port"),
        ("block size", replace(WELL, published=Published(1, 1056, (11,))), "--block-size"),
        ("block size", replace(WELL, published=Published(1, 16, (11,), True)), "approximately"),
        (
            "hash algorithm",
            replace(WELL, published=Published(1, 16, (99,))),
            "--prefix-caching-hash-algo sha256_cbor",
        ),
        ("tokenizer", replace(WELL, read=Read([1, 2], [1, 3])), "same model folder"),
        ("prediction", replace(WELL, asked=Asked(200, 100, 0, 80)), "96 expected"),
        ("clock", replace(WELL, clock_off_s=-7.0), "NTP"),
    ],
)
def test_what_is_wrong_comes_with_what_to_change(check: str, seen: Evidence, advice: str) -> None:
    found = the(check, seen)
    assert found.verdict is Verdict.BAD
    assert advice in found.says


def test_the_prompt_s_last_block_is_always_computed_again() -> None:
    """96 tokens are six whole blocks of 16, and an engine recomputes the last token's."""
    seen = replace(WELL, asked=Asked(200, 96, 0, 80))
    assert the("prediction", seen).verdict is Verdict.GOOD


@pytest.mark.parametrize(
    ("fingerprint", "says"),
    [
        ("vllm-0.32.0-0123abcd", "tensor-parallel degree 1"),
        ("vllm-0.32.0-tp8-pp2-ep-0123abcd", "tensor-parallel degree 8"),
    ],
)
def test_the_degree_is_read_off_the_fingerprint(fingerprint: str, says: str) -> None:
    seen = replace(WELL, asked=Asked(200, 100, 0, 96, fingerprint))
    assert the("parallelism", seen).says == says


def test_a_fingerprint_of_another_kind_says_nothing() -> None:
    seen = replace(WELL, asked=Asked(200, 100, 0, 96, "fp_44709d6fcb"))
    assert the("parallelism", seen).verdict is Verdict.UNKNOWN
