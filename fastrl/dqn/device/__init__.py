"""The device that the learner computes on."""
