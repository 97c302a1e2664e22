"""Play whole games with a trained agent and print its scores.

python -m fastrl.evaluate runs/NAME                     the newest checkpoint
python -m fastrl.evaluate runs/NAME --checkpoint best --seed 7
python -m fastrl.evaluate runs/NAME --env gymnasium     a second opinion
python -m fastrl.evaluate runs/NAME --protocol machado  other rules
python -m fastrl.evaluate breakout --episodes 100       the weights that ship
python -m fastrl.evaluate breakout --episodes 100 --collectors 4
python -m fastrl.evaluate breakout --out first.gif --no-q-values
python -m fastrl.evaluate breakout --epsilon 0 --json scores.json
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports, which take a moment: a signal is answered meanwhile
    from fastrl.__main__ import run_named

    run_named("evaluate")

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from fastrl.base.commands import program
from fastrl.base.console import counted, say
from fastrl.base.errors import ConfigError, RunError
from fastrl.base.files import require_place, write_atomically
from fastrl.base.ranges import Above, AtLeast, Between, Printable, ReadWith, check, refuse_unread
from fastrl.base.stop import begun, interrupted_by_signals
from fastrl.cli import read, show_help
from fastrl.envs.levels import LEVELS, SOURCE, human_normalized
from fastrl.envs.names import is_atari, is_custom, refuse_rules_of_atari
from fastrl.envs.rules import MOST_STEPS_OF_A_GAME, ProtocolName
from fastrl.film.video import check_film, write_content, write_film
from fastrl.play import games
from fastrl.play.acting import telling

if TYPE_CHECKING:  # PyTorch takes seconds to import: not before the flags are read
    from fastrl.dqn.agent import Agent
    from fastrl.envs.rules import EvaluationRules

PROG = program("evaluate")
READ_WITH: dict[str, ReadWith] = dict.fromkeys(("ray_address", "collector_timeout"), ("collectors", AtLeast(1)))
"""Flags that are read only where another one has such a value."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to play and how."""

    episodes: Annotated[int, Between(1, 1_000_000)] = 30
    """Whole games to play."""
    env: Literal["envpool", "gymnasium"] = "envpool"
    """Library that runs Atari games: EnvPool, or Gymnasium with ale-py as an independent second opinion."""
    checkpoint: str = "newest"
    """Checkpoint of a run: `newest`, `best` (by evaluation), or a name from its folder checkpoints/."""
    last_weights: bool = False
    """Play by the last weights of a run that is judged by their average (--average-updates)."""
    make_env: str | None = None
    """Factory for a custom environment, as `my_module:make_env` (default: the one the run recorded)."""
    epsilon: Annotated[float, Between(0, 1)] = 0.01
    """Share of random actions."""
    protocol: ProtocolName | None = None
    """Rules to play by (default: those of the training); the agent keeps its frame skip and its actions."""
    repeat_action_probability: Annotated[float | None, Between(0, 1)] = None
    """Sticky actions: the chance per emulator frame that the last action is repeated (default: by the protocol)."""
    episodic_life: bool | None = None
    """FIRE is pressed after a lost life too, not only at the start of a game (default: by the protocol)."""
    fire_reset: bool | None = None
    """FIRE is pressed for the player (default: by the protocol)."""
    noop_max: Annotated[int | None, Between(1, 10_000)] = None
    """At most N no-ops at the start of a game and, on EnvPool with episodic life, of each life (default: by the
    protocol)."""
    max_episode_steps: Annotated[int | None, Between(1, MOST_STEPS_OF_A_GAME)] = None
    """A game is cut off after N agent steps (default: as in the training, 27,000 unless it was given another)."""
    seed: Annotated[int, AtLeast(0)] = 0
    """Seeds games and exploration."""
    json: Path | None = None
    """File for scores and figures as JSON (default: none)."""
    out: Path | None = None
    """File for the film of the first game, .gif or .mp4 (default: a GIF in a run's folder pictures/, or in the current
    folder)."""
    collectors: Annotated[int, Between(0, 10_000)] = 0
    """Processes that play the games, on this machine or on a cluster (0: play in this process). Needs the extra
    `distributed`."""
    ray_address: Annotated[str | None, Printable()] = None
    """Ray cluster on which the collectors run: `auto` or `host:port` (default: start Ray on this machine, and stop it
    at the end)."""
    collector_timeout: Annotated[float, Above(0)] = 60.0
    """Seconds without a step of its games after which a collector is replaced, and the games played again."""
    q_values: bool = True
    """Draw the values of all actions beside the pictures, and mark the action taken."""

    def __post_init__(self) -> None:
        check(self)
        check_film(self.out)
        if self.json:
            require_place(self.json, "--json")


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    line = read(arguments, Arguments)
    if line.help:
        show_help(f"{PROG} RUN|GAME", __doc__, Arguments())
    args = Arguments(**line.given)
    if line.word is None:
        raise ConfigError(f"neither a run nor a game is given; try {PROG} runs/NAME")
    refuse_unread(args, line.given, READ_WITH)
    from fastrl.dqn.agent import load_agent

    agent = load_agent(line.word, args.checkpoint, args.make_env, last_weights=args.last_weights)
    begun()
    try:
        with interrupted_by_signals():
            evaluate(agent, args)
    except KeyboardInterrupt as asked:
        return 128 + (asked.args[0] if asked.args else signal.SIGINT)
    return 0


def evaluate(agent: Agent, args: Arguments) -> games.Games:
    """Play and print; return the games."""
    from fastrl.dqn.agent import greedy, rules_for

    refuse_rules_of_atari(vars(args), agent.game)
    if args.env == "gymnasium" and not is_atari(agent.game):
        raise ConfigError(
            f"--env is 'gymnasium', which plays only Atari games, and {agent.game} is not one; leave it out"
        )
    rules = rules_for(
        agent,
        args.protocol,
        epsilon=args.epsilon,
        max_steps=args.max_episode_steps,
        noop_max=args.noop_max,
        repeat_action_probability=args.repeat_action_probability,
        episodic_life=args.episodic_life,
        fire_reset=args.fire_reset,
    )
    library = "custom" if is_custom(agent.game) else args.env
    film = args.out or agent.films / f"evaluation-{agent.origin.stem}-{library}{'-last' * args.last_weights}.gif"
    check_film(film)
    words = rules.describe(atari=is_atari(agent.game))
    say(f"{agent.named}: {counted(args.episodes, 'game')}, {words}")
    content = b""  # of the film, where it was made elsewhere
    try:
        if args.collectors:
            played, content = _play_elsewhere(agent, args, rules, film.suffix)
        else:
            played = games.play_games(
                agent.game,
                telling(greedy(agent.network), say),
                args.episodes,
                seed=args.seed,
                rules=rules,
                backend=args.env,
                stack=agent.stack,
                film=True,
                bars=args.q_values,
                masked=agent.masked,
            )
    except KeyboardInterrupt:
        say("stopped; no score is given of the games that had ended: the short ones end first")
        raise
    say(played.summary())
    share = human_normalized(played.game, played.mean)
    if share is not None:
        random, human = LEVELS[played.game]
        say(f"human-normalised: {share:.1%}; random play scores {random:,g}, a human {human:,g} ({SOURCE})")
    if args.json:
        origin = os.path.abspath(agent.origin)
        facts = {
            "game": played.game,
            "checkpoint": origin,
            "averaged": agent.averaged,
            "protocol": words,
            "env": played.backend,
        }
        scores = {"cut_off": played.cut_off, "human_normalized": share, "scores": played.scores.tolist()}
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.json, json.dumps(facts | played.figures() | scores, indent=2) + "\n")
        except OSError as error:
            raise RunError(
                f"--json is {str(args.json)!r}, which could not be written ({error.strerror}); the scores stand above"
            ) from error
    if content:
        write_content(film, content)
    elif played.film:
        write_film(film, played.film)
    filmed = bool(content or played.film)
    if filmed:
        say(f"film of the first game: {film}")
    why = played.film_error or ("" if filmed else games.NO_PICTURES)
    if why and args.out:
        raise RunError(f"--out is {args.out}, but {why}")
    if why:
        say(why)
    return played


def _play_elsewhere(agent: Agent, args: Arguments, rules: EvaluationRules, suffix: str) -> tuple[games.Games, bytes]:
    """Let collectors play; return their games and the film of the first one, as the content of a file."""
    from fastrl.distributed.engine import RayPlayers
    from fastrl.distributed.evaluation import play_shares
    from fastrl.distributed.player import Plan

    plan = Plan(
        game=agent.game,
        episodes=args.episodes,
        seed=args.seed,
        rules=rules,
        backend=args.env,
        network=agent.network.settings,
        stack=agent.stack,
        bars=args.q_values,
        suffix=suffix,
        masked=agent.masked,
    )
    weights = {name: value.numpy() for name, value in agent.network.state_dict().items()}
    players = RayPlayers(args.collectors, args.ray_address, agent.game)
    try:
        for note in players.notes:
            say(note)
        played = play_shares(players, args.collectors, plan, weights, timeout=args.collector_timeout, say=say)
    finally:
        players.close()
    return games.joined([part.games for part in played]), played[0].film
