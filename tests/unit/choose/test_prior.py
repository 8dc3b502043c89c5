"""A calibration's profile as the router reads it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.prior import MOST_ATTENTION_TOKENS, Prior, ProfileError, read_profile
from serving.sim.settings import load_profile, shipped_profiles


def _profile(token_s: float, pair_s: float, ranks: int | None = None) -> bytes:
    said: dict[str, object] = {
        "name": "p",
        "timing": {"prefill_token_s": token_s, "prefill_token_pair_s": pair_s, "base_s": 1},
    }
    if ranks is not None:
        said["origin"] = {"tensor_parallel": ranks, "machine": "m"}
    return json.dumps(said).encode()


def test_rate_and_attention_are_taken_from_the_timing() -> None:
    assert read_profile(_profile(1e-3, 1e-7)) == Prior(1000.0, 10_000)
    assert read_profile(_profile(1e-3, 1e-7, ranks=4)) == Prior(250.0, 10_000)
    assert read_profile(_profile(1e-3, 0.0)).attention_tokens == MOST_ATTENTION_TOKENS


@pytest.mark.parametrize("name", shipped_profiles())
def test_the_profiles_we_ship_are_read(name: str) -> None:
    profile = load_profile(name)
    prior = read_profile(msgspec.json.encode(profile))
    ranks = profile.origin.tensor_parallel if profile.origin else 1
    assert prior.prior_rate_per_s * ranks * profile.timing.prefill_token_s == pytest.approx(1.0)


@given(st.binary() | st.builds(_profile, st.floats(), st.floats(), st.integers(-3, 9)))
def test_anything_else_is_a_profile_error(text: bytes) -> None:
    try:
        prior = read_profile(text)
    except ProfileError:
        return
    assert prior.prior_rate_per_s > 0.0
    assert prior.attention_tokens >= 1


def test_the_gateway_takes_a_profile_on_its_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from gateway.__main__ import main

    path = tmp_path / "profile.json"
    path.write_text("{}")
    assert main(["gateway", "--replica", "http://a:1", "--profile", str(path)]) == 2
    assert "not a profile" in capsys.readouterr().err
