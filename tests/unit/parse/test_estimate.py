"""Prompt tokens are estimated from what replicas report, and no report can spoil the estimate."""

from __future__ import annotations

from gateway.parse.estimate import LEAST, MOST, Estimator
from gateway.vocabulary import ModelName

M, N = ModelName("m"), ModelName("n")


def test_four_bytes_are_a_token_until_a_model_has_answered() -> None:
    assert Estimator().prompt_tokens(M, 400) == 100


def test_the_ratio_of_a_model_settles_at_what_is_reported_and_others_stay() -> None:
    estimator = Estimator()
    for _ in range(200):
        estimator.learn(M, 300, 150)
    assert 149 <= estimator.prompt_tokens(M, 300) <= 150
    assert estimator.prompt_tokens(N, 300) == 75


def test_no_report_can_make_prompts_free_or_endless() -> None:
    for prompt_bytes, prompt_tokens in ((10**12, 1), (1, 10**12)):
        estimator = Estimator()
        for _ in range(500):
            estimator.learn(M, prompt_bytes, prompt_tokens)
        assert 1000 / MOST - 1 <= estimator.prompt_tokens(M, 1000) <= 1000 / LEAST


def test_reports_of_nothing_teach_nothing() -> None:
    estimator = Estimator()
    for prompt_bytes, prompt_tokens in ((0, 5), (5, 0), (-1, 5), (5, -1)):
        estimator.learn(M, prompt_bytes, prompt_tokens)
    assert estimator.prompt_tokens(M, 400) == 100
