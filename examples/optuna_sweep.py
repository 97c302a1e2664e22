"""A sweep of settings by Optuna, a tool made for that, each trial a run of `fastrl.train`: here on Catch.

pip install optuna                                           # of this project's extras only test has it
python examples/optuna_sweep.py --trials 20                  # some ten minutes; Ctrl-C ends the trial in progress
python examples/optuna_sweep.py --trials 20                  # 20 more: sweep.db holds what was found
python examples/optuna_sweep.py --game breakout --frames 1000000
"""

from __future__ import annotations

import argparse
from pathlib import Path

import optuna

from fastrl import Callback, train


class Prune(Callback):
    """Reports each evaluation to the trial, and ends the trial if it does poorly beside the others."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial

    def on_evaluation(self, run, games):
        self.trial.report(games.mean, run.frames)
        if not run.over and self.trial.should_prune():
            raise optuna.TrialPruned(f"{games.mean:.2f} after {run.frames:,} frames")


def settings_of(trial: optuna.Trial) -> dict[str, object]:
    """Return the settings of a trial: any field of `fastrl.DQNConfig` may be among them."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
        "n_step": trial.suggest_categorical("n_step", [1, 3, 5]),
        "target_period_updates": trial.suggest_int("target_period_updates", 20, 500, log=True),
        "prioritized": trial.suggest_categorical("prioritized", [True, False]),
    }


def sweep(trials: int, runs_dir: str | Path = "runs/sweep", game: str = "catch", frames: int = 20_000) -> optuna.Study:
    """Make trials, beside those that the database in ``runs_dir`` holds already; return all."""
    runs_dir = Path(runs_dir)
    runs_dir.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{runs_dir / 'sweep.db'}",
        study_name=f"{game}-{frames}",
        direction="maximize",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
    )
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))  # resumed, it suggests other settings

    def objective(trial: optuna.Trial) -> float:
        run = train(
            game, [Prune(trial)], quiet=True, compile=False, films=False, checkpoint_replay=False, total_frames=frames,
            evaluate_every_frames=max(1, frames // 5), evaluate_episodes=20, runs_dir=str(runs_dir),
            name=f"{study.study_name}-{trial.number:04d}", **settings_of(trial),
        )  # fmt: skip
        if run.stop.signal is not None:  # Ctrl-C: this trial counts as failed, and no other begins
            study.stop()
            raise KeyboardInterrupt
        return run.evaluation.last.mean

    study.optimize(objective, n_trials=trials)
    return study


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--game", default="catch")
    parser.add_argument("--frames", type=int, default=20_000)
    args = parser.parse_args()
    best = sweep(args.trials, game=args.game, frames=args.frames).best_trial
    print(f"best: trial {best.number} with {best.value:.2f}: {best.params}")


if __name__ == "__main__":
    main()
