"""Stores of the frames of a replay: in memory as they come, or compressed."""
