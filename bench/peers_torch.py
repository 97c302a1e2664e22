"""Two replays that keep whole stacks, and their next ones too: Stable-Baselines3's and TorchRL's; see `peers`."""

from __future__ import annotations

from typing import Any

import numpy as np
from contender import ALPHA, BETA, FRAME, GAMMA, NUM_ACTIONS, STACK, STACK_BYTES, Drawn, Step, Tree
from peers import SMALL_BYTES, Transitions


class StableBaselines3:
    """Stable-Baselines3's buffers, which draw uniformly: it has no priorities, so that an update does nothing.

    ``optimize_memory_usage`` keeps next stacks as the stacks of the next row; `NStepReplayBuffer` excludes it.
    """

    about = "UNIFORM, it has no priorities; whole stacks; optimize_memory_usage (n = 3: NStepReplayBuffer, without)"
    prioritized = False

    def __init__(self, rows: int, num_envs: int, n_step: int) -> None:
        from gymnasium.spaces import Box, Discrete
        from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer

        spaces = Box(0, 255, (STACK, *FRAME), np.uint8), Discrete(NUM_ACTIONS)
        settings = {"device": "cpu", "n_envs": num_envs, "handle_timeout_termination": False}
        if n_step == 1:
            self._buffer = ReplayBuffer(rows, *spaces, optimize_memory_usage=True, **settings)
        else:
            self._buffer = NStepReplayBuffer(rows, *spaces, n_steps=n_step, gamma=GAMMA, **settings)
        self.rows = rows // num_envs * num_envs
        self._infos: list[dict[str, Any]] = [{} for _ in range(num_envs)]

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        return (1 if n_step == 1 else 2) * STACK_BYTES + SMALL_BYTES

    def add(self, step: Step) -> None:
        self._buffer.add(step.stack, step.next_stack, step.action, step.reward, step.done, self._infos)

    def sample(self, batch_size: int) -> Drawn:
        return Drawn(None, self._buffer.sample(batch_size))

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        pass

    def set_n_step(self, n_step: int) -> bool:
        return False

    def transitions(self, drawn: Drawn) -> Transitions:
        batch = drawn.batch
        return batch.observations.numpy(), batch.next_observations.numpy(), batch.rewards.numpy()[:, 0]

    @staticmethod
    def tree(leaves: int) -> None:
        return None


class TorchRL:
    """TorchRL's prioritized buffer over rows that hold both stacks, as in its own DQN for Atari.

    n-step rows are made by its `MultiStepTransform`, when they are added.
    """

    about = "both stacks in a LazyTensorStorage, as its DQN for Atari does (n = 3: MultiStepTransform)"
    prioritized = True

    def __init__(self, rows: int, num_envs: int, n_step: int) -> None:
        import torch
        from tensordict import TensorDict
        from torchrl.data import LazyTensorStorage, TensorDictPrioritizedReplayBuffer
        from torchrl.envs import MultiStepTransform

        self._buffer = TensorDictPrioritizedReplayBuffer(alpha=ALPHA, beta=BETA, storage=LazyTensorStorage(rows))
        self._n_steps = MultiStepTransform(n_step, GAMMA) if n_step > 1 else None
        self._tensors, self._dict, self.rows = torch.from_numpy, TensorDict, rows

    @staticmethod
    def bytes_a_row(n_step: int) -> int:
        return 2 * STACK_BYTES + SMALL_BYTES

    def add(self, step: Step) -> None:
        stack, following, action, reward, done = map(
            self._tensors, (step.stack, step.next_stack, step.action, step.reward[:, None], step.done[:, None])
        )
        result = {"pixels": following, "reward": reward, "done": done, "terminated": done}
        rows = self._dict({"pixels": stack, "action": action, "next": result}, [len(stack)])
        if self._n_steps:
            rows = self._n_steps.inv(rows[:, None])  # [N, 1]: it keeps what came before; None as long as it waits
        if rows is not None:
            self._buffer.extend(rows.reshape(-1))

    def sample(self, batch_size: int) -> Drawn:
        batch = self._buffer.sample(batch_size)
        return Drawn(batch["index"], batch)

    def update(self, drawn: Drawn, priority: np.ndarray) -> None:
        self._buffer.update_priority(drawn.index, self._tensors(priority).float())

    def set_n_step(self, n_step: int) -> bool:
        return False

    def transitions(self, drawn: Drawn) -> Transitions:
        batch = drawn.batch
        return batch["pixels"].numpy(), batch["next", "pixels"].numpy(), batch["next", "reward"].numpy()[:, 0]

    @staticmethod
    def tree(leaves: int) -> Tree:
        import torch
        from torchrl._torchrl import SumSegmentTreeFp32

        tree = SumSegmentTreeFp32(leaves)
        tree[torch.arange(leaves)] = torch.rand(leaves)

        def sample(size: int) -> Any:
            return tree.scan_lower_bound(torch.rand(size) * tree.query(0, leaves))

        def update(index: Any, weight: np.ndarray) -> None:
            tree[index] = torch.from_numpy(weight).float()

        return Tree(sample, update)
