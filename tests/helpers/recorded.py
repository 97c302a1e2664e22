"""Folders of runs as training leaves them, small and made by hand."""

import json

SCORE, MINUTES, EVALUATION = "games/return_mean_100", "time/minutes", "evaluation/return_mean"
TABLE = f"""frames,updates,{SCORE},{MINUTES},{EVALUATION}
100,0,1.0,1.0,
200,0,2.0,2.0,
250,,,,7.0
300,5,4.0,4.0,
400,9,,6.0,
400,,,,9.0
"""


def record(parent, name, table=TABLE, **settings):
    """Write a run's folder and return it."""
    folder = parent / name
    folder.mkdir()
    (folder / "metrics.csv").write_text(table)
    settings = {"agent": "dqn", "seed": 1, "name": name, "runs_dir": "runs", "game": "breakout"} | settings
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
