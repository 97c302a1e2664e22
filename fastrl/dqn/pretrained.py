"""Networks that ship with the package: weights in bfloat16, each with a card that says where they come from.

fastrl/weights/breakout.safetensors     as a checkpoint's weights.safetensors
fastrl/weights/breakout.json            the card
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from fastrl.base.commands import command_line, program
from fastrl.base.errors import ConfigError
from fastrl.config import DQNConfig
from fastrl.dqn import checkpoint
from fastrl.dqn.device.device import pick_device
from fastrl.dqn.network import QNetwork
from fastrl.envs.names import game_name, is_custom
from fastrl.runs import folder
from fastrl.runs.folder import RunFolder

WEIGHTS = Path(__file__).parent.parent / "weights"
LARGEST_BYTES = 7_000_000


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """How a network plays, and which versions of the code made and judged it."""

    commit: str
    """Version of the code that trained."""
    exported_at: str
    """Version of the code that rounded the weights and played the games."""
    protocol: str
    """The rules of the games, in words."""
    scores: dict[str, dict[str, float]]
    """Per backend, ``envpool`` and ``gymnasium``: number of games, their seed, and the five figures of their scores."""
    played_with: dict[str, str]
    """Versions of the packages that played."""


@dataclass(frozen=True, kw_only=True)
class Card(Judgement):
    """Where a network comes from and how it plays."""

    game: str
    """Plain name of the game."""
    command: str
    """What was run, without the flags that say where files go; a resumed run has several commands, parted by ``;``."""
    seed: int
    """Seed of the run."""
    frames: int
    """Emulator frames played before these weights were saved."""
    minutes: float
    """Wall clock until then, evaluations on the way included."""
    network: dict[str, Any]
    """``QNetwork(**network)`` has the shape of the weights."""
    frame_skip: int
    """Emulator frames per agent step."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Rules of its training, as arguments of `fastrl.envs.rules.Rules`; none: the protocol `deepmind`."""
    trained_with: dict[str, str]
    """Versions of the packages that trained."""
    sha256: str
    """Of the file of weights that the scores belong to."""
    averaged: bool = False
    """Whether the weights are a moving average of those that learned (`DQNConfig.average_updates`)."""

    def describe(self) -> str:
        """Return origin and mean scores in one line."""
        played = ", ".join(f"{s['mean']:,.1f} over {s['games']} games on {name}" for name, s in self.scores.items())
        return (
            f"{self.game} after {self.frames:,} frames in {self.minutes:,.0f} minutes, seed {self.seed}, "
            f"commit {self.commit[:7]}{', averaged weights' * self.averaged}; mean score {played}"
        )


def games() -> list[str]:
    """Return the plain names of the games that weights ship for."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def card(game: str) -> Card:
    """Return the card of the weights that ship for a game, in any spelling; errors as `load_pretrained`."""
    game = _plain_name(game)
    if game not in games():
        those = f"{_those()}, or train" if games() else "none ship for any game yet: train"
        own = command_line(program("train"), game)
        raise ConfigError(f"game is {game!r}, for which no weights ship; {those} your own with {own}")
    path = WEIGHTS / f"{game}.json"
    try:
        return Card(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _those() -> str:
    return f"give one of {', '.join(games())}"


def _plain_name(game: object) -> str:
    """Return the plain name of a game in any spelling, and other names as they are; ConfigError for what is no name."""
    if not isinstance(game, str):
        remedy = _those() if games() else "give the name of a game"
        raise ConfigError(f"game is {game!r}, which is no name; {remedy}, as text")
    if game not in games():  # of those the name is plain, and known without EnvPool
        with contextlib.suppress(ConfigError):
            return game_name(game)
    return game


def load_pretrained(game: str, device: str = "cpu") -> QNetwork:
    """Return the network that ships for a game, in eval mode with float32 weights.

    Parameters
    ----------
    game : str
        The game in any spelling that `fastrl.envs.names.game_name` takes, such as ``"breakout"``.
    device : {"cpu", "cuda", "auto"}
        Where the network goes.

    Returns
    -------
    QNetwork
        Stacks [B, stack, 84, 84] uint8, oldest frame first, to action values [B, A] float32.

    Raises
    ------
    ConfigError
        If no weights ship for the game (the message lists those that do), the files are damaged, or there is no
        such device.
    """
    game, where = _plain_name(game), pick_device(device)
    path = WEIGHTS / f"{game}.safetensors"
    if card(game).sha256 != _sha256(path):
        raise _damaged(path, "it is not the file that its card belongs to")
    return checkpoint.load_network(path).to(where)


def export(run: Path, name: str, judge: Callable[[QNetwork, DQNConfig], Judgement]) -> Card:
    """Make a run's checkpoint the weights that ship for its game, and return their card.

    Both files appear once all is well, those of an earlier export are replaced.

    Parameters
    ----------
    run : Path
        Folder of the run.
    name : str
        The checkpoint, as `RunFolder.find` takes it.
    judge : callable
        Plays with the network as it will ship, its weights rounded to bfloat16.

    Raises
    ------
    ConfigError
        If the run or its checkpoint cannot be read, or its weights take more than ``LARGEST_BYTES``.
    """
    config = folder.load_dqn_config(run)
    if is_custom(config.game):
        raise ConfigError(f"{run} plays {config.game}, a custom environment; networks ship for Atari games alone")
    saved = RunFolder(run).find(name)
    WEIGHTS.mkdir(exist_ok=True)
    ships = [WEIGHTS / f"{config.game}.{kind}" for kind in ("safetensors", "json")]
    partial = [path.with_name(f".{path.name}.partial") for path in ships]
    try:
        partial[0].write_bytes(_rounded(saved / "weights.safetensors"))
        network = checkpoint.load_network(partial[0])
        facts = _origin(run, config, saved) | {"network": network.settings, "sha256": _sha256(partial[0])}
        facts |= dataclasses.asdict(judge(network, config))
        partial[1].write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        for new, path in zip(partial, ships, strict=True):
            os.replace(new, path)
    finally:
        for path in partial:
            path.unlink(missing_ok=True)
    return card(config.game)


def _rounded(path: Path) -> bytes:
    """Return a file of weights with each rounded to the nearest bfloat16."""
    tensors, settings = checkpoint.load_weights(path)
    rounded = {key: tensor.to(torch.bfloat16) for key, tensor in tensors.items()}
    content = checkpoint.pack_weights(rounded, settings)
    if len(content) > LARGEST_BYTES:
        raise ConfigError(
            f"{path} takes {len(content) / 1e6:.1f} MB in bfloat16, and at most {LARGEST_BYTES / 1e6:g} MB ship; "
            "give a run of a smaller network (--hidden, --width)"
        )
    return content


def _origin(run: Path, config: DQNConfig, saved: Path) -> dict[str, Any]:
    """Return the card's fields that say where a checkpoint comes from."""
    state = checkpoint.load_state(saved)
    try:
        commands = (run / "commands.txt").read_text(encoding="utf-8", errors="replace").splitlines()
        return {
            "game": config.game,
            "command": "; ".join(_without_places(command) for command in commands),
            "seed": config.seed,
            "frames": state["frames"],
            "minutes": round(state["seconds"] / 60, 1),
            "averaged": bool(state.get("averaged", False)),
            "frame_skip": config.frame_skip,
            "rules": config.rules(),
            "trained_with": without_platform(json.loads((run / "versions.json").read_text(encoding="utf-8"))),
        }
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{run} does not say how it was made ({error!r}); give a whole run folder") from error


def without_platform(versions: dict[str, str]) -> dict[str, str]:
    """Return what `fastrl.runs.folder.versions` returns without the kernel's name, which decides no score."""
    return {name: version for name, version in versions.items() if name != "platform"}


def _without_places(command: str) -> str:
    """Return a command without the folders of the machine that it ran on: they change nothing that is learned."""
    kept: list[str] = []
    words = iter(shlex.split(command))
    for word in words:
        flag, given, _ = word.partition("=")
        if flag in ("--runs-dir", "--runs_dir", "--name", "--resume"):
            if not given:
                next(words, None)
            kept += ["--resume", "RUN"] if flag == "--resume" else []
        else:
            kept.append(word)
    return shlex.join(kept)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _damaged(path: Path, error: object) -> ConfigError:
    return ConfigError(f"{path} is damaged ({error}); install fastrl anew, or restore the file with git checkout")
