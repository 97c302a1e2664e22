"""A replay buffer for Stable-Baselines3's off-policy agents: `fastrl.replay` behind its interface."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray
from stable_baselines3.common import buffers
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecNormalize

from fastrl.integrations.sb3.checks import fraction, positive_integer
from fastrl.integrations.sb3.stacks import Padding, Stacks, differ
from fastrl.replay import PrioritizedReplayBuffer


class Samples(NamedTuple):
    """B transitions: the fields of Stable-Baselines3's ``ReplayBufferSamples``, and two more."""

    observations: torch.Tensor | dict[str, torch.Tensor]
    """``[B, *obs_shape]``; of a Dict space, one for each key."""
    actions: torch.Tensor
    """``[B, action_dim]``."""
    next_observations: torch.Tensor | dict[str, torch.Tensor]
    """``[B, *obs_shape]`` after the last step of the return."""
    dones: torch.Tensor
    """``[B, 1] float32``: 1 after a termination."""
    rewards: torch.Tensor
    """``[B, 1] float32``: sum of gamma^k r_k over the steps taken."""
    discounts: torch.Tensor | None
    """``[B, 1] float32``: gamma to the number of steps taken, 0 after a termination; None without a gamma."""
    weights: torch.Tensor
    """``[B, 1] float32``: importance weights, the largest 1."""
    indices: NDArray[np.int64]
    """``[B]``: names of the transitions, for `ReplayBuffer.update_priorities`; opaque."""


class ReplayBuffer(buffers.ReplayBuffer):
    """`fastrl.replay.PrioritizedReplayBuffer` behind the interface of Stable-Baselines3's replay buffer.

    Pass it as ``replay_buffer_class``, and the arguments after ``handle_timeout_termination`` in
    ``replay_buffer_kwargs``. Of a stacked observation only the newest frame is stored. Every observation added is
    compared with what the stored frames would give, so that a batch holds what the agent saw, to the bit.

    A transition can be drawn once its environment has been stepped ``n_steps`` times more, or its episode is over. The
    last ``n_steps`` transitions before an early reset never can be. `save_replay_buffer` and `load_replay_buffer` work;
    the file is as large as the frames held, and is first written to the folder of temporary files.

    Parameters
    ----------
    buffer_size : int
        Transitions over all environments. The final observation of each episode takes the room of one more.
    observation_space, action_space : gymnasium.spaces.Space
        Spaces of one environment. Observations: any space except Tuple, and Dict of such (for `MultiInputPolicy`).
    device : torch.device or str
        Where samples go; frames stay in memory.
    n_envs : int
        Number of environments.
    optimize_memory_usage : bool
        Must be False: frames are stored once in any case.
    handle_timeout_termination : bool
        Whether a truncated episode (``infos[i]["TimeLimit.truncated"]``) is bootstrapped from its terminal
        observation; if not, it counts as terminated.
    stack : int
        Frames in an observation, as `VecFrameStack` stacks them; 1 stores observations whole.
    stack_padding : {"zero", "first"}
        What fills a stack before the first frame of an episode: zeros (`VecFrameStack`), or that frame again
        (Gymnasium's `FrameStackObservation`).
    channels_order : {"first", "last", None}
        The axis along which frames are stacked. None: the channels of an image, as Stable-Baselines3 finds them; the
        last axis of anything else. Of a Dict space also a dictionary of these.
    n_steps : int
        Rewards summed into one return.
    gamma : float, optional
        Discount per step; needed for ``n_steps`` above 1. Without it the agent applies its own discount.
    alpha : float
        Exponent of the priorities, from 0 (uniform) up.
    beta : float
        Exponent of the importance weights, from 0 (no correction) to 1 (full); `sample` may be given another.
    eps : float
        Added to each priority, above 0.
    seed : int, optional
        Seed of the draws. None: from NumPy's global generator, which Stable-Baselines3 seeds with the model's seed.

    Raises
    ------
    ValueError
        If an argument is out of range or not supported; the message names it and the remedy.
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: torch.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        stack: int = 1,
        stack_padding: Padding = "zero",
        channels_order: Literal["first", "last"] | Mapping[str, Literal["first", "last"] | None] | None = None,
        n_steps: int = 1,
        gamma: float | None = None,
        alpha: float = 0.6,
        beta: float = 0.4,
        eps: float = 1e-6,
        seed: int | None = None,
    ) -> None:
        stack, n_steps = positive_integer("stack", stack), positive_integer("n_steps", n_steps)
        n_envs = positive_integer("n_envs", n_envs)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
        if any(isinstance(part, spaces.Dict | spaces.Tuple) for part in parts.values()):
            raise ValueError(
                f"observation_space is {observation_space}; flatten it into one Box, for example with Gymnasium's "
                "FlattenObservation, or into a Dict of such"
            )
        if optimize_memory_usage:
            raise ValueError("optimize_memory_usage is True; leave it out: frames are stored once in any case")
        if not isinstance(handle_timeout_termination, bool):
            raise ValueError(f"handle_timeout_termination is {handle_timeout_termination!r}; give True or False")
        orders = channels_order if isinstance(channels_order, Mapping) else dict.fromkeys(parts, channels_order)
        if orders.keys() != parts.keys() or not all(order in (None, "first", "last") for order in orders.values()):
            raise ValueError(f"channels_order is {channels_order!r}; give 'first', 'last' or None")
        if n_steps > 1 and gamma is None:
            raise ValueError(f"gamma is None, but n_steps={n_steps} sums discounted rewards; give the agent's gamma")
        least = n_envs * (stack + n_steps + 1)
        if positive_integer("buffer_size", buffer_size) < least:
            raise ValueError(
                f"buffer_size is {buffer_size}; {n_envs} environments, stack={stack} and n_steps={n_steps} need "
                f"{least} or more"
            )
        # Not the __init__ of buffers.ReplayBuffer, which would allocate memory for every stack.
        buffers.BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs)
        self.buffer_size = buffer_size // n_envs
        self.optimize_memory_usage, self.handle_timeout_termination = False, handle_timeout_termination
        self.n_steps, self.gamma, self.beta = n_steps, gamma, fraction("beta", beta)
        obs_shape: Any = self.obs_shape  # of a Dict space a dictionary, whatever its annotation says
        shapes = obs_shape if isinstance(observation_space, spaces.Dict) else {"": obs_shape}
        self._spaces = parts
        self._stacks = {
            key: Stacks(shapes[key], stack, axis=_stacked_axis(part, orders[key])) for key, part in parts.items()
        }
        self._settings: dict[str, Any] = {
            "capacity": buffer_size,
            "num_envs": n_envs,
            "autoreset": "same_step",
            "obs_shape": self._nested({key: each.frame_shape for key, each in self._stacks.items()}),
            "obs_dtype": self._nested({key: part.dtype for key, part in parts.items()}),
            "action_shape": (self.action_dim,),
            "action_dtype": self._maybe_cast_dtype(action_space.dtype),
            "stack": stack,
            "stack_padding": stack_padding,
            "n_step": n_steps,
            "gamma": 1.0 if gamma is None else gamma,
            "alpha": alpha,
            "eps": eps,
            "seed": np.random.randint(2**31) if seed is None else seed,  # noqa: NPY002
        }
        self.reset()

    def reset(self) -> None:
        """Forget all transitions; draws start again from the seed."""
        super().reset()
        self.replay = PrioritizedReplayBuffer(**self._settings)
        self._next = {  # the newest next_obs
            key: np.zeros((self.n_envs, *each.shape), self._spaces[key].dtype) for key, each in self._stacks.items()
        }
        self._ended = np.ones(self.n_envs, bool)  # the newest transitions ended their episodes

    @property
    def stacks(self) -> Any:
        """How observations split into frames; of a Dict space, one `Stacks` for each key."""
        return self._nested(self._stacks)

    def size(self) -> int:
        """Return how many transitions can be drawn for each environment, rounded down."""
        return self.replay.drawable // self.n_envs

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: NDArray[Any],
        reward: NDArray[Any],
        done: NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Add one step of all environments, as Stable-Baselines3's agents do after each.

        Parameters
        ----------
        obs, next_obs : [n_envs, *obs_shape]
            Observations before and after the action; after a done the terminal one, not that of the reset. An ``obs``
            that differs from the ``next_obs`` before it opens a new episode. Of a Dict space, one for each key.
        action : [n_envs, action_dim] or [n_envs]
            Action taken at ``obs``.
        reward : [n_envs] float
            Reward of the action.
        done : [n_envs] bool
            Whether the action ended the episode.
        infos : list of dict
            One for each environment; ``"TimeLimit.truncated"`` and ``"terminal_observation"`` are read where done.

        Raises
        ------
        ValueError
            If an argument does not fit, a stacked observation could not be rebuilt to the bit, or a truncated episode
            comes without its terminal observation. Nothing has changed then.
        """
        obs, next_obs = self._checked("obs", obs), self._checked("next_obs", next_obs)
        done = np.asarray(done, np.bool_)
        if done.shape != (self.n_envs,) or len(infos) != self.n_envs:
            raise ValueError(f"done has shape {done.shape} and infos {len(infos)} entries; give one per environment")
        seen = ~done | np.array([info.get("terminal_observation") is not None for info in infos])
        truncated = done & np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        truncated &= self.handle_timeout_termination
        if (truncated & ~seen).any():
            raise ValueError(
                f"infos[{np.argmax(truncated & ~seen)}] says TimeLimit.truncated, but has no terminal_observation to "
                "bootstrap from; give it, or build the buffer with handle_timeout_termination=False"
            )
        action = np.asarray(action)
        if action.size != self.n_envs * self.action_dim:
            raise ValueError(f"action has shape {action.shape}; expected {(self.n_envs, self.action_dim)}")
        opens = self._ended.copy()
        for key, array in obs.items():
            opens |= differ(array, self._next[key])
        for key, stacks in self._stacks.items():
            if stacks.stack > 1:
                self._check_stacks(key, obs[key], next_obs[key], opens, seen)
        self.replay.add(
            self._newest(obs),
            action.reshape(self.n_envs, -1),
            reward,
            terminated=done & ~truncated,
            truncated=truncated,
            first=opens,
            final_obs=self._newest(next_obs) if done.any() else None,
        )
        self._next, self._ended = {key: array.copy() for key, array in next_obs.items()}, done
        self.pos = (self.pos + 1) % self.buffer_size
        self.full |= self.pos == 0

    def sample(  # type: ignore[override]
        self, batch_size: int, env: VecNormalize | None = None, beta: float | None = None
    ) -> Samples:
        """Draw transitions in proportion to their priorities.

        Parameters
        ----------
        batch_size : int
            B, at least 1.
        env : VecNormalize, optional
            Normalizes observations and rewards with its current statistics.
        beta : float, optional
            Exponent of the importance weights, from 0 to 1 (default: that of the buffer).

        Raises
        ------
        ValueError
            If no transition can be drawn yet, or ``env`` normalizes what it must not (see `check_normalizer`).
        """
        self.check_normalizer(env)
        batch = self.replay.sample(batch_size, beta=self.beta if beta is None else beta)
        obs, next_obs = (self._observations(frames, env) for frames in (batch.obs, batch.next_obs))
        columns = {
            "dones": (batch.discount == 0).astype(np.float32),
            "rewards": self._normalize_reward(batch.reward, env),
            "weights": batch.weight,
        } | ({} if self.gamma is None else {"discounts": batch.discount})
        return Samples(
            observations=obs,
            actions=self.to_torch(batch.action, copy=False),
            next_observations=next_obs,
            indices=batch.index,
            **{"discounts": None} | {k: self.to_torch(v[:, None], copy=False) for k, v in columns.items()},  # type: ignore[arg-type]
        )

    def update_priorities(self, indices: ArrayLike, priorities: ArrayLike) -> None:
        """Give the transitions named ``indices [B]`` new priorities ``[B]``, usually their absolute TD errors.

        Transitions that were overwritten since they were drawn are ignored. Raises ValueError for a priority that is
        negative or not finite.
        """
        self.replay.update_priorities(indices, priorities)

    def check_normalizer(self, env: VecNormalize | None) -> None:
        """Raise ValueError if ``env`` normalizes observations of stacks, or rewards of several steps.

        `VecNormalize` gives terminal observations back rounded, so that they would not match the stacks. It clips each
        reward, but the buffer returns sums over several steps.
        """
        stack = self.replay._ring.stack
        if env is not None and env.norm_obs and stack > 1:
            raise ValueError(f"norm_obs of VecNormalize is True, but stack is {stack}; give False, or stack=1")
        if env is not None and env.norm_reward and self.n_steps > 1:
            raise ValueError(
                f"norm_reward of VecNormalize is True, but n_steps is {self.n_steps}; give False, or n_steps=1"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes; in place of the replay, the bytes of the file that its `save` writes."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "replay")
            self.replay.save(path)
            saved = np.asarray(np.memmap(path, np.uint8, "r"))  # readable after the file is gone, and not all in memory
        return self.__dict__ | {"replay": saved}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what `__getstate__` returned."""
        with TemporaryDirectory() as folder:
            path = Path(folder, "replay")
            state["replay"].tofile(path)
            self.__dict__ |= state | {"replay": PrioritizedReplayBuffer.load(path)}

    # --- inside ---------------------------------------------------------------------------------------

    def _nested(self, parts: dict[str, Any]) -> Any:
        """Return what stands for each array of an observation, nested as the observation space is."""
        return parts if isinstance(self.observation_space, spaces.Dict) else parts[""]

    def _parts(self, name: str, value: Any) -> Mapping[str, Any]:
        """Return each array of an observation by its key, or raise ValueError."""
        if not isinstance(self.observation_space, spaces.Dict):
            return {"": value}
        if not isinstance(value, Mapping) or value.keys() != self._spaces.keys():
            found = list(value) if isinstance(value, Mapping) else type(value).__name__
            raise ValueError(f"{name} is {found}; give a dictionary with the keys {list(self._spaces)}")
        return value

    def _checked(self, name: str, value: Any) -> dict[str, NDArray[Any]]:
        """Return observations as ``[n_envs, *shape]`` of the spaces' dtypes by key, or raise ValueError."""
        checked = {}
        for key, part in self._parts(name, value).items():
            space, array, wanted = self._spaces[key], np.asarray(part), (self.n_envs, *self._stacks[key].shape)
            if isinstance(space, spaces.Discrete) and array.shape == wanted[:1]:
                array = array.reshape(wanted)
            if array.shape != wanted:
                raise ValueError(
                    f"{_named(name, key)} has shape {array.shape}; expected {wanted}, an observation for each of "
                    f"n_envs={self.n_envs}: build the buffer with the number and the observation_space of the "
                    "environments"
                )
            checked[key] = array.astype(space.dtype, copy=False)
        return checked

    def _newest(self, obs: dict[str, NDArray[Any]]) -> Any:
        """Return the newest frames, contiguous, so that the replay takes all in one call."""
        return self._nested({key: np.ascontiguousarray(self._stacks[key].newest(part)) for key, part in obs.items()})

    def _observations(self, frames: Any, env: VecNormalize | None) -> Any:
        """Return observations as tensors, made of the frames of a batch."""
        joined = {key: self._stacks[key].join(part) for key, part in self._parts("obs", frames).items()}
        found: Any = self._normalize_obs(self._nested(joined), env)
        if isinstance(found, dict):
            return {key: self.to_torch(part, copy=False) for key, part in found.items()}
        return self.to_torch(found, copy=False)

    def _check_stacks(
        self, key: str, obs: NDArray[Any], next_obs: NDArray[Any], opens: NDArray[np.bool_], seen: NDArray[np.bool_]
    ) -> None:
        """Raise ValueError unless stored frames would give these observations back, to the bit."""
        stacks, padding = self._stacks[key], self._settings["stack_padding"]
        lost = seen & differ(stacks.older(next_obs), stacks.newer(obs))
        if lost.any():
            raise ValueError(
                f"{_named('next_obs', key)} of environment {np.argmax(lost)} does not hold the newer frames of obs, "
                f"but stack is {stacks.stack}; give VecFrameStack's n_stack and channels_order, or stack=1"
            )
        strange = opens & differ(stacks.older(obs), stacks.padding(obs, padding))
        if strange.any():
            raise ValueError(
                f"{_named('obs', key)} of environment {np.argmax(strange)} opens an episode, but its older frames are "
                f"not stack_padding={padding!r}; give the padding that the environments use, and reset them first"
            )


def _named(name: str, key: str) -> str:
    return f"{name}[{key!r}]" if key else name


def _stacked_axis(space: spaces.Space[Any], channels_order: str | None) -> int:
    """Return the axis of an observation along which `VecFrameStack` puts frames: 0 or -1."""
    if channels_order is None and isinstance(space, spaces.Box) and is_image_space(space):
        return 0 if is_image_space_channels_first(space) else -1
    return 0 if channels_order == "first" else -1
