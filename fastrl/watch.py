"""Watch a trained agent play: in a window where there is a display, as a film where there is none.

python -m fastrl.watch breakout                         the weights that ship
python -m fastrl.watch runs/NAME --checkpoint best --seed 7
python -m fastrl.watch runs/NAME --no-window --out film.gif
python -m fastrl.watch breakout --episodes 5 --out best.mp4
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fastrl.checks import at_least
from fastrl.command import examples, parse, program, run_command
from fastrl.config import ConfigError
from fastrl.evaluate import NO_PICTURES, Agent, greedy, load_agent, rules_for
from fastrl.extras import need
from fastrl.gymnasium_envs import is_own
from fastrl.rules import ProtocolName
from fastrl.screen import say
from fastrl.stop import Stop, Stopped
from fastrl.video import PICTURES_PER_SECOND, check_film, write_film

if TYPE_CHECKING:
    from fastrl.games import Games

PROG = program("watch")
FRAMES_PER_SECOND = 60.0  # the emulator's
WINDOW_HEIGHT = 640


def has_display() -> bool:
    """Whether the environment names a display to open windows on."""
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to play and where to show it."""

    episodes: int = 1
    """Whole games to play, one after another."""
    checkpoint: str = "newest"
    """Of a run: `newest`, `best` (by evaluation), or a name from its folder checkpoints/."""
    make_env: str | None = None
    """Makes the environment of a run of an own one, `my_module:make_env` (default: what the run was given)."""
    protocol: ProtocolName | None = None
    """Whose rules count (default: those of the training). The agent keeps its frame skip and its actions."""
    epsilon: float = 0.01
    """Share of random actions."""
    seed: int = 0
    """Seeds games and exploration."""
    window: bool = field(default_factory=has_display)
    """Play in a window, which Escape closes; off: make a film."""
    out: Path | None = None
    """Where the film of the best game goes, .gif or .mp4 (default: nowhere beside a window, else a GIF in a run's
    folder pictures/ or the current folder)."""
    q_values: bool = True
    """Draw the values of all actions beside the pictures, the one taken marked."""
    max_pictures: int = 2_000
    """The film ends after so many pictures, 15 to a second."""

    def __post_init__(self) -> None:
        at_least(1, **{"--episodes": self.episodes, "--max-pictures": self.max_pictures})
        check_film(self.out)


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    given = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    args = parse(
        Arguments, None, arguments, prog=f"{PROG} RUN|GAME",
        description="Watch a trained agent play: in a window where there is a display, as a film where there is none.",
        examples=examples(__doc__),
    )  # fmt: skip
    if given is None:
        raise ConfigError(f"neither a run nor a game is given; try {PROG} breakout")
    agent = load_agent(given, args.checkpoint, args.make_env)
    import torch

    torch.set_num_threads(1)  # for one observation at a time, more threads wait for each other longer than they help
    return watch(agent, args)


def watch(agent: Agent, args: Arguments) -> int:
    """Play until the last game is over or nobody watches any more; return the exit status."""
    say(agent.about)
    best: Games | None = None
    with Stop() as stop:
        window = Window(f"fastrl: {agent.game}", _pictures_per_second(agent.game)) if args.window else None
        try:
            for number, game in enumerate(_play(agent, args, window, stop), start=1):
                say(f"game {number}: {game.mean:,g} points in {game.lengths[0]:,} steps")
                best = game if best is None or game.mean > best.mean else best
        except Stopped:
            say("stopped")
        finally:
            if window:
                window.close()
    if best and not best.film and not (window and window.shown):
        say(NO_PICTURES)
    elif best and best.film:
        film = args.out or agent.films / f"watch-{agent.origin.stem}.gif"
        write_film(film, best.film)
        say(f"film of the best game: {film}")
    return 0 if stop.signal is None else 128 + stop.signal


def _play(agent: Agent, args: Arguments, window: Window | None, stop: Stop) -> Iterator[Games]:
    """Play one game after another, the same ones with a window and without."""
    from fastrl.games import play_games

    q_values = greedy(agent.network)

    def act(stacks: npt.NDArray[Any]) -> npt.ArrayLike:
        stop.check()
        return q_values(stacks)

    for seed in range(args.seed, args.seed + args.episodes):
        yield play_games(
            agent.game,
            act,
            1,
            seed=seed,
            protocol=rules_for(agent, args.protocol, epsilon=args.epsilon),
            backend="envpool" if agent.game == "catch" else "gymnasium",  # which shows every frame
            stack=agent.stack,
            film=args.out is not None or window is None,
            film_steps=args.max_pictures - 1,  # and the first picture
            show=window.draw if window else None,
            bars=args.q_values,
            threads=1,
        )


def _pictures_per_second(game: str) -> float:
    return PICTURES_PER_SECOND if game == "catch" or is_own(game) else FRAMES_PER_SECOND


class Window:
    """A window that shows pictures at a game's own pace; the emulator's own would end the process when closed.

    Parameters
    ----------
    title : str
        What stands above the pictures.
    pictures_per_second : float
        `draw` waits to keep to it.

    Raises
    ------
    ConfigError
        If there is no display.

    Attributes
    ----------
    shown : bool
        Whether it has shown a picture.
    """

    def __init__(self, title: str, pictures_per_second: float) -> None:
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        self._pygame = pygame = need("pygame", "train")
        self._pace = pictures_per_second
        self.shown = False
        try:
            pygame.display.init()
            driver = pygame.display.get_driver()
        except pygame.error as error:
            raise _no_display(str(error)) from error
        # Where no display answers, these draw for nobody; they are for those who ask for them by name.
        if driver in ("offscreen", "dummy") and driver != os.environ.get("SDL_VIDEODRIVER"):
            pygame.display.quit()
            raise _no_display("no display answers")
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()

    def draw(self, picture: npt.NDArray[np.uint8]) -> None:
        """Show a picture [H, W, 3] uint8 until the next is due; raise Stopped once the user has closed the window."""
        pygame = self._pygame
        surface = pygame.surfarray.make_surface(picture.swapaxes(0, 1))  # pygame counts x first
        window = pygame.display.get_surface()
        if window is None:
            factor = max(1, WINDOW_HEIGHT // picture.shape[0])
            window = pygame.display.set_mode((picture.shape[1] * factor, picture.shape[0] * factor), pygame.RESIZABLE)
        window.blit(pygame.transform.scale(surface, window.get_size()), (0, 0))
        pygame.display.flip()
        self.shown = True
        for event in pygame.event.get():
            if event.type == pygame.QUIT or (event.type == pygame.KEYDOWN and event.key == pygame.K_ESCAPE):
                raise Stopped
        self._clock.tick(self._pace)

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()


def _no_display(reason: str) -> ConfigError:
    return ConfigError(f"--window is on, but no window can be opened ({reason}); give --no-window for a film")


if __name__ == "__main__":
    run_command(main, PROG)
