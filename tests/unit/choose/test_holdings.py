"""What replicas hold of a prompt: by what they were sent, by what they say, and how we check."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.choose.block_hash import OURS, SHA256, SHA256_CBOR, Chain, Hasher
from gateway.choose.block_index import BlockIndex
from gateway.choose.dispatch import PENDING_S, Dispatch, Grade
from gateway.choose.holdings import Holdings
from gateway.choose.kv_source import MOST_CHANGES, KvSource
from gateway.choose.text_chain import MARKS, STOPS, Prompt
from gateway.kv_cache import (
    BlocksCleared,
    BlocksRemoved,
    BlocksStored,
    Certainty,
    EngineFacts,
    Reading,
    Tokenised,
)
from gateway.request import GenerationRequest, Usage
from gateway.vocabulary import ModelName, ReplicaId
from serving.sim.block_hash import BlockHasher, HashAlgorithm, canonical_cbor, wire_hash
from tests.builders import a_route, altered

SIZE = 16
A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")


def text(prompt: bytes, *, model: str = "m", context: tuple[bytes, ...] = ()) -> Prompt:
    return Prompt(
        GenerationRequest(
            route=a_route(),
            model=ModelName(model),
            stream=True,
            prompt_bytes=len(prompt),
            prompt_tokens=len(prompt) // 4,
            max_tokens=None,
            prompt=prompt + b"]",
            context=tuple(("tools", part) for part in context),
        )
    )


def tokens_of(prompt: bytes) -> list[int]:
    """A token for every four bytes."""
    return [int.from_bytes(prompt[at : at + 4], "big") for at in range(0, len(prompt) // 4 * 4, 4)]


def tokenised(prompt: bytes, salt: str | None = None, adapter: str | None = None) -> Tokenised:
    edges = [(at, at // 4) for at in range(4, len(prompt) + 1, 4)]
    return Tokenised(tokens_of(prompt), edges, salt, adapter)


def names(hasher: Hasher, prompt: bytes, salt: str | None = None) -> list[int]:
    chain = Chain()
    for _ in chain.grow(hasher, (salt, None), tokens_of(prompt), SIZE):
        pass
    return list(chain.hashes)


def stored(prompt: bytes, hasher: Hasher = SHA256, start: int = 0) -> BlocksStored:
    chain = names(hasher, prompt)
    tokens = tokens_of(prompt)[start * SIZE : len(chain) * SIZE]
    return BlocksStored(chain[start:], chain[start - 1] if start else None, tokens, SIZE)


def learn(holdings: Holdings, dispatch: Dispatch, lesson: Tokenised) -> None:
    for _ in holdings.learn(dispatch, lesson):
        pass


def hits(holdings: Holdings, prompt: bytes, *names: ReplicaId) -> list[int]:
    return holdings.hits(text(prompt), names or (A, B)).tokens


def some_holdings(cache_tokens: int = 100_000) -> Holdings:
    return Holdings(cache_tokens, load_tokens_per_s=10_000.0, reads_all=True)


def exact(*replicas: ReplicaId) -> Holdings:
    """Replicas that publish events, with one block each told."""
    holdings = some_holdings()
    for replica in replicas or (A, B):
        holdings.certainty(replica, Certainty.EXACT)
        holdings.apply(replica, [stored(b"warm" * SIZE)])
    return holdings


PROMPT = bytes(range(256)) * 8  # 2048 bytes, 512 tokens, 32 blocks
MOST = 512 - SIZE  # its last token is always computed


# By what was sent


def test_what_was_sent_is_held_from_dispatch_on_and_by_nobody_else() -> None:
    holdings = some_holdings()
    holdings.dispatched(text(PROMPT), A, 0.0)
    assert hits(holdings, PROMPT) == [MOST, 0]
    assert hits(holdings, PROMPT[:1100] + b"and then another end" * 40) == [256, 0]
    assert hits(holdings, b"!" + PROMPT) == [0, 0]


def test_model_and_context_are_part_of_a_beginning() -> None:
    holdings = some_holdings()
    holdings.dispatched(text(PROMPT, context=(b"tools", b"salt")), A, 0.0)
    for other in (
        text(PROMPT),
        text(PROMPT, model="other", context=(b"tools", b"salt")),
        text(PROMPT, context=(b"tool", b"ssalt")),
        text(PROMPT, context=(b"salt", b"tools")),
    ):
        assert holdings.hits(other, (A,)).tokens == [0]


def test_a_failed_attempt_leaves_nothing_unless_somebody_else_has_the_same_beginning() -> None:
    holdings = some_holdings()
    failed, other = (holdings.dispatched(text(PROMPT), A, 0.0) for _ in range(2))
    failed.ended()
    assert hits(holdings, PROMPT) == [MOST, 0], "the other is still on its way"
    other.ended()
    assert hits(holdings, PROMPT) == [0, 0]
    assert len(holdings) == 0


def test_what_was_read_stays_though_a_later_one_fails() -> None:
    holdings = some_holdings()
    read, failed = (holdings.dispatched(text(PROMPT), A, 0.0) for _ in range(2))
    read.first_byte(0.1)
    failed.ended()
    read.ended()
    holdings.tidy(0.1 + PENDING_S)
    assert hits(holdings, PROMPT) == [MOST, 0]


def test_a_full_cache_loses_the_oldest_prompt_from_its_tail() -> None:
    holdings = some_holdings(cache_tokens=1024)
    for at, start in enumerate((b"a", b"b", b"c")):
        holdings.dispatched(text(start * 1600), A, at).first_byte(at)  # 384 tokens in marks
    found = [hits(holdings, start * 1600, A)[0] for start in (b"a", b"b", b"c")]
    assert found == [256, 384, 384]


def test_an_engine_tells_its_size_and_may_have_no_prefix_cache_at_all() -> None:
    holdings = some_holdings()
    holdings.described(A, EngineFacts(cache_tokens=128))
    holdings.dispatched(text(PROMPT), A, 0.0)
    assert holdings.cache(A).believed_tokens == 128
    holdings.described(B, EngineFacts(prefix_caching=False))
    holdings.dispatched(text(PROMPT), B, 0.0)
    assert hits(holdings, PROMPT, B) == [0]


def test_a_cache_that_keeps_less_than_was_thought_is_believed_to_be_smaller() -> None:
    holdings = some_holdings(cache_tokens=1024)
    for _ in range(30):
        dispatch = holdings.dispatched(text(PROMPT), A, 0.0)
        dispatch.answered(Usage(512, cached_tokens=0), 1.0)
    assert hits(holdings, PROMPT, A)[0] < 128
    assert holdings.cache(A).audit.predicted.over > 5
    for _ in range(60):
        holdings.dispatched(text(PROMPT), A, 0.0).answered(Usage(512, cached_tokens=MOST), 1.0)
    assert hits(holdings, PROMPT, A) == [MOST]


def test_a_response_that_says_nothing_teaches_nothing() -> None:
    holdings = some_holdings()
    holdings.dispatched(text(PROMPT), A, 0.0).answered(Usage(512), 1.0)
    tally = holdings.cache(A).audit.predicted
    assert (tally.exact, tally.over, tally.under) == (0, 0, 0)


def test_what_is_forgotten_is_swept_bit_by_bit_and_its_bit_serves_another() -> None:
    holdings = some_holdings()
    late = holdings.dispatched(text(PROMPT), A, 0.0)
    holdings.forget(A)
    assert hits(holdings, PROMPT, A) == [0]
    while len(holdings):
        holdings.tidy(0.0)
    holdings.dispatched(text(PROMPT), B, 0.0)
    late.ended()  # of a replica that is gone: must not take B's bit along
    assert hits(holdings, PROMPT) == [0, MOST]


# By what responses say of where prompts end

ASKED = 500  # tokens of PROMPT, as its response tells; 512 are what its bytes make likely
SAYS = b',{"role":"assistant","content":"well"},{"role":"user","content":"and then?"}'


def answered(
    holdings: Holdings, prompt: bytes, *, asked: int, found: int = 0, says: int = 21
) -> None:
    dispatch = holdings.dispatched(text(prompt), A, 0.0)
    dispatch.answered(Usage(asked, says, found), 1.0)
    dispatch.ended()


def test_the_next_turn_hits_the_last_one_and_its_answer_but_for_the_token_not_computed() -> None:
    holdings = some_holdings()
    answered(holdings, PROMPT, asked=ASKED, says=12)
    assert hits(holdings, PROMPT + SAYS) == [496, 0]
    answered(holdings, PROMPT, asked=ASKED, says=13)
    assert hits(holdings, PROMPT + SAYS) == [512, 0]
    assert hits(holdings, PROMPT + SAYS * 20) == [512, 0]
    assert holdings.hits(text(PROMPT + SAYS), (A,)).prompt_tokens == ASKED + len(SAYS) // 4


def test_the_same_prompt_hits_all_but_its_last_token() -> None:
    holdings = some_holdings()
    answered(holdings, PROMPT, asked=497)
    assert hits(holdings, PROMPT) == [496, 0]
    answered(holdings, PROMPT, asked=496)
    assert hits(holdings, PROMPT) == [480, 0]


@pytest.mark.parametrize(
    "goes_on",
    [
        b'x","role":"assistant"}',
        b',{"role":"user","content":"and"}',
        b',{"role":"tool"},' + SAYS * 9,
    ],
)
def test_what_goes_on_otherwise_is_no_next_turn(goes_on: bytes) -> None:
    holdings = some_holdings()
    answered(holdings, PROMPT[:-40], asked=ASKED)
    assert hits(holdings, PROMPT[:-40] + goes_on) in ([432, 0], [448, 0])


def test_where_answers_are_not_repeated_they_are_expected_no_more() -> None:
    """A template leaves reasoning out."""
    holdings = some_holdings()
    for _ in range(2):
        answered(holdings, PROMPT, asked=ASKED, says=200)
        assert hits(holdings, PROMPT + SAYS) == [688, 0]
        answered(holdings, PROMPT + SAYS, asked=530, found=496)
    answered(holdings, PROMPT, asked=ASKED, says=200)
    assert hits(holdings, PROMPT + SAYS) == [496, 0]
    for _ in range(2):
        answered(holdings, PROMPT + SAYS, asked=530, found=688)
        answered(holdings, PROMPT, asked=ASKED, says=200)
    assert hits(holdings, PROMPT + SAYS) == [688, 0], "until they are again"


def test_an_end_is_known_of_the_replica_that_answered() -> None:
    holdings = some_holdings()
    answered(holdings, PROMPT, asked=ASKED, says=30)
    holdings.dispatched(text(PROMPT), B, 0.0)
    assert hits(holdings, PROMPT + SAYS) == [528, 512], "B's by its marks"
    holdings.forget(A)
    assert hits(holdings, PROMPT + SAYS) == [0, 512]


def test_what_one_found_that_parted_from_a_known_prompt_the_next_one_will() -> None:
    holdings = some_holdings()
    system = PROMPT[:1024]
    for found in (240, 240, 272):  # by its bytes it would be 256
        answered(holdings, system + bytes([found % 256]) * 1000, asked=ASKED, found=found)
    assert hits(holdings, system + b"!" * 1000) == [272, 0]
    answered(holdings, system + b"?" * 1000, asked=ASKED, found=0)
    assert hits(holdings, system + b"!" * 1000) == [272, 0], "that was evicted"


def test_what_was_found_where_less_was_sent_says_nothing_of_where_prompts_part() -> None:
    holdings = some_holdings()
    system = PROMPT[:1024]
    answered(holdings, system + b"a" * 1000, asked=ASKED)
    holdings.dispatched(text(system[:512] + b"b" * 1000), B, 0.0).first_byte(0.0)
    dispatch = holdings.dispatched(text(system + b"c" * 1000), B, 0.0)
    dispatch.answered(Usage(ASKED, 1, 128), 0.0)
    dispatch.ended()
    assert hits(holdings, system + b"!" * 1000, A) == [256]


def test_failures_leave_nothing_behind() -> None:
    holdings = some_holdings()
    holdings.dispatched(text(PROMPT), A, 0.0).first_byte(0.0)
    sent = holdings._record(A).sent
    for at in range(1000):
        holdings.dispatched(text(b"%04d" % at * 100), A, 0.0).ended()
    assert len(holdings) == 1
    assert sent.in_line < 100
    assert hits(holdings, PROMPT, A) == [MOST]


# By what engines say


@pytest.mark.parametrize("hasher", [SHA256, SHA256_CBOR])
def test_our_chains_are_the_engines_own(hasher: Hasher) -> None:
    theirs = BlockHasher(HashAlgorithm(hasher.name))
    digest: bytes | None = None
    for at, name in enumerate(names(hasher, PROMPT, "salt")):
        block = tokens_of(PROMPT)[at * SIZE : (at + 1) * SIZE]
        digest = theirs.digest(digest, block, () if at else (("cache_salt", "salt"),))
        assert wire_hash(digest) == name


def test_integers_of_all_sizes_have_the_cbor_form_of_the_engine() -> None:
    from gateway.choose.block_hash import canonical_cbor as ours

    for value in (0, 23, 24, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, 2**64 - 1):
        assert ours((value, "é", b"x", None)) == canonical_cbor((value, "é", b"x", None))
    with pytest.raises(TypeError):
        ours(2**64)
    with pytest.raises(TypeError):
        ours(-1)


@pytest.mark.parametrize("hasher", [SHA256, SHA256_CBOR, OURS])
def test_once_a_prompt_has_been_tokenised_its_blocks_decide(hasher: Hasher) -> None:
    """For engines whose names we can work out, and for others, by a bridge."""
    holdings = some_holdings()
    for each in (A, B):
        holdings.certainty(each, Certainty.EXACT)
        holdings.apply(each, [stored(b"warm" * SIZE, hasher)])
    learn(holdings, holdings.dispatched(text(PROMPT), A, 0.0), tokenised(PROMPT))
    assert holdings.grade(A) is Grade.EXACT
    holdings.apply(B, [stored(PROMPT[:1024], hasher)])
    assert hits(holdings, PROMPT) == [MOST, 256], "A's are on their way, B's were told"
    holdings.apply(B, [BlocksRemoved(names(hasher, PROMPT)[8:16])])
    assert hits(holdings, PROMPT) == [MOST, 128]


def test_what_was_on_its_way_is_believed_only_until_events_should_have_come() -> None:
    holdings = exact()
    dispatch = holdings.dispatched(text(PROMPT), A, 0.0)
    learn(holdings, dispatch, tokenised(PROMPT))
    dispatch.first_byte(1.0)
    holdings.tidy(0.9 + PENDING_S)
    assert hits(holdings, PROMPT) == [MOST, 0]
    holdings.tidy(1.0 + PENDING_S)
    assert hits(holdings, PROMPT) == [0, 0]


def test_the_next_turn_is_looked_up_as_far_as_the_last_one_was_learnt_and_then_by_what_was_sent(
) -> None:  # fmt: skip
    holdings = exact()
    first = holdings.dispatched(text(PROMPT), A, 0.0)
    learn(holdings, first, tokenised(PROMPT))
    first.first_byte(0.0)
    holdings.apply(A, [stored(PROMPT)])
    longer = PROMPT + b"0123456789abcdef" * 64
    holdings.dispatched(text(longer), A, 1.0).first_byte(1.0)
    holdings.tidy(9.0)
    assert hits(holdings, longer + b"?" * 400) == [768, 0]
    holdings.apply(A, [BlocksRemoved(names(SHA256, PROMPT)[4:])])
    assert hits(holdings, longer + b"?" * 400) == [64, 0], "events say where it ends"


def test_a_prompt_that_parts_from_a_known_one_hits_what_they_share_and_no_more() -> None:
    holdings = exact()
    learn(holdings, holdings.dispatched(text(PROMPT), B, 0.0), tokenised(PROMPT))
    holdings.apply(A, [stored(PROMPT)])
    assert hits(holdings, PROMPT[:1024] + b"and then another end" * 60, A) == [256]


def test_what_was_learnt_under_another_salt_is_not_carried_on() -> None:
    holdings = exact()
    learn(holdings, holdings.dispatched(text(PROMPT), B, 0.0), tokenised(PROMPT))
    learn(holdings, holdings.dispatched(text(PROMPT), B, 0.0), tokenised(PROMPT, "salt"))
    holdings.apply(A, [stored(PROMPT)])
    assert hits(holdings, PROMPT, A) == [0]


def test_one_can_look_back_while_somebody_watches_and_not_too_far() -> None:
    source = KvSource(BlockIndex())
    source.apply([stored(b"warm" * SIZE)])
    first, second = source.watch(), source.watch()
    source.apply([stored(PROMPT), BlocksRemoved(names(SHA256, PROMPT)[5:6])])
    chain = names(SHA256, PROMPT)
    was = source.since(first)
    assert was == {("GPU", name): False for name in chain}
    assert source.prefix(chain, was) == 0
    assert source.prefix(chain, {}) == 5
    source.unwatch(first)
    assert source.since(second) is not None
    source.unwatch(second)
    assert source.since(second) is None
    third = source.watch()
    source.apply([BlocksStored(range(1, MOST_CHANGES + 2), chain[0], (), SIZE)])
    assert source.since(third) is None
    source.unwatch(third)


def test_a_turn_costs_its_suffix_only() -> None:
    holdings = exact()
    learn(holdings, holdings.dispatched(text(PROMPT * 9), A, 0.0), tokenised(PROMPT * 9))
    dispatch = holdings.dispatched(text(PROMPT * 9 + b"next"), A, 0.0)
    slices = list(holdings.learn(dispatch, tokenised(PROMPT * 9 + b"next")))
    assert len(slices) <= 1


def test_salted_and_adapted_prompts_share_nothing_with_plain_ones() -> None:
    holdings = exact()
    holdings.apply(A, [stored(PROMPT)])
    for context, salt, adapter in ((b"s", "s", None), (b"a", None, "s"), (b"p", None, None)):
        prompt = text(PROMPT, context=(context,))
        learn(holdings, holdings.dispatched(prompt, B, 0.0), tokenised(PROMPT, salt, adapter))
        found = holdings.hits(text(PROMPT, context=(context,)), (A,)).tokens
        assert found == [MOST if salt is adapter is None else 0]


def test_salted_blocks_are_found_by_name_where_the_engines_hash_allows_and_else_by_bridge() -> None:
    for hasher in (SHA256_CBOR, OURS):
        holdings = exact()
        if hasher is OURS:
            holdings = some_holdings()
            holdings.certainty(A, Certainty.EXACT)
        chain = names(hasher, PROMPT, "salt")
        keys = [["salt"], *[None] * (len(chain) - 1)]
        holdings.apply(A, [BlocksStored(chain, None, tokens_of(PROMPT), SIZE, extra_keys=keys)])
        dispatch = holdings.dispatched(text(PROMPT, context=(b"salt",)), B, 0.0)
        learn(holdings, dispatch, tokenised(PROMPT, "salt"))
        assert holdings.hits(text(PROMPT, context=(b"salt",)), (A,)).tokens == [MOST]


def test_blocks_of_adapters_are_found_by_a_bridge() -> None:
    holdings = exact()
    chain = list(range(1000, 1032))  # the engine's, from a path we do not know
    keys, tokens = [["lora"]] * 16, tokens_of(PROMPT)
    half = len(tokens) // 2
    events = [
        BlocksStored(chain[:16], None, tokens[:half], SIZE, adapter="lora", extra_keys=keys),
        BlocksStored(chain[16:], 1015, tokens[half:], SIZE, adapter="lora", extra_keys=keys),
    ]
    holdings.apply(A, events)
    prompt = text(PROMPT, model="lora")
    learn(holdings, holdings.dispatched(prompt, B, 0.0), tokenised(PROMPT, adapter="lora"))
    assert holdings.hits(text(PROMPT, model="lora"), (A,)).tokens == [MOST]
    holdings.apply(A, [BlocksRemoved(chain)])
    assert holdings.hits(text(PROMPT, model="lora"), (A,)).tokens == [0]


def test_what_is_in_another_medium_is_a_hit_that_takes_time_to_load() -> None:
    holdings = exact()
    learn(holdings, holdings.dispatched(text(PROMPT), B, 0.0), tokenised(PROMPT))
    chain = names(SHA256, PROMPT)
    holdings.apply(A, [stored(PROMPT[:512]), BlocksStored(chain[4:16], chain[3], (), SIZE, "CPU")])
    found = holdings.hits(text(PROMPT), (A, B))
    assert found.tokens == [256, MOST]
    assert found.load_s == [(256 - 128) / 10_000.0, 0.0]
    holdings.dispatched(text(PROMPT[:768]), A, 0.0)
    assert holdings.hits(text(PROMPT), (A,)).load_s == [(256 - 192) / 10_000.0], "on its way"


def test_an_engine_with_several_cache_groups_is_not_believed_to_be_exact() -> None:
    holdings = exact()
    learn(holdings, holdings.dispatched(text(PROMPT), B, 0.0), tokenised(PROMPT))
    holdings.apply(A, [stored(PROMPT), BlocksStored([5], None, list(range(16)), SIZE, group=1)])
    assert holdings.grade(A) is Grade.APPROXIMATE
    assert hits(holdings, PROMPT) == [0, MOST]
    assert holdings.cache(A).blocks == 0


def test_stores_that_do_not_match_their_tokens_are_taken_by_name_or_not_at_all() -> None:
    chain = names(SHA256, PROMPT)
    masked = BlocksStored(chain[:4], None, tokens_of(PROMPT), SIZE)
    holdings = exact()
    holdings.apply(A, [masked])
    assert holdings.cache(A).blocks == 5
    holdings = some_holdings()
    holdings.certainty(A, Certainty.EXACT)
    holdings.apply(A, [masked, BlocksStored([3], None, [-1] * SIZE, SIZE)])
    holdings.apply(A, [BlocksStored([4], None, [2**70] * SIZE, SIZE)])
    assert holdings.cache(A).blocks <= 1


@pytest.mark.parametrize("is_restarted", [True, False])
def test_a_cleared_or_restarted_engine_holds_nothing(is_restarted: bool) -> None:
    holdings = exact()
    dispatch = holdings.dispatched(text(PROMPT), A, 0.0)
    learn(holdings, dispatch, tokenised(PROMPT))
    holdings.apply(A, [stored(PROMPT)])
    assert hits(holdings, PROMPT, A) == [MOST]
    if is_restarted:
        holdings.retold(A)
    else:
        holdings.apply(A, [BlocksCleared()])
    assert hits(holdings, PROMPT, A) == [0]
    assert holdings.cache(A).blocks == 0


# How we check


def ask(holdings: Holdings, found: int, *, settle_first: bool = True) -> Dispatch:
    dispatch = holdings.dispatched(text(PROMPT), A, 0.0)
    if settle_first:
        learn(holdings, dispatch, tokenised(PROMPT))
    dispatch.answered(Usage(512, cached_tokens=found), 0.0)
    if not settle_first:
        learn(holdings, dispatch, tokenised(PROMPT))
    dispatch.ended()
    holdings.tidy(10.0)
    return dispatch


@pytest.mark.parametrize("settle_first", [True, False])
def test_what_a_request_stored_itself_does_not_count_as_its_hit(settle_first: bool) -> None:
    holdings = exact()
    ask(holdings, 0)  # from now on somebody tokenises
    holdings.apply(A, [stored(PROMPT[:256])])
    dispatch = holdings.dispatched(text(PROMPT), A, 0.0)
    holdings.apply(A, [stored(PROMPT, start=4), BlocksRemoved(names(SHA256, PROMPT)[3:4])])
    for step in (0, 1) if settle_first else (1, 0):
        if step:
            dispatch.answered(Usage(512, cached_tokens=64), 1.0)
        else:
            learn(holdings, dispatch, tokenised(PROMPT))
    tally = holdings.cache(A).audit.settled
    assert (tally.exact, tally.over, tally.under) == (1, 0, 0)


def test_wrong_events_are_asked_for_again_then_doubted_then_trusted_when_right_for_a_while() -> (
    None
):
    holdings = exact()
    ask(holdings, 0)
    holdings.apply(A, [stored(PROMPT)])
    assert holdings.repairs() == []
    for _ in range(3):
        ask(holdings, 0)
    assert holdings.repairs() == [A]
    assert holdings.repairs() == []
    assert holdings.grade(A) is Grade.EXACT
    for _ in range(3):
        ask(holdings, 0)
    assert holdings.repairs() == []
    assert holdings.grade(A) is Grade.APPROXIMATE
    for _ in range(16):
        ask(holdings, MOST)
    assert holdings.grade(A) is Grade.EXACT


def test_an_engine_that_found_more_than_it_told_is_asked_once_to_tell_what_it_reuses() -> None:
    holdings = exact()
    ask(holdings, 0)
    assert not ask(holdings, MOST, settle_first=False).wants_report
    assert holdings.dispatched(text(PROMPT), A, 0.0).wants_report
    assert not holdings.dispatched(text(PROMPT), A, 0.0).wants_report
    holdings.apply(A, [stored(PROMPT), stored(PROMPT)])
    holdings.apply(A, [BlocksRemoved(names(SHA256, PROMPT)[8:])])
    holdings.tidy(99.0)
    assert holdings.cache(A).blocks == 9, "told again, it was not counted again"


def test_grades_say_what_was_heard() -> None:
    holdings = exact()
    assert holdings.grade(A) is Grade.APPROXIMATE, "nobody tokenises"
    ask(holdings, 0)
    for certainty, grade in (
        (Certainty.EXACT, Grade.EXACT),
        (Certainty.PARTIAL, Grade.PARTIAL),
        (Certainty.DEGRADED, Grade.PARTIAL),
        (Certainty.SILENT, Grade.APPROXIMATE),
    ):
        holdings.certainty(A, certainty)
        assert holdings.grade(A) is grade
    assert holdings.grade(C) is Grade.APPROXIMATE


def test_marks_ascend_and_no_prompt_is_hashed_beyond_the_stop_where_nobody_holds_more() -> None:
    assert list(MARKS) == sorted(set(MARKS))
    holdings = some_holdings()
    holdings.dispatched(text(PROMPT[:256]), A, 0.0)
    short, long = PROMPT[:256] + b"!" * 999, PROMPT[:256] + b"!" * 9999
    # What is known of a long one is looked at mark by mark once, and then in one piece.
    for prompt, hashed in (
        (short, 6),
        (b"!" * 9999, 1),
        (long, STOPS[0]),
        (long, 3),
        (long[:256] + b"?" * 9999, 3),
    ):
        asked = text(prompt)
        holdings.hits(asked, (A, B))
        assert len(asked.hashes) == hashed


# What is found out before a prompt is sent


def read_first(holdings: Holdings, prompt: bytes) -> Prompt:
    """The prompt, tokenised and named before it is sent."""
    reading = Reading()
    reading.early(tokenised(prompt))
    for _ in holdings.name(reading):
        pass
    return Prompt(altered(text(prompt).request, reading=reading))


@given(held=st.lists(st.integers(0, 32), min_size=2, max_size=2), sent=st.integers(0, 2048))
def test_a_prompt_that_was_read_first_is_looked_up_by_its_own_names(
    held: list[int], sent: int
) -> None:
    holdings = exact(A, B)
    for replica, blocks in zip((A, B), held, strict=True):
        if blocks:
            holdings.apply(replica, [stored(PROMPT[: blocks * SIZE * 4])])
    if sent:
        holdings.dispatched(text(PROMPT[:sent]), B, 0.0).first_byte(0.0)
        holdings.tidy(PENDING_S)
    found = holdings.hits(read_first(holdings, PROMPT), (A, B))
    assert found.prompt_tokens == 512
    assert found.tokens[0] == min(held[0] * SIZE, MOST)
    assert found.tokens[1] == min(held[1] * SIZE, MOST), "events decide, not what was sent"


def test_names_go_with_the_request_they_were_made_for() -> None:
    holdings = exact(A, B)
    holdings.apply(A, [stored(PROMPT)])
    prompt = read_first(holdings, PROMPT)
    assert holdings.hits(prompt, (A, B)).tokens == [MOST, 0]
    assert hits(holdings, PROMPT) == [0, 0], "others are not looked up so"
    assert len(holdings._named) == 1
    del prompt
    gc.collect()
    assert len(holdings._named) == 0


def test_a_prompt_that_was_read_first_is_not_hashed_again_to_be_learnt() -> None:
    holdings = exact(A, B)
    holdings.apply(A, [stored(PROMPT)])
    dispatch = holdings.dispatched(read_first(holdings, PROMPT), A, 0.0)
    assert list(holdings.learn(dispatch, tokenised(PROMPT))) == []
    assert hits(holdings, PROMPT, A, B) == [MOST, 0]
    dispatch.answered(Usage(512, cached_tokens=MOST), 1.0)
    assert holdings.cache(A).audit.settled.exact == 1


def test_a_cache_fuller_than_we_made_it_was_filled_by_others() -> None:
    holdings = exact(A, B)
    others = bytes(range(256)) * 40  # 2560 tokens
    holdings.apply(A, [stored(others)])
    holdings.dispatched(text(others), B, 0.0)
    holdings.apply(B, [stored(others)])
    assert holdings.untold == frozenset(), "not looked yet"
    holdings.tidy(0.0)
    assert holdings.untold == {A}
    holdings.certainty(A, Certainty.SILENT)
    holdings.tidy(0.0)
    assert holdings.untold == frozenset()


def test_a_prompt_is_new_while_less_than_half_of_it_is_known() -> None:
    holdings = some_holdings()
    assert holdings.is_new(text(PROMPT))
    holdings.dispatched(text(PROMPT[:1000] + b"!" * 1048), A, 0.0)
    assert holdings.is_new(text(PROMPT))
    holdings.dispatched(text(PROMPT[:1100] + b"!" * 948), A, 0.0)
    assert not holdings.is_new(text(PROMPT))
