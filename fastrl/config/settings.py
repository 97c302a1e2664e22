"""Every setting of every agent: frozen dataclasses whose fields state type, range, default and help.

*Steps* are agent steps (one action), *frames* are emulator frames; Atari makes ``frame_skip`` = 4 of
them per step. Each field is a flag of the command line, and its docstring is the flag's help. A help text names in
"(default: ...)" what None means; where a setting has another value, the command line shows that instead.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

from fastrl.base.errors import ConfigError
from fastrl.base.ranges import (
    Above,
    AtLeast,
    Between,
    Falling,
    OneFolder,
    Points,
    Printable,
    ReadWith,
    as_tuples,
    check,
    flag_of,
    plain_value,
    refuse_unread,
    spelled,
)
from fastrl.envs.names import is_custom, refuse_rules_of_atari
from fastrl.envs.rules import MOST_STEPS_OF_A_GAME, Rules

Device = Literal["auto", "cpu", "cuda"]


def check_device(name: object) -> None:
    """Raise ConfigError for the name of no device that networks learn on."""
    if name in get_args(Device):
        return
    remedy = "give auto, cpu or cuda"
    if isinstance(name, str) and (number := re.fullmatch(r"cuda:(\d+)", name)):
        remedy = f"give cuda, and CUDA_VISIBLE_DEVICES={number[1]} in the environment chooses that GPU"
    raise ConfigError(f"--device is {name!r}, but networks learn on a CPU or a CUDA GPU alone; {remedy}")


Trunk = Literal[
    "nature", "small", "pooled", "residual", "minatar", "impala", "impala-pooled", "impala-strided", "vector"
]

Schedule = tuple[tuple[int, float], ...]
"""Pairs (agent steps since learning started, value): between two steps the value goes from one to the other, from the
last on it stays. Empty: no schedule."""
WholeSchedule = tuple[tuple[int, int], ...]
"""A `Schedule` whose values are whole numbers."""

REPLACES = {
    "n_step_schedule": ("n_step", "n_step_end", "n_step_steps"),
    "gamma_schedule": ("gamma",),
    "learning_rate_schedule": ("learning_rate", "learning_rate_end", "learning_rate_steps"),
    "epsilon_schedule": ("epsilon_start", "epsilon_end", "epsilon_steps"),
    "epsilon_ladder": ("epsilon_start", "epsilon_end", "epsilon_steps"),
    "target_tau": ("target_period_updates", "target_period_end", "target_period_steps"),
}
"""Settings that, where they are not off, stand for others: these are then not read."""
READ_WITH: dict[str, ReadWith] = {
    "double": ("munchausen", (False,)),
    "atoms": ("head", ("c51",)),
    "v_max": ("head", ("c51",)),
    "quantiles": ("head", ("quantile", "iqn")),
    "width": ("trunk", tuple(trunk for trunk in get_args(Trunk) if trunk != "vector")),
    "huber_delta": ("head", ("expected", "quantile", "iqn")),
    "alpha": ("prioritized", (True,)),
    "priority_eps": ("prioritized", (True,)),
    "beta_start": ("prioritized", (True,)),
    "beta_end": ("prioritized", (True,)),
    "ray_address": ("collectors", AtLeast(1)),
    "chunk_steps": ("collectors", AtLeast(1)),
    "weights_every_steps": ("collectors", AtLeast(1)),
    "collectors_in_order": ("collectors", AtLeast(1)),
    "collector_timeout": ("collectors", AtLeast(1)),
}
"""Settings that are read only where another one has one of these values."""
SLOPES = {
    "n_step_steps": "n_step_end",
    "target_period_steps": "target_period_end",
    "learning_rate_steps": "learning_rate_end",
}
"""Lengths of slopes, which are read only where the slope has an end."""

MOST_THREADS = 1_024
"""More than any machine has use for; libraries crash without a word where the system has no more threads to give."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Settings of every run, for any agent."""

    seed: Annotated[int, AtLeast(0)] = 1
    """Seeds every generator of the run: environments, exploration, replay, network."""
    runs_dir: Annotated[str, Printable()] = "runs"
    """Folder that holds one folder per run."""
    name: Annotated[str | None, OneFolder()] = None
    """Name of the run's folder (default: game, seed and date)."""
    films: bool = True
    """Film one game of each evaluation; metrics are the same without films."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # config.json and every checkpoint hold settings as JSON
            object.__setattr__(self, field.name, plain_value(getattr(self, field.name)))

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values in the named fields."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class DQNConfig(Rules, RunConfig):
    """Settings of DQN runs: without a preset dueling double DQN with prioritized replay on EnvPool's games."""

    game: str = "breakout"
    """Plain name of an Atari game, `catch`, or a custom environment as `my_module:make_env`."""
    device: Device = "auto"
    """Where the network learns; `auto`: on a GPU if there is one."""
    total_frames: Annotated[int, AtLeast(1)] = 10_000_000
    """Emulator frames to play in total, `frame_skip` of them per agent step."""
    total_samples: Annotated[int | None, AtLeast(1)] = None
    """Samples after which the run ends, if it gets there before `total_frames`, which the schedules go by either way
    (default: no such end)."""

    # Environments
    num_envs: Annotated[int, Between(1, 10_000)] = 64
    """Games played in parallel; with `collectors`, by each of them."""
    env_groups: Annotated[int, Between(1, 10_000)] = 1
    """Groups of games that take turns: while the games of one step, the run receives, adds and acts for another."""
    env_threads: Annotated[int, Between(0, MOST_THREADS)] = 0
    """EnvPool's threads per group (0: one per CPU core that this process may use; in a collector one)."""
    reward_clip: bool = True
    """Learn from the sign of the reward, and clip targets to what such rewards can pay, 1 / (1 - gamma); reported
    scores are never clipped."""
    max_episode_steps: Annotated[int, Between(1, MOST_STEPS_OF_A_GAME)] = 27_000
    """A game is cut off after N agent steps (27,000 = 108,000 frames)."""
    dephase_steps: Annotated[int, Between(0, 100_000)] = 128
    """Each game starts the run with 0 to N random actions, to keep games out of lockstep."""

    # Collectors
    collectors: Annotated[int, Between(0, 10_000)] = 0
    """Processes that play games, on this machine or on a cluster; each plays `num_envs` (0: play in this process).
    Needs the extra `distributed`."""
    ray_address: Annotated[str | None, Printable()] = None
    """Ray cluster on which the collectors run: `auto` or `host:port` (default: start Ray on this machine, and stop it
    at the end)."""
    chunk_steps: Annotated[int, Between(1, 10_000)] = 16
    """Vector steps that a collector plays for one request; two requests are in flight."""
    weights_every_steps: Annotated[int, AtLeast(1)] = 10_000
    """Agent steps of all collectors after which they get new weights."""
    collectors_in_order: bool = False
    """Take chunks from the collectors in turn: two runs of one seed are equal to the bit, unless a chunk is lost. Every
    collector then waits for the slowest."""
    collector_timeout: Annotated[float, Above(0)] = 60.0
    """Seconds without an answer after which a collector is replaced."""

    # Network
    trunk: Trunk = "nature"
    """Layers below the heads: `nature` (Mnih et al. 2015), `small` (Mnih et al. 2013), `pooled` (`small` and a 2x2
    max-pool), `residual` (`pooled` with a residual block before the pool), `minatar` (one 3x3 convolution, for small
    images, Young & Tian 2019), `impala` (residual, Espeholt et al. 2018; many times the arithmetic), `impala-pooled`
    (`impala` and a max-pool), `impala-strided` (two of its stages behind the first layer of `small`; a fifth of the
    arithmetic), `vector` (two dense layers)."""
    width: Annotated[int, Between(1, 16)] = 1
    """Multiplies the number of filters of an image trunk."""
    hidden: Annotated[int, Between(1, 8_192)] = 512
    """Width of the dense layer in each of the two dueling streams."""
    dueling: bool = True
    """Separate streams for state value and advantages (Wang et al. 2016)."""
    double: bool = True
    """The online network selects the action, and the target network values it (van Hasselt et al. 2016)."""
    head: Literal["expected", "c51", "quantile", "iqn"] = "expected"
    """What is learned of the returns: their means (`expected`), or their distribution as probabilities of fixed returns
    (`c51`, Bellemare et al. 2017), as quantiles (`quantile`, Dabney et al. 2018a), or as a function that gives any
    quantile (`iqn`, Dabney et al. 2018b)."""
    distributional: bool | None = None
    """Another name of --head c51."""
    atoms: Annotated[int, Between(2, 10_000)] = 51
    """Returns among which the head `c51` divides its probability."""
    v_max: Annotated[float, Above(0)] = 10.0
    """Largest return of the head `c51`; the smallest is its negative."""
    quantiles: Annotated[int, Between(2, 10_000)] = 32
    """Quantiles of the head `quantile`; those that the head `iqn` draws for each sample, at that many times the
    arithmetic behind the trunk."""
    munchausen: bool = False
    """Add the log-probability of the action taken to the reward, and value the next state by a soft maximum (Vieillard
    et al. 2020); takes the place of --double."""
    noisy: bool = False
    """Weights of the dense and the last layers have learned noise, drawn anew for each update and each vector step
    (Fortunato et al. 2018); evaluations are without. Epsilon stays as set."""

    # Replay
    capacity: Annotated[int | None, AtLeast(1)] = None
    """Rows of replay over all games (default: 1,000,000, 2,000,000 on a GPU with room for them, or fewer if the run or
    the memory is smaller)."""
    frame_store: Literal["auto", "ram", "lz4", "mmap", "device"] = "auto"
    """Where the replay keeps its frames: in memory, plain (`ram`) or compressed (`lz4`), in a file on the disk of the
    run's folder (`mmap`), or on the device that learns (`device`). `auto` on a GPU: on the GPU if they fit, else in
    memory. On a CPU: compressed only if plain frames do not fit."""
    stack: Annotated[int, Between(1, 255)] = 4
    """Frames in one observation."""
    prioritized: bool = True
    """Draw rows by TD error (Schaul et al. 2016); off: uniformly."""
    alpha: Annotated[float, Between(0, 1)] = 0.6
    """Exponent of the priorities."""
    beta_start: Annotated[float, Between(0, 1)] = 0.4
    """Exponent of the importance weights at the start."""
    beta_end: Annotated[float, Between(0, 1)] = 1.0
    """Exponent of the importance weights at the end of the run."""
    priority_eps: Annotated[float, Above(0)] = 1e-6
    """Added to each priority, so that every row can be drawn again."""
    n_step: Annotated[int, Between(1, 10_000)] = 3
    """Rewards summed before the value of a later state takes over."""
    n_step_end: Annotated[int | None, Between(1, 10_000)] = None
    """Rewards summed from `n_step_steps` on (default: `n_step`)."""
    n_step_steps: Annotated[int, AtLeast(0)] = 1_000_000
    """Agent steps over which n_step becomes n_step_end, once learning has started."""
    n_step_schedule: Annotated[WholeSchedule, Points(Between(1, 10_000), whole=True)] = ()
    """Rewards summed, as a schedule: each word is agent steps since learning started, a colon and the value then.
    Between two words the value goes straight from one to the other, rounded. Replaces n_step, n_step_end and
    n_step_steps. Without words: no schedule."""
    gamma: Annotated[float, Between(0, 1)] = 0.99
    """Discount per agent step."""
    gamma_schedule: Annotated[Schedule, Points(Between(0, 0.999999))] = ()
    """Discount as a schedule, like n_step_schedule; straight in log(1 - gamma). Replaces gamma."""

    # Learning
    batch_size: Annotated[int, Between(1, 16_384)] = 256
    """Samples in one update."""
    samples_per_step: Annotated[float, Above(0)] = 4.0
    """Samples learned per agent step; divided by the batch size, this gives updates per agent step."""
    learn_start_steps: Annotated[int, AtLeast(0)] = 20_000
    """Agent steps with random actions before learning starts (at most a tenth of the run)."""
    target_period_updates: Annotated[int, AtLeast(1)] = 500
    """Updates between two copies of the online network into the target network."""
    target_period_end: Annotated[int | None, AtLeast(1)] = None
    """Updates between two copies from `target_period_steps` on (default: `target_period_updates`)."""
    target_period_steps: Annotated[int, AtLeast(0)] = 600_000
    """Agent steps over which target_period_updates becomes target_period_end, once learning has started."""
    target_tau: Annotated[float, Between(0, 1)] = 0.0
    """Share of the way that the target network moves towards the online network after each update (Lillicrap et al.
    2016, algorithm 1). Replaces target_period_updates, target_period_end and target_period_steps. 0: it is copied."""
    average_updates: Annotated[int, Between(0, 25_000)] = 0
    """Evaluations play by the moving average of the network's weights over N updates, at most 25,000, early on over a
    tenth of those made, and checkpoints save it to play with (Polyak & Juditsky 1992). Learning is the same. 0: the
    last weights."""
    optimizer: Literal["adam", "rmsprop"] = "adam"
    """`rmsprop` is the centred version of Mnih et al. 2015."""
    learning_rate: Annotated[float, Above(0)] = 2.5e-4
    """Step size of the optimizer (Mnih et al. 2015: 2.5e-4 for rmsprop)."""
    learning_rate_end: Annotated[float | None, Above(0)] = None
    """Step size from `learning_rate_steps` on (default: `learning_rate`)."""
    learning_rate_steps: Annotated[int, AtLeast(0)] = 1_000_000
    """Agent steps over which learning_rate becomes learning_rate_end, once learning has started."""
    learning_rate_schedule: Annotated[Schedule, Points(Above(0))] = ()
    """Step size as a schedule, like n_step_schedule; a warm-up multiplies it. Replaces learning_rate,
    learning_rate_end and learning_rate_steps."""
    learning_rate_warmup_steps: Annotated[int, AtLeast(0)] = 0
    """Agent steps over which the step size rises from 0, once learning has started."""
    learning_rate_warmup_updates: Annotated[int, AtLeast(0)] = 0
    """The same, counted in updates: as many agent steps as they take at `samples_per_step`."""
    optimizer_eps: Annotated[float | None, Above(0)] = None
    """Stability term of the optimizer (default: 0.005 / batch size for adam; for rmsprop 0.01 / 32^2: the
    paper's 0.01 is for a sum over 32 rows, and the loss here is a mean)."""
    max_grad_norm: Annotated[float, Above(0)] = 10.0
    """Largest norm of a gradient; a larger gradient is scaled down to it."""
    huber_delta: Annotated[float, Above(0)] = 1.0
    """TD error at which the Huber loss turns from quadratic to linear."""

    # Exploration
    epsilon_start: Annotated[float, Between(0, 1)] = 1.0
    """Share of random actions at the start."""
    epsilon_end: Annotated[float, Between(0, 1)] = 0.01
    """Share of random actions from `epsilon_steps` on."""
    epsilon_steps: Annotated[int, AtLeast(0)] = 250_000
    """Agent steps over which epsilon falls, once learning has started (at most half of the run)."""
    epsilon_schedule: Annotated[Schedule, Points(Between(0, 1))] = ()
    """Share of random actions as a schedule, like n_step_schedule. Replaces epsilon_start, epsilon_end and
    epsilon_steps."""
    epsilon_ladder: Annotated[tuple[float, ...], Falling()] = ()
    """Two shares of random actions, of the first game and the last; those between are spaced by equal factors, and each
    game keeps its own (Horgan et al. 2018). Training scores are then those of the quarter of the games with the lowest.
    Replaces epsilon_start, epsilon_end and epsilon_steps. Without values: one epsilon for all games."""

    # Speed
    compile: bool = True
    """Compile act and update with torch.compile; off: eager PyTorch."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Arithmetic of the network; the last layers are always float32. `auto`: bfloat16 if the device supports it, else
    float32; on such a CPU float32 if a measurement at the start shows it to be faster."""
    torch_threads: Annotated[int, Between(0, MOST_THREADS)] = 0
    """PyTorch's CPU threads (0: one per CPU core that this process may use, or fewer if a measurement at the start
    shows them to be faster; on a GPU one)."""
    kernels: Literal["auto", "fastrl", "torch"] = "auto"
    """A CPU's convolutions: `fastrl`, its own for images of bytes, or `torch`, PyTorch's. `auto`:
    fastrl's where they fit, unless a measurement at the start shows PyTorch's to be faster."""

    # Clocks
    log_every_frames: Annotated[int, AtLeast(1)] = 20_000
    """Frames between two rows of metrics."""
    evaluate_every_frames: Annotated[int, AtLeast(1)] = 1_000_000
    """Frames between two evaluations."""
    evaluate_episodes: Annotated[int, Between(1, 10_000)] = 10
    """Whole games per evaluation during the run."""
    final_episodes: Annotated[int, Between(1, 10_000)] = 30
    """Whole games of the evaluation at the end of the run."""
    checkpoint_every_frames: Annotated[int, AtLeast(1)] = 1_000_000
    """Frames between two checkpoints."""
    checkpoint_every_minutes: Annotated[float, Between(0, 1_000_000)] = 5.0
    """Minutes after the newest checkpoint until one more is saved, which the next checkpoint replaces (0: none)."""
    keep_checkpoints: Annotated[int, AtLeast(1)] = 3
    """Checkpoints of `checkpoint_every_frames` to keep, besides the best by evaluation."""
    checkpoint_replay: bool = True
    """Save the replay with the newest checkpoint, so that a resumed run needs no new warm-up."""

    def __post_init__(self) -> None:
        Rules.__post_init__(self)
        RunConfig.__post_init__(self)
        for name in REPLACES:  # most are schedules, which JSON keeps as lists
            object.__setattr__(self, name, as_tuples(getattr(self, name)))
        check_device(self.device)
        check(self)
        self._settle_head()
        if self.collectors and self.env_groups > 1:
            raise ConfigError(
                f"--env-groups is {self.env_groups} and --collectors is {self.collectors}; collectors take turns by "
                "themselves: give --env-groups 1"
            )
        if self.num_envs % self.env_groups:
            raise ConfigError(
                f"--env-groups is {self.env_groups}, which does not divide --num-envs {self.num_envs}; "
                "give a divisor of it"
            )
        if self.learning_rate_warmup_steps and self.learning_rate_warmup_updates:
            raise ConfigError(
                f"--learning-rate-warmup-steps is {self.learning_rate_warmup_steps} and --learning-rate-warmup-updates "
                f"is {self.learning_rate_warmup_updates}; give 0 for one of them"
            )
        if self.epsilon_ladder and self.epsilon_schedule:
            raise ConfigError(
                f"--epsilon-ladder is {spelled(self.epsilon_ladder)} and --epsilon-schedule is "
                f"{spelled(self.epsilon_schedule)}; give one of them without a value, or leave it out"
            )

    def _settle_head(self) -> None:
        """Let `distributional` speak through `head` alone: it is None afterwards."""
        if self.distributional is None:
            return
        agrees = self.head in ("expected", "c51") if self.distributional else self.head != "c51"
        if not agrees:
            flag = "--distributional" if self.distributional else "--no-distributional"
            raise ConfigError(f"{flag} is given, and --head is {self.head!r}; give --head alone")
        object.__setattr__(self, "head", "c51" if self.distributional else self.head)
        object.__setattr__(self, "distributional", None)

    @property
    def numbers_per_action(self) -> int:
        """Numbers that the network gives for each action, by its head."""
        return {"expected": 1, "c51": self.atoms}.get(self.head, self.quantiles)

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values in the named fields.

        Raises
        ------
        ConfigError
            If a value does not fit, or is one that a schedule replaces.
        """
        if changes.get("distributional") and "head" not in changes:
            changes["head"] = "c51"  # in place of the head that was
        changed = super().replace(**changes)
        for name, replaced in REPLACES.items():
            for other in (other for other in replaced if getattr(changed, name) and other in changes):
                value, by = getattr(changed, name), flag_of(name)
                off = "without a value" if isinstance(value, tuple) else "0"
                raise ConfigError(
                    f"{flag_of(other)} is {changes[other]!r}, and {by} {spelled(value)} replaces it; leave it out, or "
                    f"give {by} {off}"
                )
        return changed

    def check_read(self, given: Collection[str]) -> None:
        """Raise ConfigError for a setting, among those given by name, that has no effect beside the others."""
        for name, end in SLOPES.items():
            if name in given and getattr(self, end) is None:
                raise ConfigError(
                    f"{flag_of(name)} is {getattr(self, name)}, and {flag_of(end)} is not given; give {flag_of(end)} N "
                    "too, or leave it out"
                )
        refuse_rules_of_atari({name: getattr(self, name) for name in given}, self.game)
        for name in ("env_threads", "dephase_steps") if is_custom(self.game) else ():
            if name in given:
                raise ConfigError(
                    f"{flag_of(name)} is {getattr(self, name)}, which only EnvPool's games read, and {self.game} is a "
                    "custom environment; leave it out"
                )
        refuse_unread(self, given, READ_WITH)

    @property
    def group_size(self) -> int:
        """Games in one group."""
        return self.num_envs // self.env_groups

    @property
    def all_envs(self) -> int:
        """Games of the whole run: `num_envs`, or those of all collectors. The replay has a ring for each."""
        return self.num_envs * max(1, self.collectors)

    @property
    def first_scored_env(self) -> int:
        """The first game whose training scores are reported, of `all_envs`: with a ladder, of the last quarter."""
        return self.all_envs - math.ceil(self.all_envs / 4) if self.epsilon_ladder else 0

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
    def rate_warm_up_steps(self) -> float:
        """Agent steps over which the step size rises."""
        if not self.learning_rate_warmup_updates:
            return self.learning_rate_warmup_steps
        return self.learning_rate_warmup_updates * self.batch_size / self.samples_per_step

    @property
    def largest_n_step(self) -> int:
        """Most rewards that are ever summed."""
        return max(value for _, value in self.n_step_points)

    @property
    def n_step_points(self) -> WholeSchedule:
        """The schedule of n, also where the three other settings give it; of two values at one step the later holds."""
        return self.n_step_schedule or _slope(self.n_step, self.n_step_end, self.n_step_steps)

    @property
    def target_period_points(self) -> WholeSchedule:
        """The schedule of the updates between two copies of the online network into the target network."""
        return _slope(self.target_period_updates, self.target_period_end, self.target_period_steps)

    @property
    def gamma_points(self) -> Schedule:
        """The schedule of the discount; without one, the discount."""
        return self.gamma_schedule or ((0, self.gamma),)

    @property
    def largest_return(self) -> float:
        """The largest return that clipped rewards allow, 1 / (1 - gamma); infinity where they are not clipped."""
        gamma = max(gamma for _, gamma in self.gamma_points)
        return 1 / (1 - gamma) if self.reward_clip and gamma < 1 else math.inf

    @property
    def learning_rate_points(self) -> Schedule:
        """The schedule of the step size, also where the three other settings give it."""
        slope = _slope(self.learning_rate, self.learning_rate_end, self.learning_rate_steps)
        return self.learning_rate_schedule or slope

    @property
    def epsilon_points(self) -> Schedule:
        """The schedule of epsilon, also where the three other settings give it."""
        return self.epsilon_schedule or ((0, self.epsilon_start), (self.epsilon_decay_steps, self.epsilon_end))


Value = TypeVar("Value", int, float)


def _slope(start: Value, end: Value | None, steps: int) -> tuple[tuple[int, Value], ...]:
    """Return the schedule that goes from `start` to `end` over `steps` agent steps; without an end it stays."""
    return ((0, start), (steps, start if end is None else end))


@dataclass(frozen=True, kw_only=True)
class SarsaConfig(RunConfig):
    """Settings of linear SARSA(lambda) on many CartPoles at once (Sutton & Barto 2018, section 12.7)."""

    learners: Annotated[int, Between(1, 10_000)] = 256
    """Independent learners, each with its own CartPole."""
    episodes: Annotated[int, AtLeast(1)] = 300
    """Episodes of each learner that count; a learner plays on until all have finished N."""
    max_steps: Annotated[int, AtLeast(1)] = 200_000
    """Agent steps per learner after which the run ends in any case."""
    learning_rate: Annotated[float, Above(0)] = 0.1
    """Step size, the alpha of the textbook."""
    gamma: Annotated[float, Between(0, 1)] = 0.95
    """Discount per step."""
    lam: Annotated[float, Between(0, 1)] = 0.5
    """Decay of the eligibility traces."""
    epsilon: Annotated[float, Between(0, 1)] = 0.0
    """Share of random actions; ties between action values are broken at random."""
    features: Literal["scaled", "raw"] = "scaled"
    """Inputs of the linear values: observations `scaled` to about 1 in size, or `raw`."""
    reward: Literal["failure", "survival"] = "failure"
    """`failure`: 0, and -1 for the step that fails; `survival`: +1 for every step, including the one that fails."""
    dynamics: Literal["gymnasium", "own"] = "gymnasium"
    """Code that moves the CartPoles: Gymnasium, or the package's `own` NumPy code, which is faster and equal to the
    bit."""
    version: Literal["v0", "v1", "both"] = "both"
    """CartPole-v0 (200 steps, solved at 195), v1 (500 steps, solved at 475), or one after the other."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self)
