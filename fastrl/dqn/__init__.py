"""The deep Q-learning agent: network, loss, learner, checkpoints and the run. PyTorch lives here."""
