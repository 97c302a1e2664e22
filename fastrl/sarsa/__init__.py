"""Linear SARSA(lambda) on many CartPoles."""
