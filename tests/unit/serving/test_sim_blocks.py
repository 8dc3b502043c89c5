"""Blocks, their hashes, and what a request sees of them."""

from __future__ import annotations

import msgspec
import pytest

from serving.sim.block_hash import BlockHasher, HashAlgorithm, canonical_cbor, wire_hash
from serving.sim.blocks import BlockPool
from serving.sim.kv_cache import Adapter, BlockRemoved, BlockStored, CacheKey, KvCache

FIRST = list(range(16))
SECOND = [2**31 + 5, 70_000, 3, 2**33 + 1] * 4
KEYS = (("lora", "ad", "path/ad"), ("cache_salt", "s"))


@pytest.mark.parametrize(
    ("algorithm", "first", "second", "keyed"),
    [
        (
            HashAlgorithm.SHA256,
            "fe8fa5dda3210d0ca2031e37cbe3b001186773cd1c710beb2d45fcb51d434798",
            "cb4ebbaa85b7634388f812e5eaea7a2ccec376db954468100e06f0a2dba05d4d",
            "c892f28829c085fb6d7382983fe4feeccbeebe336292cd85ff66b6756e187601",
        ),
        (
            HashAlgorithm.SHA256_CBOR,
            "dc918a88b139e5afe60b88eda27508d4aee16c10fdc354791efea06206ac0749",
            "261a3976fbcf26e83bc0b11de337eb5e29baa2c7534166b257901f408d35752f",
            "a95907520f97a7b5009e7a66085ba5f411f496197012aee0d96394476d0108dc",
        ),
    ],
)
def test_block_hashes_are_those_of_vllm_0_32(
    algorithm: HashAlgorithm, first: str, second: str, keyed: str
) -> None:
    """Expected values computed with vllm/utils/hashing.py of release 0.32.0."""
    hasher = BlockHasher(algorithm)
    parent = hasher.digest(None, FIRST, ())
    assert parent.hex() == first
    assert hasher.digest(parent, SECOND, ()).hex() == second
    assert hasher.digest(None, FIRST, KEYS).hex() == keyed


@pytest.mark.parametrize(
    ("value", "encoded"),
    [
        (0, "00"),
        (23, "17"),
        (24, "1818"),
        (100, "1864"),
        (1000, "1903e8"),
        (1_000_000, "1a000f4240"),
        (1_000_000_000_000, "1b000000e8d4a51000"),
        (b"\x01\x02\x03\x04", "4401020304"),
        ("IETF", "6449455446"),
        ((1, 2, 3), "83010203"),
        (None, "f6"),
    ],
)
def test_cbor_is_that_of_rfc_8949_appendix_a(value: object, encoded: str) -> None:
    assert canonical_cbor(value).hex() == encoded


def test_cbor_refuses_what_it_cannot_say() -> None:
    with pytest.raises(TypeError):
        canonical_cbor(-1)
    with pytest.raises(TypeError):
        canonical_cbor(1 << 64)


def test_a_block_is_named_by_the_low_64_bits_of_its_digest() -> None:
    assert wire_hash(bytes(24) + b"\x00\x00\x00\x00\x00\x00\x01\x02") == 0x102
    assert wire_hash(b"\xff" * 32) == 2**64 - 1


def test_a_block_given_back_is_found_until_it_is_taken_again() -> None:
    pool = BlockPool(2)
    (block,), _ = pool.take(1)
    pool.remember(block, b"h")
    pool.give_back([block])
    assert pool.find(b"h") == block
    _, forgotten = pool.take(2)
    assert forgotten == [b"h"]
    assert pool.find(b"h") is None


def test_the_block_given_back_longest_ago_is_evicted_first() -> None:
    pool = BlockPool(3)
    blocks, _ = pool.take(3)
    for block, digest in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.remember(block, digest)
    pool.give_back([blocks[1]])
    pool.give_back([blocks[2], blocks[0]])
    assert [pool.take(1)[1] for _ in range(3)] == [[b"b"], [b"c"], [b"a"]]


def test_blocks_without_content_are_taken_before_cached_ones() -> None:
    pool = BlockPool(3)
    blocks, _ = pool.take(3)
    pool.remember(blocks[0], b"a")
    pool.give_back([blocks[0]])
    pool.give_back([blocks[2], blocks[1]])
    assert pool.take(2) == ([blocks[2], blocks[1]], [])


def test_a_shared_block_is_free_only_when_its_last_holder_lets_go() -> None:
    pool = BlockPool(1)
    (block,), _ = pool.take(1)
    pool.share([block])
    pool.give_back([block])
    assert pool.free == 0
    pool.give_back([block])
    assert pool.free == 1
    with pytest.raises(ValueError, match="free already"):
        pool.give_back([block])


def test_taking_too_many_changes_nothing() -> None:
    pool = BlockPool(2)
    with pytest.raises(ValueError, match="3 blocks asked, 2 free"):
        pool.take(3)
    assert pool.free == 2


def test_twins_are_both_found_and_forgotten_one_by_one() -> None:
    pool = BlockPool(2)
    (one, two), _ = pool.take(2)
    pool.remember(one, b"h")
    pool.remember(two, b"h")
    pool.give_back([one, two])
    assert pool.take(1) == ([one], [b"h"])
    assert pool.find(b"h") == two


def test_check_sees_a_block_that_is_lost() -> None:
    pool = BlockPool(2)
    (block,), _ = pool.take(1)
    pool.remember(block, b"h")
    pool.check()
    del pool._by_digest[b"h"]
    with pytest.raises(AssertionError, match="lost"):
        pool.check()


def a_cache(blocks: int = 8, block_size: int = 4) -> KvCache:
    return KvCache(BlockPool(blocks), block_size, BlockHasher(HashAlgorithm.SHA256))


def test_a_prompt_is_never_found_whole() -> None:
    cache = a_cache()
    first = cache.open(range(8), CacheKey())
    assert cache.hold(first, 8)
    assert cache.cached_blocks(cache.open(range(8), CacheKey())) == first.blocks[:1]
    assert cache.cached_blocks(cache.open(range(9), CacheKey())) == first.blocks


@pytest.mark.parametrize(
    "other",
    [CacheKey(salt="s"), CacheKey(adapter=Adapter("a", "p", 1))],
)
def test_another_salt_or_adapter_shares_nothing(other: CacheKey) -> None:
    cache = a_cache()
    assert cache.hold(cache.open(range(8), CacheKey()), 8)
    assert cache.cached_blocks(cache.open(range(9), other)) == []


def test_stored_and_removed_blocks_are_told_as_vllm_tells_them() -> None:
    cache = a_cache(blocks=3)
    key = CacheKey(Adapter("ad", "p", 7), salt="s", session="me")
    holding = cache.open(range(12), key)
    assert cache.hold(holding, 8)
    assert cache.hold(holding, 12)
    head, tail = cache.take_events()
    assert msgspec.to_builtins(head) == {
        "type": "BlockStored",
        "block_hashes": [wire_hash(digest) for digest in holding.digests[:2]],
        "parent_block_hash": None,
        "token_ids": list(range(8)),
        "block_size": 4,
        "lora_id": 7,
        "medium": "GPU",
        "lora_name": "ad",
        "extra_keys": [("ad", "s"), ("ad",)],
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
        "session_id": "me",
    }
    assert isinstance(tail, BlockStored)
    assert tail.parent_block_hash == wire_hash(holding.digests[1])
    cache.let_go(holding)
    assert cache.hold(cache.open(range(50, 54), CacheKey()), 4)
    removed, _ = cache.take_events()
    assert removed == BlockRemoved([wire_hash(holding.digests[2])], "GPU", group_idx=0)


def test_a_reused_prefix_is_announced_only_when_asked() -> None:
    cache = a_cache()
    first = cache.open(range(9), CacheKey())
    assert cache.hold(first, 9)
    stored = cache.take_events()
    for announce in (False, True):
        again = cache.open(range(9), CacheKey())
        cache.share(again, cache.cached_blocks(again), announce)
        assert cache.take_events() == (stored if announce else [])


def test_the_cache_is_cleared_only_when_nobody_uses_it() -> None:
    cache = a_cache()
    holding = cache.open(range(8), CacheKey())
    assert cache.hold(holding, 8)
    assert not cache.clear()
    cache.let_go(holding)
    cache.take_events()
    assert cache.clear()
    assert msgspec.to_builtins(cache.take_events()) == [{"type": "AllBlocksCleared"}]
    assert cache.cached_blocks(cache.open(range(9), CacheKey())) == []
