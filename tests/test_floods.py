"""5.2 The floods' short form: see ``tests/floods.py``."""

import pytest

from telesession import MemoryStore
from tests import floods

pytestmark = pytest.mark.thorough


@pytest.fixture(params=["memory", "sqlite", "redis"])
def make_store(request):
    """What makes an empty store of each kind."""
    if request.param == "memory":
        return MemoryStore
    if request.param == "sqlite":
        from telesession.sql import SQLStore

        store = SQLStore(request.getfixturevalue("sqlite"))
    else:
        from telesession.redis import RedisStore

        store = RedisStore(request.getfixturevalue("valkey"))
    return lambda: store


@pytest.mark.parametrize(
    "form", floods.FORMS, ids=lambda form: "-".join(str(value) for value in form.values())
)
def test_another_user_waits_a_tenth_of_a_handler(make_store, form):
    """Contract 5.2. On a busy machine, where starting 20 threads takes longer than 10 ms, a
    handler of a second tells: the other user's wait is no part of it.
    """
    for handler in [floods.HANDLER] * 3 + [1.0] * 4 + [3.0]:
        store = make_store()
        figure = floods.Figure(store, handler=handler, **form)
        assert figure.wrong == []
        if figure.waited < handler / 10:
            break
        floods.empty(store)
    assert figure.waited < handler / 10


def test_random_floods(make_store):
    """Contract 5.2: nothing is lost, run twice or overtaken; 30 floods, 10 for each store."""
    assert list(floods.floods(make_store, range(1000, 1010))) == []
