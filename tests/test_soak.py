"""The soak's short form: see ``tests/soak.py``."""

import pytest

from tests import soak

pytestmark = pytest.mark.thorough


@pytest.mark.parametrize(
    "options",
    [
        ["--updates", "40000", "--users", "2000", "--seconds", "2"],
        ["--store", "valkey", "--users", "300", "--seconds", "3", "--restarts", "2"],
        ["--store", "sqlite", "--users", "300", "--seconds", "2", "--restarts", "1"],
    ],
    ids=["memory", "valkey", "sqlite"],
)
def test_soak(options, capsys):
    right = soak.main(options)
    assert right, capsys.readouterr().out
