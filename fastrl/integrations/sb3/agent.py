"""Stable-Baselines3's DQN on prioritized replay: importance weights in the loss, TD errors as priorities."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from stable_baselines3 import DQN
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecTransposeImage
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from fastrl.integrations.sb3.buffer import ReplayBuffer
from fastrl.integrations.sb3.checks import fraction


class PrioritizedDQN(DQN):
    """Stable-Baselines3's `DQN`, drawing from a `ReplayBuffer` in proportion to TD errors.

    It differs from `DQN` in three things: importance weights multiply the unreduced Huber losses, absolute TD errors
    become priorities, and with ``double`` the online network chooses the actions of the target. The buffer gets
    ``n_steps`` and ``gamma`` from the arguments of the same names, and ``stack`` and ``channels_order`` from a
    `VecFrameStack` among the wrappers of the environment. ``replay_buffer_kwargs`` may give all four, and alpha.

    Parameters
    ----------
    policy, env, **settings
        As for `DQN`; ``replay_buffer_class`` must be `ReplayBuffer` (the default) or a subclass.
    double : bool
        Whether the online network chooses the action that the target network values (van Hasselt et al. 2016).
    beta_start, beta_end : float
        Exponent of the importance weights at the beginning and at the end of `learn`, from 0 to 1; linear in between.

    Raises
    ------
    ValueError
        If an argument is out of range, or contradicts ``replay_buffer_kwargs``.
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        double: bool = False,
        beta_start: float = 0.4,
        beta_end: float = 1.0,
        **settings: Any,
    ) -> None:
        if not isinstance(double, bool):
            raise ValueError(f"double is {double!r}; give True or False")
        self.double = double
        self.beta_start, self.beta_end = fraction("beta_start", beta_start), fraction("beta_end", beta_end)
        super().__init__(policy, env, *args, **settings)

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Do ``gradient_steps`` weighted updates from batches of ``batch_size``; none while no transition can be drawn.

        Raises
        ------
        TypeError
            If the replay buffer is not a `ReplayBuffer`.
        """
        buffer = self._buffer()
        if not buffer.replay.drawable:
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        remaining = max(self._current_progress_remaining, 0.0)  # the last rollout may go past the end
        beta = self.beta_end + (self.beta_start - self.beta_end) * remaining
        losses = []
        for _ in range(gradient_steps):
            batch = buffer.sample(batch_size, self._vec_normalize_env, beta)
            discount = self.gamma * (1 - batch.dones) if batch.discounts is None else batch.discounts
            with torch.no_grad():
                q_next = self.q_net_target(batch.next_observations)
                chooser = self.q_net(batch.next_observations) if self.double else q_next
                target = batch.rewards + discount * q_next.gather(1, chooser.argmax(dim=1, keepdim=True))
            q = self.q_net(batch.observations).gather(1, batch.actions.long())  # [B, 1]
            loss = (batch.weights * F.smooth_l1_loss(q, target, reduction="none")).mean()
            self.policy.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
            self.policy.optimizer.step()
            buffer.update_priorities(batch.indices, (target - q).detach().abs().squeeze(1).cpu().numpy())
            losses.append(loss.item())
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", np.mean(losses))
        self.logger.record("train/beta", beta)

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> RolloutReturn:
        """Step the environments, as `DQN` does.

        A callback that stops the training does so after a step and before it is stored. The next `learn` then resets
        the environments: the observation that it would continue from is out of date.
        """
        rollout = super().collect_rollouts(*args, **kwargs)
        if not rollout.continue_training:
            self._last_obs = None
        return rollout

    def load_replay_buffer(self, path: str | Path | io.BufferedIOBase, truncate_last_traj: bool = True) -> None:
        """Load the buffer that `save_replay_buffer` wrote.

        Raises
        ------
        ValueError
            If it does not fit this model, which keeps its current buffer then.
        TypeError
            If it is another kind of buffer. The model keeps its current buffer then.
        """
        mine = self._buffer()
        try:
            with contextlib.suppress(AssertionError):  # no replay buffer: `_buffer` says so
                super().load_replay_buffer(path, truncate_last_traj)
            found = self._buffer()
            for name in ("n_envs", "n_steps", "gamma", "observation_space", "action_space"):
                if getattr(found, name) != getattr(mine, name):
                    raise ValueError(
                        f"the replay buffer in {path} has {name} {getattr(found, name)}, this model "
                        f"{getattr(mine, name)}; build the model with that, or load another"
                    )
        except BaseException:
            self.replay_buffer = mine
            raise

    def _setup_model(self) -> None:
        """Work out the arguments of the buffer, then do as `DQN`."""
        self.replay_buffer_class = self.replay_buffer_class or ReplayBuffer
        if not issubclass(self.replay_buffer_class, ReplayBuffer):
            raise ValueError(f"replay_buffer_class is {self.replay_buffer_class}; give a subclass of {ReplayBuffer}")
        given = self.replay_buffer_kwargs
        n_steps = given.get("n_steps", self.n_steps)
        for name, value, ours in (("n_steps", n_steps, self.n_steps), ("gamma", given.get("gamma"), self.gamma)):
            if value not in (None, ours) and (name, ours) != ("n_steps", 1):
                raise ValueError(f"{name} is {ours}, but {value} in replay_buffer_kwargs; give it once")
        self.replay_buffer_kwargs = stacking(self.env) | given | {"n_steps": n_steps, "gamma": self.gamma}
        self.n_steps = 1  # above 1, DQN warns that only its own class of buffer supports it
        super()._setup_model()
        self.replay_buffer_kwargs = given  # as saved: `load` takes n_steps and gamma from its caller, or from the model
        self.n_steps = n_steps
        self._buffer().check_normalizer(self._vec_normalize_env)

    def _buffer(self) -> ReplayBuffer:
        if not isinstance(self.replay_buffer, ReplayBuffer):
            raise TypeError(f"replay_buffer is {type(self.replay_buffer)}; give one that PrioritizedDQN built or saved")
        return self.replay_buffer


def stacking(env: VecEnv | None) -> dict[str, Any]:
    """Return ``stack`` and ``channels_order`` for a `ReplayBuffer`; empty unless `VecFrameStack` wraps ``env``.

    Parameters
    ----------
    env : VecEnv or None
        As the agent sees it, with all its wrappers, `VecTransposeImage` among them.
    """
    moved = False
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecFrameStack):
            stacked = env.stacked_obs
            parts = getattr(stacked, "sub_stacked_observations", {"": stacked})
            order = {key: _order(part, moved) for key, part in parts.items()}
            is_dict = isinstance(env.observation_space, spaces.Dict)
            return {"stack": stacked.n_stack, "channels_order": order if is_dict else order[""]}
        moved = moved or (isinstance(env, VecTransposeImage) and not env.skip)
        env = env.venv
    return {}


def _order(stacked: StackedObservations[Any], moved: bool) -> str:
    """Return where `VecFrameStack` puts frames, as the agent sees it: ``moved`` says that images are transposed."""
    space: Any = stacked.stacked_observation_space
    transposed = moved and is_image_space(space) and not is_image_space_channels_first(space)
    return "first" if transposed or stacked.channels_first else "last"
