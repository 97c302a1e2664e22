"""Play whole games with a trained agent and print its scores.

python -m fastrl.evaluate runs/NAME --episodes 30
python -m fastrl.evaluate runs/NAME --checkpoint best --env gymnasium
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fastrl import folder
from fastrl.command import parse, run_command
from fastrl.config import ConfigError, DQNConfig

PROG = "python -m fastrl.evaluate"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What to play and how."""

    episodes: int = 30
    """Whole games to play."""
    env: Literal["envpool", "gymnasium"] = "envpool"
    """Who makes the games: EnvPool, or Gymnasium with ale-py as an independent second opinion."""
    checkpoint: str = "newest"
    """`newest`, `best` (by evaluation), or a name from the run's folder checkpoints/."""
    epsilon: float = 0.01
    """Share of random actions."""
    noop_max: int = 30
    """Up to so many no-ops open a game."""
    repeat_action_probability: float = 0.0
    """Sticky actions."""
    max_steps: int = 27_000
    """A game is cut off after so many agent steps (27,000 = 108,000 frames)."""
    seed: int = 0
    """Seeds games and exploration."""
    json: Path | None = None
    """Where scores and figures go as JSON, if anywhere."""
    gif: Path | None = None
    """Where the film of the first game goes (default: into the run's folder pictures/)."""


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    path = Path(arguments.pop(0)) if arguments and not arguments[0].startswith("-") else None
    args = parse(Arguments, None, arguments, prog=f"{PROG} RUN", description=__doc__ or "")
    if path is None:
        raise ConfigError(f"no run is given; try {PROG} runs/NAME")
    config = folder.load_config(path)
    if not isinstance(config, DQNConfig):
        raise ConfigError(f"{path} is a cartpole run, which printed its evaluation at its end; give a DQN run")
    evaluate(path, config, args)
    return 0


def evaluate(path: Path, config: DQNConfig, args: Arguments) -> Any:
    """Play and print; return the `fastrl.games.Games`."""
    from fastrl.dqn import checkpoint  # isort: skip - says which extra is missing
    import torch

    from fastrl.dqn.network import QNetwork
    from fastrl.games import Protocol, play_games
    from fastrl.video import write_gif

    saved = checkpoint.find(path, args.checkpoint)
    weights, settings = checkpoint.load_weights(saved / "weights.safetensors")
    network = QNetwork(**settings | {"obs_shape": tuple(settings["obs_shape"])})
    network.check_state(weights)
    network.load_state_dict(weights)

    @torch.inference_mode()
    def act(stacks: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        actions: np.ndarray[Any, Any] = network(torch.from_numpy(stacks)).argmax(dim=1).numpy()
        return actions

    protocol = Protocol(
        epsilon=args.epsilon, noop_max=args.noop_max, max_steps=args.max_steps,
        repeat_action_probability=args.repeat_action_probability, frame_skip=config.frame_skip,
    )  # fmt: skip
    print(f"{saved}: {args.episodes} games, {protocol.describe()}", flush=True)
    games = play_games(
        config.game,
        act,
        args.episodes,
        seed=args.seed,
        protocol=protocol,
        backend=args.env,
        stack=config.stack,
        film=True,
    )
    gif = args.gif or path / "pictures" / f"evaluation-{saved.name}-{args.env}.gif"
    write_gif(gif, games.film, max_pictures=2_000)
    print(games.summary())
    if args.json:
        figures = {name: getattr(games, name) for name in ("mean", "median", "std", "min", "max")}
        facts = {"game": games.game, "checkpoint": str(saved), "protocol": protocol.describe(), "env": args.env}
        args.json.write_text(json.dumps(facts | figures | {"scores": games.scores.tolist()}, indent=2) + "\n")
    print(f"film of the first game: {gif}")
    return games


if __name__ == "__main__":
    run_command(main, PROG)
