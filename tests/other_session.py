"""Another session than the handler's, and work that is done in a block."""

import pytest

from telesession import with_session


def exec_in(block, work=lambda: None):
    with block:
        work()


@pytest.fixture
def other(store):
    """Another session than the handler's."""
    return with_session(property="other", store=store)
