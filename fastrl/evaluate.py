"""Play whole games with a trained agent and print its scores.

python -m fastrl.evaluate runs/NAME                             30 games by the newest checkpoint
python -m fastrl.evaluate runs/NAME --checkpoint best --env gymnasium --seed 7
python -m fastrl.evaluate runs/NAME --protocol machado          by other rules than those it was trained by
python -m fastrl.evaluate breakout --episodes 100               with the weights that ship
python -m fastrl.evaluate breakout --epsilon 0 --out first.gif --no-q-values --json scores.json
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from fastrl import folder
from fastrl.command import examples, parse, program, run_command
from fastrl.config import ConfigError
from fastrl.gymnasium_envs import is_own, load
from fastrl.rules import ProtocolName
from fastrl.screen import say
from fastrl.video import check_film, write_film

if TYPE_CHECKING:
    from fastrl.dqn.network import QNetwork
    from fastrl.games import Games
    from fastrl.plan import Act, Protocol

PROG = program("evaluate")
NO_PICTURES = "nothing to see: the environment draws none; make it with render_mode='rgb_array'"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to play and how."""

    episodes: int = 30
    """Whole games to play."""
    env: Literal["envpool", "gymnasium"] = "envpool"
    """Who makes Atari games: EnvPool, or Gymnasium with ale-py as an independent second opinion."""
    checkpoint: str = "newest"
    """Of a run: `newest`, `best` (by evaluation), or a name from its folder checkpoints/."""
    make_env: str | None = None
    """Makes the environment of a run of an own one, `my_module:make_env` (default: what the run was given)."""
    epsilon: float = 0.01
    """Share of random actions."""
    protocol: ProtocolName | None = None
    """Whose rules count (default: those of the training). The agent keeps its frame skip and its actions."""
    repeat_action_probability: float | None = None
    """Sticky actions: the chance per emulator frame that the last action is repeated (default: by the protocol)."""
    episodic_life: bool | None = None
    """FIRE is pressed after a lost life too, not only where a game opens (default: by the protocol); off with
    `--no-episodic-life`."""
    fire_reset: bool | None = None
    """FIRE is pressed for the player (default: by the protocol); off with `--no-fire-reset`."""
    noop_max: int | None = None
    """Up to so many no-ops open a game (default: by the protocol)."""
    max_episode_steps: int = 27_000
    """A game is cut off after so many agent steps (27,000 = 108,000 frames)."""
    seed: int = 0
    """Seeds games and exploration."""
    json: Path | None = None
    """Where scores and figures go as JSON, if anywhere."""
    out: Path | None = None
    """Where the film of the first game goes, .gif or .mp4 (default: a GIF in a run's folder pictures/ or the current
    folder)."""
    q_values: bool = True
    """Draw the values of all actions beside the pictures, the one taken marked."""

    def __post_init__(self) -> None:
        check_film(self.out)


@dataclass(frozen=True, kw_only=True)
class Agent:
    """A trained network and the game that it plays."""

    game: str
    """Plain name of the game, or `module:callable` of an own environment."""
    network: QNetwork
    """In eval mode, on the CPU."""
    stack: int
    """Frames in one observation."""
    rules: Protocol
    """By which it was trained."""
    origin: Path
    """Where it was read from."""
    about: str
    """What is known of it, in one line."""
    films: Path
    """Folder for films of it."""


def load_agent(run_or_game: str, checkpoint: str = "newest", make_env: str | None = None) -> Agent:
    """Return the agent in a run's folder or, where there is no such folder, the one that ships for a game.

    Parameters
    ----------
    run_or_game : str
        Path of the folder, or the game in any spelling that `fastrl.atari.game_name` takes.
    checkpoint : str
        Which of a run's, as `fastrl.dqn.checkpoint.find` takes it.
    make_env : str, optional
        ``module:callable`` of a run's own environment, if it cannot be found by the name that the run knows.

    Raises
    ------
    ConfigError
        If it is neither, its weights cannot be read, or its own environment is not found.
    """
    path = Path(run_or_game)
    agent = _trained(path, checkpoint) if (path / "config.json").exists() else _shipped(run_or_game, checkpoint)
    if make_env is not None:
        if not (is_own(agent.game) and is_own(make_env)):
            raise ConfigError(
                f"--make-env is {make_env!r}; give my_module:make_env, for runs of own environments alone: "
                f"{run_or_game} plays {agent.game}"
            )
        agent = dataclasses.replace(agent, game=make_env)
    if is_own(agent.game):
        load(agent.game)
    return agent


def rules_for(agent: Agent, protocol: ProtocolName | None, **settings: Any) -> Protocol:
    """Return the rules to play by: the agent's or a protocol's, changed by the settings that are not None.

    Frame skip and actions stay the agent's: it was made for them.
    """
    rules = agent.rules
    if protocol is not None:
        rules = rules.replace(protocol=protocol, full_action_set=rules.full_action_set)
    return rules.replace(**{name: value for name, value in settings.items() if value is not None})


def greedy(network: QNetwork) -> Act:
    """Return the act function that gives the network's Q-values, of which `play_games` takes the highest."""
    import torch

    device = next(network.parameters()).device

    @torch.inference_mode()
    def act(stacks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        values: np.ndarray[Any, Any] = network(torch.from_numpy(stacks).to(device)).cpu().numpy()
        return values

    return act


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    given = arguments.pop(0) if arguments and not arguments[0].startswith("-") else None
    args = parse(
        Arguments, None, arguments, prog=f"{PROG} RUN|GAME",
        description="Play whole games with a trained agent and print its scores.", examples=examples(__doc__),
    )  # fmt: skip
    if given is None:
        raise ConfigError(f"neither a run nor a game is given; try {PROG} runs/NAME")
    evaluate(load_agent(given, args.checkpoint, args.make_env), args)
    return 0


def evaluate(agent: Agent, args: Arguments) -> Games:
    """Play and print; return the games."""
    from fastrl.games import play_games

    protocol = rules_for(
        agent, args.protocol, epsilon=args.epsilon, max_steps=args.max_episode_steps, noop_max=args.noop_max,
        repeat_action_probability=args.repeat_action_probability, episodic_life=args.episodic_life,
        fire_reset=args.fire_reset,
    )  # fmt: skip
    rules = protocol.describe(atari=not is_own(agent.game))
    say(f"{agent.origin}: {args.episodes} games, {rules}")
    games = play_games(
        agent.game,
        greedy(agent.network),
        args.episodes,
        seed=args.seed,
        protocol=protocol,
        backend=args.env,
        stack=agent.stack,
        film=True,
        bars=args.q_values,
    )
    say(games.summary())
    if args.json:
        facts = {"game": games.game, "checkpoint": str(agent.origin), "protocol": rules, "env": games.backend}
        args.json.write_text(json.dumps(facts | games.figures() | {"scores": games.scores.tolist()}, indent=2) + "\n")
    if games.film:
        film = args.out or agent.films / f"evaluation-{agent.origin.stem}-{games.backend}.gif"
        write_film(film, games.film)
        say(f"film of the first game: {film}")
    else:
        say(NO_PICTURES)
    return games


def _trained(run: Path, checkpoint: str) -> Agent:
    config = folder.load_dqn_config(run)
    from fastrl.dqn.checkpoint import find, load_network
    from fastrl.plan import Protocol

    saved = find(run, checkpoint)
    return Agent(
        game=config.game, network=load_network(saved / "weights.safetensors"), stack=config.stack,
        rules=Protocol(**config.rules()), origin=saved, about=f"{config.game}, {saved}", films=run / "pictures",
    )  # fmt: skip


def _shipped(name: str, checkpoint: str) -> Agent:
    from fastrl.atari import game_name

    try:
        game = game_name(name)
    except ConfigError as error:
        raise ConfigError(f"{name} is no run folder (it holds no config.json), and {error}") from error
    from fastrl.dqn import pretrained
    from fastrl.plan import Protocol

    card = pretrained.card(game)
    if checkpoint != "newest":
        raise ConfigError(f"--checkpoint is {checkpoint!r}, but one network ships for {game}; leave it out")
    network = pretrained.load_pretrained(game)
    return Agent(
        game=game, network=network, stack=card.network["obs_shape"][0],
        rules=Protocol(**card.rules | {"frame_skip": card.frame_skip}),
        origin=pretrained.WEIGHTS / f"{game}.safetensors", about=card.describe(), films=Path(),
    )  # fmt: skip


if __name__ == "__main__":
    run_command(main, PROG)
