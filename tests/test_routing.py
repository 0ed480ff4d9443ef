"""5.8 `Declaration.when`: no update is lost, on threads and processes, whatever comes between."""

import pytest

from telesession import MemoryStore, with_session
from tests import when_bots
from tests.routing import routing
from tests.worker import Worker, connect

nothing_left = when_bots.nothing_left

#: What an update does to its session in `routing`, beside being handled.
EACH = ("opened", "before", "after")


@pytest.mark.parametrize("middlewares", [False, True], ids=["plain", "class middlewares"])
@pytest.mark.parametrize("where", ["memory", "sqlite", "redis"])
def test_nothing_is_lost_whatever_comes_in_between(request, where, middlewares):
    """Contract 5.8: 8 threads, filters that open sessions, call decorated functions and feed
    another bot, middlewares and other handlers: every update is handled, and every change kept.
    """
    store = MemoryStore()
    if where == "sqlite":
        from telesession.sql import SQLStore

        store = SQLStore(request.getfixturevalue("sqlite"))
    elif where == "redis":
        from telesession.redis import RedisStore

        store = RedisStore(request.getfixturevalue("valkey"))
    total = 8 * 10
    done = routing(store, 8, 10, middlewares)
    check_routed(store, done, total, middlewares)


@pytest.mark.parametrize("where", ["sqlite", "redis"])
def test_nothing_is_lost_between_processes(request, where):
    """Contract 5.8: the same for two processes of 4 threads."""
    if where == "redis":
        request.getfixturevalue("valkey")
        url = f"redis://127.0.0.1:{request.getfixturevalue('valkey_port')}"
    else:
        url = request.getfixturevalue("sqlite_url")
    with Worker(url, "route", 4, 10) as one, Worker(url, "route", 4, 10) as two:
        for worker in (one, two):
            assert worker.read() == "ready"
        for worker in (one, two):
            worker.go()
        counted = [worker.read() for worker in (one, two)]
    done = {name: sum(each.get(name, 0) for each in counted) for name in {*counted[0], *counted[1]}}
    with connect(url) as store:
        check_routed(store, done, 80, True)


def check_routed(store, done, total, middlewares):
    assert (done["lost"], done["handled"]) == (0, total)
    kept = with_session(store=store).peek(key="42:42")
    record = with_session(store=store, property="record").peek(key=42)
    assert kept.pop("n") == total
    assert {**kept, **record} == {
        name: times for name, times in done.items() if name not in ("lost", "handled")
    }
    for name in EACH[: 3 if middlewares else 1]:
        assert done[name] == total
