"""What a run leaves behind, whatever its agent: folder, checkpoints, metrics, curves."""
