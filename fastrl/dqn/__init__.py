"""The deep Q-learning agent: network, loss, learner, checkpoints and the run. PyTorch lives here."""

import os

from fastrl.base.extras import extra

# PyTorch's idle threads spin for long by default: where anything else wants a core they hold up those that work, and an
# update takes nine times as long. A short spin costs a quiet machine nothing. libgomp reads this when PyTorch is first
# imported; what the user has set wins.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

with extra("train"):
    import safetensors  # noqa: F401
    import torch  # noqa: F401
