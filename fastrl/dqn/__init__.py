"""The deep Q-learning agent: network, loss, learner, checkpoints and the run. PyTorch lives here."""

import os

from fastrl.extras import need

# PyTorch's idle threads spin by default. Where anything else wants a core (EnvPool, a browser) the spinning ones hold
# up the working ones, and an update takes ten times as long. Read when PyTorch is first imported; the user's own wins.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

need("torch", "train")
need("safetensors", "train")
