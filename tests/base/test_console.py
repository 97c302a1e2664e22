"""Words for people."""

from fastrl.base.console import counted


def test_a_noun_goes_by_its_number():
    assert [counted(n, "game") for n in (0, 1, 2, 1000)] == ["0 games", "1 game", "2 games", "1,000 games"]
