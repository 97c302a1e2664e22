"""One training run of a deep Q-learning agent, from its settings to its last checkpoint."""

from fastrl.dqn.run.experiment import Run, train

__all__ = ["Run", "train"]
