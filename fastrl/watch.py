"""Watch a trained agent play: in a window if there is a display, else as a film.

python -m fastrl.watch breakout                   the weights that ship
python -m fastrl.watch runs/NAME --checkpoint best --seed 7
python -m fastrl.watch runs/NAME --no-window --out film.gif
python -m fastrl.watch breakout --episodes 5 --out best.mp4
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take a moment: a signal is answered meanwhile
    from fastrl.__main__ import run_named

    run_named("watch")

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy.typing as npt

from fastrl.base.commands import program
from fastrl.base.console import counted, say
from fastrl.base.errors import ConfigError, NoWindowError, RunError, Stopped
from fastrl.base.machine import has_display
from fastrl.base.ranges import AtLeast, Between, check
from fastrl.base.stop import Stop
from fastrl.cli import read, show_help
from fastrl.envs.names import is_custom, refuse_rules_of_atari
from fastrl.envs.rules import ProtocolName
from fastrl.film.video import PICTURES_PER_SECOND, check_film, write_film
from fastrl.play import games
from fastrl.play.acting import telling

if TYPE_CHECKING:  # PyTorch takes seconds to import, pygame is for windows: not before the flags are read
    from fastrl.dqn.agent import Agent
    from fastrl.film.window import Window

PROG = program("watch")
FRAMES_PER_SECOND = 60.0  # the emulator's


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to play and where to show it."""

    episodes: Annotated[int, AtLeast(1)] = 1
    """Whole games to play, one after another."""
    checkpoint: str = "newest"
    """Checkpoint of a run: `newest`, `best` (by evaluation), or a name from its folder checkpoints/."""
    last_weights: bool = False
    """Play by the last weights of a run that is judged by their average (--average-updates)."""
    make_env: str | None = None
    """Factory for a custom environment, as `my_module:make_env` (default: the one the run recorded)."""
    protocol: ProtocolName | None = None
    """Rules to play by (default: those of the training); the agent keeps its frame skip and its actions."""
    epsilon: Annotated[float, Between(0, 1)] = 0.01
    """Share of random actions."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seeds games and exploration."""
    window: bool | None = None
    """Show the game in a window, which Escape closes; off: make a film (default: a window, if one can be opened)."""
    out: Path | None = None
    """File for the film of the best game, .gif or .mp4 (default: with a window no film, else a GIF in a run's folder
    pictures/, or in the current folder)."""
    q_values: bool = True
    """Draw the values of all actions beside the pictures, and mark the action taken."""
    max_pictures: Annotated[int, AtLeast(1)] = 2_000
    """The film ends after N pictures, 15 of them per second."""

    def __post_init__(self) -> None:
        check(self)
        check_film(self.out)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    line = read(arguments, Arguments)
    if line.help:
        show_help(f"{PROG} RUN|GAME", __doc__, Arguments())
    args = Arguments(**line.given)
    if line.word is None:
        raise ConfigError(f"neither a run nor a game is given; try {PROG} breakout")
    import torch

    from fastrl.dqn.agent import load_agent

    agent = load_agent(line.word, args.checkpoint, args.make_env, last_weights=args.last_weights)
    torch.set_num_threads(1)  # with one observation at a time, more threads cost more in waiting than they save
    return watch(agent, args)


def watch(agent: Agent, args: Arguments) -> int:
    """Play until the last game is over, the window is closed or a signal arrives; return the exit status.

    Raises
    ------
    ConfigError
        If a window is asked for and cannot be opened, or a protocol for what is no Atari game.
    RunError
        If pictures are asked for, but there are none, or the film cannot be written; the message says why.
    """
    refuse_rules_of_atari(vars(args), agent.game)
    say(agent.about)
    window: Window | None = None
    try:
        if has_display() if args.window is None else args.window:
            window = _open_window(agent.game)
        return _watch(agent, args, window)
    except NoWindowError as error:  # at once, or when the first picture is there
        if args.window:
            raise ConfigError(f"--window is on, but {error}; give --no-window for a film") from error
        say(f"{error}; making a film instead")
    return _watch(agent, args, None)


def _watch(agent: Agent, args: Arguments, window: Window | None) -> int:
    best: games.Games | None = None
    film = args.out or agent.films / f"watch-{agent.origin.stem}{'-last' * args.last_weights}.gif"
    if args.out or window is None:
        check_film(film)
    with Stop() as stop:
        try:
            for number, game in enumerate(_play(agent, args, window, stop), start=1):
                points = f"{game.mean:,g} point{'s' * (game.mean != 1)}"
                say(f"game {number}: {points} in {counted(int(game.lengths[0]), 'step')}")
                best = game if best is None or game.mean > best.mean else best
        except Stopped:
            say("stopped")
        finally:
            if window:
                window.close()
    if best and best.film:
        write_film(film, best.film)
        say(f"film of the best game: {film}")
    if best and best.film_error:
        raise RunError(best.film_error)
    if best and not best.film and not (window and window.shown):
        if args.out:
            raise RunError(f"--out is {args.out}, but {games.NO_PICTURES}")
        say(games.NO_PICTURES)
    return 0 if stop.signal is None else 128 + stop.signal


def _play(agent: Agent, args: Arguments, window: Window | None, stop: Stop) -> Iterator[games.Games]:
    """Play one game after another; the games are the same with a window and without."""
    from fastrl.dqn.agent import greedy, rules_for

    q_values = greedy(agent.network)
    if window is None:
        q_values = telling(q_values, say)

    def act(stacks: npt.NDArray[Any]) -> npt.ArrayLike:
        stop.check()
        return q_values(stacks)

    for seed in range(args.seed, args.seed + args.episodes):
        yield games.play_games(
            agent.game,
            act,
            1,
            seed=seed,
            rules=rules_for(agent, args.protocol, epsilon=args.epsilon),
            backend="envpool" if agent.game == "catch" else "gymnasium",  # which shows every frame
            stack=agent.stack,
            film=args.out is not None or window is None,
            film_steps=args.max_pictures - 1,  # and the first picture
            show=window.draw if window else None,
            bars=args.q_values,
            threads=1,
            masked=agent.masked,
        )


def _open_window(game: str) -> Window:
    try:
        from fastrl.film.window import Window  # which loads pygame: a film needs none
    except ImportError as error:
        raise NoWindowError(f"no window can be opened ({error})") from error
    return Window(f"fastrl: {game}", PICTURES_PER_SECOND if game == "catch" or is_custom(game) else FRAMES_PER_SECOND)
