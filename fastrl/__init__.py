"""Fast, correct, reproducible deep Q-learning on Atari.

Importing this package imports nothing heavy. ``fastrl.replay`` needs only NumPy. Whatever needs more, such as
``python -m fastrl.train`` and ``fastrl.load_pretrained``, names the extra to install if a package is missing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrl.dqn.network import QNetwork

__all__ = ["__version__", "load_pretrained"]
__version__ = "0.1.0"


def load_pretrained(game: str, device: str = "cpu") -> QNetwork:
    """Return the trained network that ships for a game: see `fastrl.dqn.pretrained.load_pretrained`."""
    from fastrl.dqn import pretrained

    return pretrained.load_pretrained(game, device)
