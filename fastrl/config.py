"""Every setting of every agent: frozen dataclasses, presets as data, and one place that checks them.

*Steps* are agent steps (one action), *frames* are emulator frames; Atari makes ``frame_skip`` = 4 of
them per step. Each field is a flag of the command line, and its comment is the flag's help.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fastrl.rules import Rules

Device = Literal["auto", "cpu", "cuda"]


class ConfigError(ValueError):
    """A setting out of its range; the message names the setting, its value and the remedy."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run has, whatever the agent."""

    seed: int = 1
    """Seeds every generator of the run: environments, exploration, replay, network."""
    runs_dir: str = "runs"
    """Folder that holds one folder per run."""
    name: str | None = None
    """Name of the run's folder (default: game, seed and date)."""


@dataclass(frozen=True, kw_only=True)
class DQNConfig(Rules, RunConfig):
    """Dueling double DQN with prioritized replay on EnvPool's vectorised games."""

    game: str = "breakout"
    """Any of EnvPool's Atari games by its plain name, `catch`, or `my_module:make_env`."""
    device: Device = "auto"
    """Where the network learns; `auto` takes a GPU where there is one."""
    total_frames: int = 10_000_000
    """Emulator frames to play in all (4 per agent step)."""

    # Environments
    num_envs: int = 64
    """Games played side by side."""
    env_groups: int = 1
    """Groups of games that take turns: while one is stepped, another is received, added and acted for."""
    env_threads: int = 0
    """EnvPool's threads for each group (0: one per CPU core that this process may use)."""
    reward_clip: bool = True
    """Learn from the sign of the reward; scores are always reported unclipped."""
    max_episode_steps: int = 27_000
    """A game is cut off after so many agent steps (27,000 = 108,000 frames)."""
    dephase_steps: int = 128
    """Up to so many random actions open the run in each game, so that games do not end together."""

    # Network
    trunk: Literal["nature", "small", "impala", "vector"] = "nature"
    """Layers below the heads: `nature` (Mnih et al. 2015), `small` (Mnih et al. 2013), `impala` (residual, Espeholt et
    al. 2018; many times the arithmetic), `vector` (two dense layers)."""
    width: int = 1
    """Multiplies the filters of an image trunk."""
    hidden: int = 512
    """Width of the dense layer in each of the two dueling streams."""
    dueling: bool = True
    """Separate streams for state value and advantages (Wang et al. 2016)."""
    double: bool = True
    """The online network chooses the action that the target network values (van Hasselt et al. 2016)."""
    distributional: bool = False
    """Learn distributions of returns instead of their means (C51, Bellemare et al. 2017)."""
    atoms: int = 51
    """Returns that a distribution is made of."""
    v_max: float = 10.0
    """Largest return of a distribution; the smallest is its negative."""

    # Replay
    capacity: int | None = None
    """Rows of replay over all games (default: 1,000,000, or fewer where the run or the memory is smaller)."""
    frame_store: Literal["auto", "ram", "lz4", "device"] = "auto"
    """Where the replay's frames lie: in memory as they come (`ram`) or compressed (`lz4`), or where the network learns;
    `auto`: on the GPU where they fit, else in memory; without a GPU compressed where they would not fit otherwise."""
    stack: int = 4
    """Frames that make one observation."""
    prioritized: bool = True
    """Draw by TD error (Schaul et al. 2016); off: uniformly."""
    alpha: float = 0.6
    """Exponent of the priorities."""
    beta_start: float = 0.4
    """Exponent of the importance weights at the start."""
    beta_end: float = 1.0
    """Exponent of the importance weights at the end of the run."""
    priority_eps: float = 1e-6
    """Added to each priority, so that no row is lost for good."""
    n_step: int = 3
    """Rewards summed before the value of a later state takes over."""
    n_step_end: int | None = None
    """Rewards summed from `n_step_steps` on (default: as many as before)."""
    n_step_steps: int = 1_000_000
    """Agent steps over which n_step becomes n_step_end, once learning has started."""
    gamma: float = 0.99
    """Discount per agent step."""

    # Learning
    batch_size: int = 256
    """Samples in one update."""
    samples_per_step: float = 4.0
    """Samples learned per agent step; with the batch size it says how often an update is due."""
    learn_start_steps: int = 20_000
    """Agent steps played at random before learning starts (at most a tenth of the run)."""
    target_period_updates: int = 500
    """Updates between hard copies of the online network into the target network."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """`rmsprop` is the centred one of Mnih et al. 2015."""
    learning_rate: float = 2.5e-4
    """Step size of the optimizer (Mnih et al.: 2.5e-4 for rmsprop)."""
    learning_rate_end: float | None = None
    """Step size from `learning_rate_steps` on (default: as before)."""
    learning_rate_steps: int = 1_000_000
    """Agent steps over which learning_rate becomes learning_rate_end, once learning has started."""
    learning_rate_warmup_steps: int = 0
    """Agent steps over which the step size rises from 0 to the above, once learning has started."""
    optimizer_eps: float | None = None
    """Stability term (default: 0.005 / batch size for adam, 0.01 for rmsprop as in the paper)."""
    max_grad_norm: float = 10.0
    """Longest gradient; longer ones are scaled down."""
    huber_delta: float = 1.0
    """TD error at which the Huber loss turns from square to linear."""

    # Exploration
    epsilon_start: float = 1.0
    """Share of random actions at the start."""
    epsilon_end: float = 0.01
    """Share of random actions from `epsilon_steps` on."""
    epsilon_steps: int = 250_000
    """Agent steps over which epsilon falls, once learning has started (at most half of the run)."""

    # Speed
    compile: bool = True
    """Compile act and update with torch.compile; off: eager PyTorch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; `auto` is bfloat16 where the device has it."""
    torch_threads: int = 0
    """PyTorch's CPU threads (0: one per CPU core that this process may use)."""

    # Clocks
    log_every_frames: int = 20_000
    """Frames between two lines of metrics."""
    evaluate_every_frames: int = 1_000_000
    """Frames between two evaluations; each refreshes the film."""
    evaluate_episodes: int = 10
    """Whole games per evaluation on the way."""
    final_episodes: int = 30
    """Whole games of the evaluation that ends the run."""
    checkpoint_every_frames: int = 1_000_000
    """Frames between two checkpoints."""
    keep_checkpoints: int = 3
    """Checkpoints to keep, besides the best by evaluation."""
    checkpoint_replay: bool = True
    """Keep the replay in the newest checkpoint, so that a resumed run goes on without a new warm-up."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(self)
        if self.num_envs % self.env_groups:
            raise ConfigError(
                f"--env-groups is {self.env_groups}, which does not divide --num-envs {self.num_envs}; "
                "give a divisor of it"
            )

    @property
    def group_size(self) -> int:
        """Games in one group."""
        return self.num_envs // self.env_groups

    @property
    def total_steps(self) -> int:
        """Agent steps of the whole run."""
        return self.total_frames // self.frame_skip

    @property
    def warm_up_steps(self) -> int:
        """Agent steps before learning starts, in this run."""
        return min(self.learn_start_steps, self.total_steps // 10)

    @property
    def epsilon_decay_steps(self) -> int:
        """Agent steps over which epsilon falls, in this run."""
        return min(self.epsilon_steps, self.total_steps // 2)

    @property
    def largest_n_step(self) -> int:
        """Most rewards that are ever summed."""
        return max(self.n_step, self.n_step_end or 0)


@dataclass(frozen=True, kw_only=True)
class SarsaConfig(RunConfig):
    """Linear SARSA(lambda) on many CartPoles at once (Sutton & Barto 2018, section 12.7)."""

    learners: int = 256
    """Independent learners, each with its own CartPole."""
    episodes: int = 300
    """Episodes of each learner that count; later ones are played until all have so many."""
    max_steps: int = 200_000
    """Agent steps per learner after which the run ends whatever happens."""
    learning_rate: float = 0.1
    """Step size, the alpha of the textbook."""
    gamma: float = 0.95
    """Discount per step."""
    lam: float = 0.5
    """Decay of the eligibility traces."""
    epsilon: float = 0.0
    """Share of random actions; equal action values are broken at random."""
    features: Literal["scaled", "raw"] = "scaled"
    """What the values are linear in: observations `scaled` to about 1 in size, or `raw` as they come."""
    reward: Literal["failure", "survival"] = "failure"
    """`failure`: 0, and -1 for the step that fails; `survival`: +1 for every step, that one too."""
    dynamics: Literal["gymnasium", "own"] = "gymnasium"
    """Who moves the CartPoles: Gymnasium, or `own` NumPy code, faster and equal to the bit."""
    version: Literal["v0", "v1", "both"] = "both"
    """CartPole-v0 (200 steps, solved at 195), v1 (500 steps, solved at 475), or one after the other."""

    def __post_init__(self) -> None:
        _check(self)


# What each field may hold: (test, what the message asks for). One row serves every config that has the field.
_AT_LEAST_1 = (lambda v: v >= 1, "at least 1")
_AT_LEAST_2 = (lambda v: v >= 2, "at least 2")
_A_FEW_THOUSAND = (lambda v: 1 <= v <= 10_000, "between 1 and 10,000")
_AT_LEAST_0 = (lambda v: v >= 0, "at least 0")
_SHARE = (lambda v: 0 <= v <= 1, "between 0 and 1")
_POSITIVE = (lambda v: 0 < v < math.inf, "a finite number above 0")

_RANGES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(
        "env_groups total_frames frame_skip noop_max max_episode_steps width hidden capacity stack n_step n_step_end "
        "batch_size target_period_updates log_every_frames evaluate_every_frames "
        "checkpoint_every_frames keep_checkpoints episodes max_steps".split(),
        _AT_LEAST_1,
    ),
    **dict.fromkeys("num_envs evaluate_episodes final_episodes learners".split(), _A_FEW_THOUSAND),
    **dict.fromkeys(
        "seed env_threads torch_threads dephase_steps learn_start_steps epsilon_steps n_step_steps "
        "learning_rate_steps learning_rate_warmup_steps".split(),
        _AT_LEAST_0,
    ),
    **dict.fromkeys(
        "repeat_action_probability beta_start beta_end gamma epsilon_start epsilon_end epsilon lam alpha".split(),
        _SHARE,
    ),
    **dict.fromkeys(
        "priority_eps samples_per_step learning_rate learning_rate_end optimizer_eps max_grad_norm huber_delta v_max"
        "".split(),
        _POSITIVE,
    ),
    "atoms": _AT_LEAST_2,
}


def _rules(kind: type[RunConfig]) -> dict[str, tuple[Any, str]]:
    """Return what each field of a kind of config may hold: by its row above, or by the names that its type lists."""
    types = get_type_hints(kind)
    rules = {name: _RANGES[name] for name in types if name in _RANGES}
    for name, hint in types.items():
        if get_origin(hint) is Literal:
            *names, last = get_args(hint)
            rules[name] = ((*names, last).__contains__, f"{', '.join(names)} or {last}")
    return rules


def _check(config: RunConfig) -> None:
    """Raise ConfigError for the first field that holds what it may not."""
    for name, (allowed, wanted) in _rules(type(config)).items():
        value = getattr(config, name)
        if value is not None and not allowed(value):
            raise ConfigError(f"--{name.replace('_', '-')} is {value!r}; give {wanted}")
    if config.name is not None and (not config.name or "/" in config.name or config.name in (".", "..")):
        raise ConfigError(f"--name is {config.name!r}; give the name of one folder, without slashes")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings that belong together, with what to expect of them."""

    config: DQNConfig
    about: str


PRESETS: dict[str, Preset] = {
    "cuda": Preset(
        config=DQNConfig(
            total_frames=40_000_000,
            num_envs=128,
            env_groups=2,
            batch_size=512,
            samples_per_step=8.0,
            n_step_end=1,
            learn_start_steps=50_000,
            target_period_updates=100,
            learning_rate=1e-3,
            learning_rate_end=2.5e-4,
            learning_rate_warmup_steps=20_000,
            epsilon_steps=200_000,
            log_every_frames=100_000,
            evaluate_every_frames=4_000_000,
            checkpoint_every_frames=4_000_000,
        ),
        about="40M frames on one GPU; not yet timed on one",
    ),
    "cpu": Preset(
        config=DQNConfig(
            total_frames=20_000_000,
            trunk="small",
            hidden=256,
            n_step_end=1,
            n_step_steps=600_000,
            batch_size=64,
            learn_start_steps=10_000,
            target_period_updates=100,
            learning_rate=1e-3,
            learning_rate_end=2.5e-4,
            learning_rate_warmup_steps=20_000,
            epsilon_steps=50_000,
        ),
        about="20M frames on a CPU: three to six hours on two older cores (human level on Breakout: about 10 minutes)",
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
            dephase_steps=0,
            torch_threads=1,
            log_every_frames=1_000,
            evaluate_every_frames=10_000,
            checkpoint_every_frames=20_000,
        ),
        about="40k steps of Catch: about a minute",
    ),
    # Own environments whose observations are vectors.
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
            torch_threads=1,
            log_every_frames=1_000,
            evaluate_every_frames=10_000,
            checkpoint_every_frames=50_000,
        ),
        about="own environment with vectors, 100k steps",
    ),
}


def own_preset(game: str, device: str, *, images: bool, num_envs: int | None = None) -> Preset:
    """Return the preset of a user's own environment: for vectors, or for images on a device.

    `num_envs` is how many environments it makes at a time, None if one.
    """
    preset = PRESETS["vector"]
    if images:
        config = PRESETS[device].config.replace(total_frames=1_000_000, frame_skip=1, reward_clip=False, env_groups=1)
        preset = Preset(config=config, about="own environment with images, 1M steps")
    num_envs = num_envs or preset.config.num_envs
    return dataclasses.replace(preset, config=preset.config.replace(game=game, num_envs=num_envs))


def preset_for(game: str, device: str) -> Preset:
    """Return the preset of a game on a device (``"cpu"`` or ``"cuda"``)."""
    if game == "catch":
        return PRESETS["catch"]
    preset = PRESETS[device]
    return dataclasses.replace(preset, config=preset.config.replace(game=game))
