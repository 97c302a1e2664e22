"""Presets: settings that belong together, as data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastrl.base.errors import ConfigError
from fastrl.config.agents import AGENTS
from fastrl.config.settings import DQNConfig, Trunk
from fastrl.envs.frames import FrameShape, in_words


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that belong together, and what to expect of a run with them."""

    config: DQNConfig
    kind: str
    """What it is for, in words that follow a number of frames."""
    about: str
    """What to expect of a run with all of its settings."""

    def describe(self, total_frames: int | None = None) -> str:
        """Return what to expect of a run: the preset's own words, or of another length than its own that length."""
        if total_frames in (None, self.config.total_frames):
            return self.about
        return f"{total_frames:,} frames {self.kind}"


PRESETS: dict[str, Preset] = {
    "cuda": Preset(
        config=DQNConfig(
            total_frames=40_000_000,
            num_envs=128,
            env_groups=2,
            trunk="impala-pooled",
            head="quantile",
            quantiles=64,
            double=False,
            munchausen=True,
            batch_size=128,
            samples_per_step=4.0,  # two updates for each step of a group
            n_step_end=1,
            learn_start_steps=50_000,
            target_period_updates=200,
            learning_rate=5e-4,
            learning_rate_end=1e-4,
            learning_rate_steps=3_000_000,
            learning_rate_warmup_updates=1_250,
            epsilon_steps=200_000,
            log_every_frames=100_000,
            evaluate_every_frames=4_000_000,
            checkpoint_every_frames=20_000_000,
        ),
        kind="on one GPU",
        about="40M frames on one GPU: some half an hour on an H100 (Breakout: 400 points after three minutes)",
    ),
    "cpu": Preset(
        config=DQNConfig(
            total_frames=20_000_000,
            trunk="impala-strided",
            hidden=256,
            head="quantile",
            double=False,
            munchausen=True,
            n_step_end=1,
            n_step_steps=600_000,
            batch_size=64,
            learn_start_steps=10_000,
            target_period_updates=100,
            average_updates=2_500,
            learning_rate=1e-3,
            learning_rate_end=2.5e-4,
            learning_rate_warmup_steps=20_000,
            epsilon_steps=50_000,
        ),
        kind="on a CPU",
        about="20M frames on a CPU: one to two hours on two recent cores, a night on older ones (human level on "
        "Breakout: 2 to 10 minutes)",
    ),
    # The tiny problem: 10 x 5 floats, one step per frame, games of ten steps (Osband et al. 2020, bsuite).
    "catch": Preset(
        config=DQNConfig(
            game="catch",
            total_frames=40_000,
            num_envs=16,
            frame_skip=1,
            trunk="vector",
            hidden=64,
            stack=1,
            n_step=1,
            batch_size=64,
            samples_per_step=4.0,
            learn_start_steps=1_000,
            epsilon_steps=10_000,
            learning_rate=1e-3,
            target_period_updates=100,
            weights_every_steps=500,
            dephase_steps=0,
            torch_threads=1,
            log_every_frames=1_000,
            evaluate_every_frames=10_000,
            checkpoint_every_frames=20_000,
        ),
        kind="of Catch",
        about="40k steps of Catch: about a minute",
    ),
    # Custom environments with vector observations.
    "vector": Preset(
        config=DQNConfig(
            total_frames=100_000,
            num_envs=8,
            frame_skip=1,
            reward_clip=False,
            trunk="vector",
            hidden=128,
            stack=1,
            batch_size=64,
            samples_per_step=8.0,
            learn_start_steps=1_000,
            epsilon_steps=10_000,
            learning_rate=1e-3,
            target_period_updates=200,
            weights_every_steps=500,
            torch_threads=1,
            log_every_frames=1_000,
            evaluate_every_frames=10_000,
            checkpoint_every_frames=50_000,
        ),
        kind="of a custom environment with vector observations",
        about="100k frames of a custom environment with vector observations",
    ),
}


CUSTOM_TRUNKS: dict[str, Trunk] = {"cuda": "nature", "cpu": "small"}
"""Trunks of custom environments with images, where they are large enough."""
# Of custom environments with images. Munchausen's bonus is measured against rewards that are clipped.
_CUSTOM: dict[str, Any] = {**AGENTS["dueling"].settings, "target_period_updates": 100, "learning_rate_steps": 1_000_000}


def custom_preset(
    game: str, device: str, *, trunk: str, frame_shape: FrameShape, num_envs: int | None = None
) -> Preset:
    """Return the preset of a custom environment.

    Parameters
    ----------
    game : str
        ``module:callable`` of the environment.
    device : {"cpu", "cuda"}
        Where the network learns.
    trunk : {"nature", "small", "minatar", "vector"}
        The trunk that fits its frames.
    frame_shape : tuple of int, or dict of such
        Of its frames: [n], [H, W] or [C, H, W]; of several arrays by name.
    num_envs : int, optional
        Environments that one call of the callable makes (default: one).
    """
    preset = PRESETS["vector"]
    if trunk != "vector":
        config = PRESETS[device].config.replace(
            total_frames=1_000_000, frame_skip=1, reward_clip=False, env_groups=1, trunk=trunk, **_CUSTOM
        )
        if trunk == "minatar":
            config = config.replace(hidden=128)  # Young & Tian 2019
        kind = f"of a custom environment with {_seen(frame_shape)}"
        preset = Preset(config=config, kind=kind, about=f"1M frames {kind}")
    num_envs = num_envs or preset.config.num_envs
    return dataclasses.replace(preset, config=preset.config.replace(game=game, num_envs=num_envs))


def _seen(frame_shape: FrameShape) -> str:
    """Return words on what is seen: one image, or several arrays."""
    if isinstance(frame_shape, Mapping):
        return f"the arrays {in_words(frame_shape)}"
    return f"images of {' x '.join(str(side) for side in frame_shape[-2:])}"


def preset_for(game: str, device: str) -> Preset:
    """Return the preset of a game on a device (``"cpu"`` or ``"cuda"``); `fastrl.config_for` takes ``"auto"`` too."""
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; give cpu or cuda")
    if game == "catch":
        return PRESETS["catch"]
    preset = PRESETS[device]
    return dataclasses.replace(preset, config=preset.config.replace(game=game))
