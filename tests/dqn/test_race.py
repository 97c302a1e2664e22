"""The fastest of several ways is found in turns, in time, and noise does not choose."""

from __future__ import annotations

import itertools

import pytest

from fastrl.dqn.race import LEAST_TURNS, MOST_TURNS, TURN_SECONDS, Race


class World:
    """A clock, and ways whose work moves it on by what they are said to take: a number, or numbers in a cycle."""

    def __init__(self, seconds, build=0.0, first=None):
        self.now, self.build_seconds, self.first = 0.0, build, first or {}
        self.seconds = {way: itertools.cycle(s if isinstance(s, list) else [s]) for way, s in seconds.items()}
        self.built, self.log = [], []

    def build(self, way):
        self.built.append(way)
        self.now += self.build_seconds
        pending = [self.first[way]] if way in self.first else []

        def work():
            self.log.append(way)
            self.now += pending.pop() if pending else next(self.seconds[way])

        return work

    def race(self, deadline=1e9):
        return Race(self.build, deadline, clock=lambda: self.now)


@pytest.mark.parametrize(
    ("a", "b", "c", "winner"),
    [
        (1.0, 1.0, 1.0, "a"),
        (1.0, 0.96, 1.0, "a"),  # a tie goes to the champion
        (1.0, 0.94, 1.0, "b"),
        (1.0, 1.3, 0.5, "c"),
        (1.0, 0.9, 0.5, "c"),
        (1.0, 0.52, 0.5, "b"),  # and among challengers to the first
        (1.0, 0.54, 0.5, "c"),
        (1.0, 1.2, 1.4, "a"),
    ],
)
def test_the_fastest_wins_and_a_tie_goes_to_who_stands_first(a, b, c, winner):
    world = World({"a": a, "b": b, "c": c})
    assert world.race().winner("a", ["b", "c"]) == winner


def test_without_a_challenger_the_champion_wins():
    assert World({"a": 1.0}).race().winner("a", []) == "a"


def test_ways_take_turns_and_a_turn_has_a_few_pieces_unless_they_are_long():
    world = World({"a": 0.001, "b": 0.001})
    world.race().winner("a", ["b"])
    turns = [(way, len(list(group))) for way, group in itertools.groupby(world.log)]
    assert turns[:2] == [("a", 1), ("b", 1)]  # warm up
    assert {way for way, _ in turns} == {"a", "b"}
    assert max(count for _, count in turns) == 6  # the order is reversed every other round
    assert len(world.log) == 2 + 2 * 3 * MOST_TURNS
    world = World({"a": 2 * TURN_SECONDS, "b": 2 * TURN_SECONDS})
    world.race().winner("a", ["b"])
    assert len(world.log) == 2 + 2 * MOST_TURNS


def test_what_is_made_at_the_first_call_is_not_counted():
    world = World({"a": 1.0, "b": 0.5}, first={"b": 30.0})
    assert world.race().winner("a", ["b"]) == "b"


def test_the_machine_may_change_its_speed_for_all_ways_in_the_middle():
    """Ratios are taken within rounds: b is twice as fast in each, though its slow turns are the slowest of all."""
    scale = [1, 1, 1, 1, 9, 9, 9, 9]
    world = World({"a": [1.0 * s for s in scale], "b": [0.8 * s for s in scale]})
    assert world.race().winner("a", ["b"]) == "b"


def test_a_way_that_wins_half_of_its_turns_by_much_is_noise():
    world = World({"a": 1.0, "b": [1.1, 0.3]})
    assert world.race().winner("a", ["b"]) == "a"


@pytest.mark.parametrize(("slow", "turns"), [(1.6, 1), (1.3, 2)])
def test_a_way_that_is_far_behind_leaves_early(slow, turns):
    world = World({"a": 1.0, "b": slow, "c": 0.99})
    world.race().winner("a", ["b", "c"])
    assert world.log.count("b") == 1 + turns
    assert world.log.count("c") == 1 + MOST_TURNS


@pytest.mark.parametrize(("falling", "built"), [(True, ["64", "32", "16", "8", "4"]), (False, None)])
def test_below_a_number_of_threads_that_is_beaten_no_other_is_tried(falling, built):
    seconds = {"64": 1.0, "32": 0.7, "16": 0.5, "8": 0.6, "4": 1.6, "2": 3.1, "1": 6.0}
    world = World(seconds)
    assert world.race().winner("64", list(seconds)[1:], falling=falling) == "16"
    assert world.built == (built or list(seconds))


@pytest.mark.parametrize("deadline", [0.0, 0.5, 1, 2, 3, 5, 8, 13, 30, 100])
@pytest.mark.parametrize("work", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("build", [0.05, 0.8])
def test_nothing_is_begun_that_would_not_end_in_time(deadline, work, build):
    world = World({"a": work, "b": 0.8 * work, "c": 0.5 * work, "d": 2.9 * work}, build)
    won = world.race(deadline).winner("a", ["b", "c", "d"])
    assert world.now <= max(deadline, build + work)  # the champion alone is built and called once in any case
    assert won == "a" or world.log.count(won) > LEAST_TURNS
    if deadline == 100:
        assert won == "c"


def test_a_machine_that_becomes_slow_in_the_middle_costs_one_round():
    world = World({"a": [0.1] * 3 + [2.0] * 99, "b": [0.1] * 3 + [2.0] * 99})
    world.race(deadline=3.0).winner("a", ["b"])
    assert world.log.count("a") == world.log.count("b") == 4
    assert world.now == pytest.approx(6 * 0.1 + 2 * 2.0)


def test_a_stage_ends_at_its_own_time_and_the_next_continues_with_what_is_built():
    world = World({"a": 0.1, "b": 0.05, "c": 0.04}, build=0.1)
    race = world.race(deadline=60)
    assert race.winner("a", ["b"], until=3) == "b"
    assert world.now <= 3
    assert race.winner("b", ["c"]) == "c"
    assert world.built == ["a", "b", "c"]


@pytest.mark.parametrize(("a", "steady"), [(1.0, True), ([1.0, 1.1, 1.05], True), ([1.0, 2.0, 1.5, 0.5], False)])
def test_a_race_says_whether_the_machine_was_steady(a, steady):
    world = World({"a": a, "b": 1.0})
    race = world.race()
    race.winner("a", ["b"])
    assert race.is_steady("a") == steady
    assert not race.is_steady("nobody")
    alone = world.race()
    alone.winner("a", [])
    assert not alone.is_steady("a")  # which was not measured
