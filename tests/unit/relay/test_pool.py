"""The pool's edges; its laws are in tests/property/test_pool_laws.py."""

from __future__ import annotations

from gateway.relay.pool import Pool


def test_a_connection_is_too_old_from_its_limit_on() -> None:
    pool: Pool[str, str] = Pool(4.0, 2)
    pool.put_back("r1", "a", 10.0)
    assert pool.take("r1", 14.0) is None
    assert pool.expire(14.0) == ["a"]
    pool.put_back("r1", "a", 10.0)
    assert pool.take("r1", 13.999) == "a"


def test_replicas_do_not_share_connections() -> None:
    pool: Pool[str, str] = Pool(4.0, 2)
    pool.put_back("r1", "a", 0.0)
    assert pool.take("r2", 0.0) is None
    pool.remove("r2", "a")
    assert pool.take("r1", 0.0) == "a"


def test_its_repr_tells_what_is_idle_where() -> None:
    pool: Pool[str, str] = Pool(4.0, 2)
    pool.put_back("r1", "a", 0.0)
    pool.put_back("r1", "b", 0.0)
    assert repr(pool) == "<Pool idle [r1: 2]>"
