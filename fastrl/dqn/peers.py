"""The learners of a run, seen from one of them. Here it is alone; `fastrl.distributed.ranks` has those of torchrun.

Each learner has games and a replay of its own, and makes the same updates: their gradients are averaged. All go through
the same steps, since what decides on them is added up once a turn.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from torch import Tensor

from fastrl.base.stop import Stop
from fastrl.config import DQNConfig

Result = TypeVar("Result")


class Turn(NamedTuple):
    """What a vector step brought: to one learner, or to all together."""

    steps: int
    """Agent steps."""
    drawable: int
    """Rows of the replay that can be drawn; of all learners, 0 while one of them has none."""
    saved: bool = False
    """Whether the checkpoint in progress is written, of all learners each part."""


class Peers:
    """A learner that is alone: it agrees with itself, and at no cost.

    Attributes
    ----------
    rank : int
        Its number, from 0. The first one leads: it alone writes the run's folder, speaks and evaluates.
    count, local_count : int
        Learners of the run, and of those the ones on this machine.
    """

    rank, count, local_count = 0, 1, 1

    @property
    def leads(self) -> bool:
        """Whether this is the first learner."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.count > 1

    @property
    def average(self) -> Callable[[Tensor], None] | None:
        """What makes gradients, one flat tensor, the mean over all learners, in place; None if there are no others."""
        return None

    def part(self, config: DQNConfig) -> DQNConfig:
        """Return settings with the numbers of this learner where the run's are divided.

        Raises
        ------
        ConfigError
            If a number is not divisible by the learners.
        """
        return config

    def agreed(self, stop: Stop) -> Stop:
        """Return a stop that holds for all learners at the same step, once one of them was asked for it."""
        return stop

    def turn(self, mine: Turn, stop: Stop) -> Turn:
        """Add up what a vector step brought to all learners; a stop asked of one holds for all from then on."""
        return mine

    def timed(self, due: bool) -> bool:
        """Whether to save now because the first learner's time has come; of others, and soon after it."""
        return due

    def leading(self, work: Callable[[], None], stop: Stop) -> None:
        """Let the first learner work while the others wait. All raise `Stopped` if it left the work halfway."""
        work()

    def shared(self, make: Callable[[], Result]) -> Result:
        """Return what ``make`` returns in the first learner."""
        return make()

    def least(self, number: float) -> float:
        """Return the least of the learners' numbers."""
        return number

    def every(self, yes: bool) -> bool:
        """Whether it is so in every learner."""
        return yes

    def wait(self) -> None:
        """Wait until all have come here."""

    def remembered(self) -> Path | None:
        """Return the folder of the run that this job has begun before torchrun started it anew; None at first."""
        return None

    def remember(self, folder: Path) -> None:
        """Keep the folder of this job's run for `remembered`."""


ALONE = Peers()
"""The learner of a run that has one."""
