"""Fast, correct, reproducible deep Q-learning on Atari.

Importing this package brings in nothing heavy: ``fastrl.replay`` needs NumPy alone, and the training
commands (``python -m fastrl.train``) name the extra that they need when it is missing.
"""

__version__ = "0.1.0"
