"""Learning curves: read, gathered over seeds, summed up."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from recorded import EVALUATION, MINUTES, SCORE, TABLE, record

pytest.importorskip("scipy")

from fastrl.base.errors import ConfigError
from fastrl.runs.curves import (
    MOST_POINTS,
    Curve,
    band_of,
    common_grid,
    curve_of,
    group_runs,
    interquartile_mean,
    interval,
    name_groups,
    read_run,
)


@pytest.fixture
def make(tmp_path):
    return functools.partial(record, tmp_path)


class TestNumbers:
    @pytest.mark.parametrize(
        ("values", "expected"),
        [([5], 5), ([1, 3], 2), ([0, 1, 8], 3), ([9, 1, 2, 100], 5.5), ([0, 90, 3, 4, 5, 6, 7, 80], 5.5)],
    )
    def test_the_interquartile_mean_leaves_out_the_outer_quarters(self, values, expected):
        assert interquartile_mean(np.array(values, float)) == pytest.approx(expected)

    def test_two_seeds_span_their_whole_interval(self):
        low, high = interval(np.array([[1.0, -5.0], [3.0, 5.0]]))  # both draws are one seed a quarter of the time
        assert low.tolist() == [1, -5]
        assert high.tolist() == [3, 5]

    def test_seeds_that_agree_leave_no_interval(self):
        low, high = interval(np.full((5, 3), 2.0))
        assert low.tolist() == high.tolist() == [2, 2, 2]

    def test_the_interval_is_the_one_of_every_possible_draw(self):
        values = np.array([0.0, 1.0, 5.0, 20.0])
        draws = values[np.stack(np.meshgrid(*[range(4)] * 4), -1).reshape(-1, 4)]  # all 4 ** 4
        exact = np.percentile(interquartile_mean(draws, axis=1), [2.5, 97.5])
        low, high = interval(values[:, None])
        assert [low[0], high[0]] == pytest.approx(exact, abs=1.0)

    def test_seeds_are_drawn_whole(self):
        low, high = interval(np.outer([1.0, 2.0, 4.0, 9.0, 3.0], [1, 10]))  # else the two columns would differ
        assert [low[1], high[1]] == pytest.approx([10 * low[0], 10 * high[0]])

    def test_one_curve_stays_as_it_is(self):
        band = band_of([Curve(np.arange(3.0), np.array([1.0, 5.0, 2.0]))])
        assert band.runs == 1
        assert band.x.tolist() == [0, 1, 2]
        assert band.middle.tolist() == band.low.tolist() == band.high.tolist() == [1, 5, 2]

    def test_several_curves_become_one_with_an_interval(self):
        flat = [Curve(np.array([0.0, 10.0]), np.full(2, y)) for y in (1.0, 2.0, 3.0, 100.0)]
        band = band_of(flat)
        assert band.runs == 4
        assert band.middle.tolist() == [2.5, 2.5]
        assert (band.low >= 1).all()
        assert (band.low < 2.5).all()
        assert (band.high > 2.5).all()

    def test_interpolation_never_extrapolates(self):
        one = Curve(np.array([0.0, 10.0, 20.0]), np.array([0.0, 10.0, 20.0]))
        other = Curve(np.array([5.0, 8.0, 11.0, 14.0]), np.array([50.0, 80.0, 110.0, 140.0]))
        band = band_of([one, other])
        assert band.x.tolist() == [5, 10, 14]  # the sparser curve's points within what both have, and its two ends
        assert band.middle == pytest.approx((band.x + 10 * band.x) / 2)

    def test_long_curves_are_thinned_within_their_common_range(self):
        grid = common_grid([Curve(np.arange(k, 5000.0), np.zeros(5000 - k)) for k in (0, 7)])
        assert len(grid) == MOST_POINTS
        assert (grid[0], grid[-1]) == (7, 4999)

    def test_curves_without_a_common_range_are_refused(self):
        with pytest.raises(ConfigError, match="begins at 5, one ends at 2; give --group each"):
            band_of([Curve(np.array([1.0, 2.0]), np.zeros(2)), Curve(np.array([5.0, 6.0]), np.zeros(2))])


class TestReading:
    def test_gaps_are_skipped(self, make):
        curve = curve_of(read_run(make("a")), "frames", SCORE)
        assert curve.x.tolist() == [100, 200, 300]
        assert curve.y.tolist() == [1, 2, 4]

    def test_evaluations_get_their_minutes_from_the_rows_around(self, make):
        curve = curve_of(read_run(make("a")), MINUTES, EVALUATION)
        assert curve.x.tolist() == [3, 6]
        assert curve.y.tolist() == [7, 9]

    def test_an_evaluation_outside_of_all_minutes_is_left_out(self, make):
        curve = curve_of(read_run(make("a", TABLE + "500,,,,11.0\n")), MINUTES, EVALUATION)
        assert curve.y.tolist() == [7, 9]

    def test_of_equal_points_the_last_counts(self, make):
        curve = curve_of(read_run(make("a")), "updates", SCORE)
        assert curve.x.tolist() == [0, 5]
        assert curve.y.tolist() == [2, 4]

    def test_samples_are_updates_of_the_runs_batch_size_and_evaluations_get_theirs_from_the_rows_around(self, make):
        curve = curve_of(read_run(make("a", batch_size=64)), "samples", SCORE)
        assert (curve.x.tolist(), curve.y.tolist()) == ([0, 320], [2, 4])
        curve = curve_of(read_run(make("b", batch_size=64)), "samples", EVALUATION)
        assert (curve.x.tolist(), curve.y.tolist()) == ([160, 576], [7, 9])

    @pytest.mark.parametrize(("first", "expected"), [("", [10, 20, 60]), ("30", [30, 20, 60])])
    def test_samples_that_a_run_wrote_come_before_those_counted_and_two_batch_sizes_leave_gaps(
        self, make, first, expected
    ):
        rows = f"100,1,{first},1\n200,2,20,2\n300,6,60,3\n"
        run = read_run(make("a", "frames,updates,samples,games/return_mean_100\n" + rows, batch_size=10))
        assert run.column("samples", "--x").tolist() == expected
        run = replace(run, settings=run.settings | {"batch_size": 20})
        assert [x for x in run.column("samples", "--x") if np.isfinite(x)] == [x for x in expected if first or x != 10]

    @pytest.mark.parametrize(("x", "y"), [("frames", SCORE), (MINUTES, EVALUATION)])
    def test_a_file_that_goes_back_is_refused(self, make, x, y):
        table = TABLE + TABLE.partition("\n")[2]
        with pytest.raises(
            ConfigError, match=r"goes back in frames, from \d+ to \d+; give each part as a file of its own"
        ):
            curve_of(read_run(make("a", table)), x, y)

    def test_a_first_column_of_words_is_not_needed(self, tmp_path):
        (file := tmp_path / "days.csv").write_text(f"when,frames,{SCORE}\nmon,0,1\ntue,1,2\n")
        assert curve_of(read_run(file), "frames", SCORE).y.tolist() == [1, 2]

    def test_a_file_that_no_run_writes_may_lack_the_last_line_end(self, tmp_path):
        (file := tmp_path / "exported.csv").write_text(f"frames,{SCORE}\n0,1\n1,2\n2,99")
        assert curve_of(read_run(file), "frames", SCORE).y.tolist() == [1, 2, 99]

    def test_a_run_that_does_not_tell_its_batch_size_has_no_samples(self, make):
        with pytest.raises(ConfigError, match=r"--x asks for samples, which .* has not; it has frames, updates"):
            curve_of(read_run(make("a")), "samples", SCORE)

    def test_a_row_that_is_being_written_is_left_out(self, make):
        for name, torn in (("a", "500,9,5"), ("b", "500,9,5.0,7.0,1"), ("c", "500\n")):
            assert curve_of(read_run(make(name, TABLE + torn)), "frames", SCORE).x[-1] == 300

    def test_a_csv_file_alone_is_a_run_without_settings(self, tmp_path):
        (tmp_path / "thin.csv").write_text(TABLE)
        run = read_run(tmp_path / "thin.csv", "pong")
        assert (run.name, run.settings, run.game) == ("thin", {}, "pong")

    @pytest.mark.parametrize(
        ("rows", "line", "cells"),
        [
            ("500,9\n600,9,5.0,7.0,1\n", 2, "2 cells"),
            ("1,2,3,4,5\n600\n1,2,3,4,5\n", 3, "1 cell"),
            ("1,2,3,4,5,6\n", 2, "6 cells"),
            ("\n1,2\n", 3, "2 cells"),
        ],
    )
    def test_a_line_of_too_many_or_too_few_cells_is_named(self, make, rows, line, cells):
        names = TABLE.splitlines()[0]
        said = (
            rf"/metrics\.csv has {cells} in line {line}, and {names.count(',') + 1} names of columns; give each line a"
        )
        with pytest.raises(ConfigError, match=said):
            read_run(make("a", f"{names}\n{rows}"))

    def test_empty_cells_behind_the_last_column_change_nothing(self, make):
        names, *rows = TABLE.splitlines()
        run = read_run(make("a", "\n".join([names, *(f"{row},," for row in rows), ""])))
        assert run.rows == read_run(make("b")).rows

    def test_a_folders_metrics_mean_the_folder(self, make):
        assert read_run(make("a") / "metrics.csv").settings["seed"] == 1

    def test_settings_of_another_version_are_read(self, make):
        assert read_run(make("a", unheard_of=3), "pong").game == "breakout"

    def test_sarsa_plays_cartpole(self, tmp_path):
        (tmp_path / "metrics.csv").write_text(
            "episodes,v0/games/return_mean_100,v0/steps\n5,20.5,100.0\n10,30.5,200.0\n"
        )
        (tmp_path / "config.json").write_text('{"agent": "sarsa", "seed": 1, "episodes": 10}')
        run = read_run(tmp_path)
        assert run.game == "cartpole"
        assert curve_of(run, "v0/steps", "v0/games/return_mean_100").y.tolist() == [20.5, 30.5]
        with pytest.raises(ConfigError, match=r"--x asks for frames.* it has episodes, v0/games"):
            curve_of(run, "frames", "v0/games/return_mean_100")

    @pytest.mark.parametrize(
        ("table", "settings", "message"),
        [
            (None, "{}", r"there is no .*metrics\.csv"),
            (TABLE, None, "no run folder: it has no config.json"),
            (TABLE, "{", r"config\.json is damaged"),
            (TABLE, "[]", r"config\.json is damaged"),
            ("", "{}", "holds no measurements"),
            (TABLE.splitlines()[0] + "\n", "{}", "holds no measurements"),
            (b"\xff\xfe\n\xff\n", "{}", "cannot be read"),
            (TABLE, '{"format": 3}', r"config\.json has format 3, and this version reads formats 1 to 2"),
        ],
    )
    def test_a_folder_that_is_no_run_is_named(self, tmp_path, table, settings, message):
        if table is not None:
            (tmp_path / "metrics.csv").write_bytes(table if isinstance(table, bytes) else table.encode())
        if settings is not None:
            (tmp_path / "config.json").write_text(settings)
        with pytest.raises(ConfigError, match=message):
            read_run(tmp_path)

    def test_a_cell_that_is_no_number_is_named(self, make):
        with pytest.raises(ConfigError, match=f"damaged in column {SCORE} .*'much'"):
            curve_of(read_run(make("a", TABLE.replace("4.0", "much", 1))), "frames", SCORE)

    def test_the_remedy_for_a_damaged_file_is_one_that_its_user_has(self, make, tmp_path):
        (tmp_path / "foreign.csv").write_text(TABLE.replace("4.0", "much", 1))
        run = make("a", TABLE.replace("4.0", "much", 1))
        for path, remedy in ((tmp_path / "foreign.csv", "correct the file, or give another one"), (run, "restore it")):
            with pytest.raises(ConfigError, match=f"damaged in column {SCORE} .*'much'.*; {remedy}"):
                curve_of(read_run(path), "frames", SCORE)

    def test_an_empty_curve_is_refused(self, make):
        with pytest.raises(ConfigError, match="no row with both frames and games"):
            curve_of(read_run(make("a", f"frames,{SCORE}\n100,\n200,nan\n")), "frames", SCORE)


class TestGroups:
    def test_runs_that_differ_in_nothing_but_the_seed_are_one_line(self, make):
        folders = [make(f"b{batch}-s{seed}", seed=seed, batch_size=batch) for batch in (32, 64) for seed in (1, 2, 3)]
        groups = group_runs([read_run(folder) for folder in folders[::-1]], "settings")
        assert [[run.name for run in group] for group in groups] == [
            ["b64-s3", "b64-s2", "b64-s1"],
            ["b32-s3", "b32-s2", "b32-s1"],
        ]
        assert name_groups(groups) == ["b64, 3 seeds", "b32, 3 seeds"]

    def test_runs_of_both_formats_of_settings_are_one_line(self, make):
        first, second = make("a-s1", seed=1), make("a-s2", seed=2, format=2, kind="dqn")
        settings = json.loads((second / "config.json").read_text())
        del settings["agent"]
        (second / "config.json").write_text(json.dumps(settings))
        groups = group_runs([read_run(first), read_run(second)], "settings")
        assert name_groups(groups) == ["a, 2 seeds"]

    def test_format_and_kind_are_no_settings_that_tell_runs_apart(self, tmp_path):
        for name, kind in (("dqn", {"format": 2, "kind": "dqn", "lam": 1}), ("sarsa", {"agent": "sarsa", "lam": 2})):
            (tmp_path / name / "run").mkdir(parents=True)
            (tmp_path / name / "run" / "metrics.csv").write_text(TABLE)
            (tmp_path / name / "run" / "config.json").write_text(json.dumps({"game": "cartpole"} | kind))
        groups = group_runs([read_run(tmp_path / name / "run") for name in ("dqn", "sarsa")], "settings")
        assert name_groups(groups) == ["run (lam 1)", "run (lam 2)"]

    def test_files_without_settings_are_lines_of_their_own_unless_told_otherwise(self, tmp_path):
        for name in ("one.csv", "two.csv"):
            (tmp_path / name).write_text(TABLE)
        runs = [read_run(tmp_path / name) for name in ("one.csv", "two.csv")]
        assert [len(group) for group in group_runs(runs, "settings")] == [1, 1]
        assert [len(group) for group in group_runs(runs, "all")] == [2]

    def test_the_files_of_a_line_are_lines_of_their_own_if_asked(self, tmp_path):
        """As where they share no range, whose remedy that is."""
        runs = []
        for name in ("begun.csv", "continued.csv"):
            (tmp_path / name).write_text(TABLE)
            runs.append(replace(read_run(tmp_path / name), line="SB3"))
        assert name_groups(group_runs(runs, "settings")) == ["SB3, 2 seeds"]
        assert name_groups(group_runs(runs, "each")) == ["SB3 (begun.csv)", "SB3 (continued.csv)"]

    def test_each_run_is_a_line_if_asked(self, make):
        runs = [read_run(make("a", seed=1)), read_run(make("b", seed=2))]
        assert name_groups(group_runs(runs, "each")) == ["a", "b"]

    def test_one_seed_is_not_counted_twice(self, make):
        runs = [read_run(make("a")), read_run(make("b"))]
        with pytest.raises(ConfigError, match=r"a and .*b are the same run twice, .*seed 1.*--group each"):
            group_runs(runs, "settings")
        assert len(group_runs(runs, "each")) == 2

    @pytest.mark.parametrize("by", ["settings", "each", "all"])
    def test_a_run_is_given_once(self, make, by):
        folder = make("a")
        with pytest.raises(ConfigError, match="a is given twice"):
            group_runs([read_run(folder), read_run(folder / ".." / "a")], by)

    @pytest.mark.parametrize(
        ("names", "common"),
        [
            (("cpu-s1", "cpu-s2"), "cpu"),
            (("breakout-s1-2026", "breakout-s10-2026"), "breakout"),
            (("atoms1", "atoms2"), "atoms"),
            (("run_seed_1", "run_seed_2"), "run"),
            (("x", "y"), "x"),
            (("catch s1", "catch s2"), "catch"),
        ],
    )
    def test_seeds_are_called_by_what_their_names_share(self, make, names, common):
        runs = [read_run(make(name, seed=seed)) for seed, name in enumerate(names)]
        assert name_groups([runs]) == [f"{common}, 2 seeds"]

    def test_equal_names_are_told_apart_by_settings(self, make):
        runs = [read_run(make(f"b-s{i}", n_step=n, seed=i, gamma=0.9)) for i, n in enumerate([1, 1, 3, 3])]
        names = name_groups(group_runs(runs, "settings"))
        assert names == ["b (n_step 1), 2 seeds", "b (n_step 3), 2 seeds"]

    def test_equal_names_without_settings_are_told_apart_by_folder(self, tmp_path):
        for folder in ("old", "new"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "curve.csv").write_text(TABLE)
        runs = [read_run(tmp_path / folder / "curve.csv") for folder in ("old", "new")]
        assert name_groups(group_runs(runs, "settings")) == ["curve (old)", "curve (new)"]

    def test_runs_of_different_games_are_labelled_by_game(self, make):
        runs = [read_run(make("a")), read_run(make("b", game="space_invaders"))]
        assert name_groups(group_runs(runs, "settings")) == ["Breakout: a", "Space Invaders: b"]
