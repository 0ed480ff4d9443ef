import pytest
from telebot import util

from tests.updates import UPDATES, VARIANTS, make

EVERY = [*UPDATES.items(), *VARIANTS.values()]


def test_every_update_type_has_an_entry():
    """Also those that the installed version doesn't know yet."""
    assert set(UPDATES) >= set(util.update_types)


@pytest.mark.parametrize(("update_type", "payload"), EVERY, ids=[*UPDATES, *VARIANTS])
def test_it_parses(update_type, payload):
    update = make(update_type, payload)

    assert type(update).__module__ == "telebot.types"
    for name in ("user", "from_user", "chat", "sender_chat", "voter_chat", "actor_chat"):
        sent = payload.get("from" if name == "from_user" else name)
        if sent is not None:
            assert getattr(update, name).id == sent["id"]
