"""The deep Q-learning agent: network, loss, learner, checkpoints and the run. PyTorch lives here."""

from fastrl.extras import need

need("torch", "train")
need("safetensors", "train")
