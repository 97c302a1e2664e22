"""Learning curves: read, gathered over seeds, summed up, drawn."""

import io
import json
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
image_module = pytest.importorskip("PIL.Image")

from fastrl import plot  # noqa: E402
from fastrl.config import ConfigError  # noqa: E402
from fastrl.curves import (  # noqa: E402
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

SCORE, MINUTES, EVALUATION = "games/return_mean_100", "time/minutes", "evaluation/return_mean"
TABLE = f"""frames,updates,{SCORE},{MINUTES},{EVALUATION}
100,0,1.0,1.0,
200,0,2.0,2.0,
250,,,,7.0
300,5,4.0,4.0,
400,9,,6.0,
400,,,,9.0
"""


@pytest.fixture
def make(tmp_path):
    """Write a run's folder and return it."""

    def write(name, table=TABLE, **settings):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "metrics.csv").write_text(table)
        settings = {"agent": "dqn", "seed": 1, "name": name, "runs_dir": "runs", "game": "breakout"} | settings
        (folder / "config.json").write_text(json.dumps(settings))
        return folder

    return write


def draw(tmp_path, *words):
    """Run the command; return the PNG and the SVG."""
    assert plot.main([*map(str, words), "--out", str(tmp_path / "drawn")]) == 0
    return (tmp_path / "drawn.png").read_bytes(), (tmp_path / "drawn.svg").read_bytes()


def size(png):
    """Width and height in pixels of a PNG, read whole."""
    image = image_module.open(io.BytesIO(png))
    image.load()
    return image.size


def figure_of(*words):
    """The figure that the command would draw."""
    paths = [word for word in words if not isinstance(word, str)]
    args = plot.parse(plot.Arguments, None, [w for w in words if isinstance(w, str)], prog="", description="")
    groups = group_runs([read_run(path, args.game) for path in paths], args.group)
    bands = [band_of([curve_of(run, *args.columns) for run in group]) for group in groups]
    return plot.draw(bands, name_groups(groups), groups[0][0].game, args)


def texts(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in [*axes.texts, *axes.get_legend().texts, *figure.texts]]


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

    def test_a_row_that_is_being_written_is_left_out(self, make):
        for name, torn in (("a", "500,9,5"), ("b", "500,9,5.0,7.0,1"), ("c", "500\n")):
            assert curve_of(read_run(make(name, TABLE + torn)), "frames", SCORE).x[-1] == 300

    def test_a_csv_file_alone_is_a_run_without_settings(self, tmp_path):
        (tmp_path / "thin.csv").write_text(TABLE)
        run = read_run(tmp_path / "thin.csv", "pong")
        assert (run.name, run.settings, run.game) == ("thin", {}, "pong")

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

    def test_files_without_settings_are_lines_of_their_own_unless_told_otherwise(self, tmp_path):
        for name in ("one.csv", "two.csv"):
            (tmp_path / name).write_text(TABLE)
        runs = [read_run(tmp_path / name) for name in ("one.csv", "two.csv")]
        assert [len(group) for group in group_runs(runs, "settings")] == [1, 1]
        assert [len(group) for group in group_runs(runs, "all")] == [2]

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


class TestPictures:
    def test_both_files_are_written_and_whole(self, make, tmp_path, capsys):
        png, svg = draw(tmp_path, make("a"), make("b", seed=2))
        assert png.startswith(b"\x89PNG\r\n\x1a\n")
        assert size(png) == (800, 450)
        assert ElementTree.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
        assert capsys.readouterr().out.splitlines() == [str(tmp_path / "drawn.png"), str(tmp_path / "drawn.svg")]
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "drawn.png", "drawn.svg"]

    def test_drawn_twice_the_bytes_are_equal(self, make, tmp_path):
        folders = [make(f"a-s{seed}", seed=seed) for seed in (1, 2, 3)]
        assert draw(tmp_path, *folders, "--published") == draw(tmp_path, *folders, "--published")

    def test_the_size_is_as_asked(self, make, tmp_path):
        png, _ = draw(tmp_path, make("a"), "--width", 4, "--height", 3, "--dpi", 150)
        assert size(png) == (600, 450)

    def test_a_single_runs_pictures_lie_in_its_folder(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        folder = make("a")
        assert plot.main([str(folder)]) == 0
        assert sorted(path.name for path in (folder / "pictures").iterdir()) == ["curve.png", "curve.svg"]
        assert plot.main([str(folder), str(make("b", seed=2))]) == 0
        assert (tmp_path / "curve.png").exists()

    @pytest.mark.parametrize(
        ("out", "written"), [("x.png", "x.png"), ("v1.5", "v1.5.png"), ("new/x", "new/x.png"), (".", "curve.png")]
    )
    def test_the_pictures_go_where_they_are_asked(self, make, tmp_path, out, written):
        assert plot.main([str(make("a")), "--out", str(tmp_path / out)]) == 0
        assert (tmp_path / written).exists()

    def test_lines_are_bands_only_over_seeds(self, make):
        alone, seeds = make("a"), [make(f"b-s{seed}", seed=seed, gamma=0.9) for seed in (1, 2)]
        axes = figure_of(alone, *seeds).axes[0]
        assert len(axes.lines) == 2
        assert len(axes.collections) == 1
        assert "bootstrap" in texts(figure_of(*seeds))[-1]
        assert "bootstrap" not in texts(figure_of(alone))[-1]

    def test_evaluations_are_drawn_as_points(self, make):
        line = figure_of(make("a"), "--y", "evaluation").axes[0].lines[0]
        assert (line.get_linestyle(), line.get_marker()) == ("None", "o")
        assert line.get_xydata().tolist() == [[250, 7], [400, 9]]

    def test_the_axes_say_what_they_show(self, make):
        axes = figure_of(make("a")).axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("frames", "score, mean of the last 100 training games")
        assert axes.get_title(loc="left") == "Breakout"
        table = f"frames,{SCORE}\n20000,1.0\n4000000,2.0\n"
        axes = figure_of(make("b", table)).axes[0]
        assert axes.get_xlabel() == "frames (millions)"
        assert axes.xaxis.get_major_formatter()(2_500_000) == "2.5"
        assert figure_of(make("c"), "--x", "minutes").axes[0].get_xlabel() == "minutes"

    def test_a_curve_of_one_point_is_seen(self, make, tmp_path):
        folder = make("a", f"frames,updates,{SCORE}\n100,0,1.0\n")
        assert figure_of(folder).axes[0].lines[0].get_marker() == "o"
        draw(tmp_path, folder, "--x", "updates")  # at 0, with nothing on either side

    def test_x_max_ends_the_curve(self, make, tmp_path):
        folder = make("a")
        assert draw(tmp_path, folder, "--x-max", 250) != draw(tmp_path, folder)

    def test_the_command_brings_in_neither_torch_nor_pyplot(self, make, tmp_path):
        code = "import sys; from fastrl.plot import main; main(sys.argv[1:]); "
        code += "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
        subprocess.run([sys.executable, "-c", code, make("a"), "--out", tmp_path / "x"], check=True)


class TestPublished:
    def test_published_curves_come_with_source_and_protocol(self, make):
        found = texts(figure_of(make("a"), "--published"))
        assert {"CleanRL DQN", "CleanRL C51", "CleanRL PQN", "Dopamine DQN", "Dopamine Rainbow"} < set(found)
        assert {"random 1.7", "human 30.5"} < set(found)
        assert all(part in found[-1] for part in ("read off", "a lost life ends", "sticky actions (0.25)", "Wang"))

    def test_published_curves_are_only_on_frames(self, make, tmp_path):
        for x in ("minutes", "updates"):
            with pytest.raises(ConfigError, match=f"--x is {x}; give --x frames, or --levels"):
                draw(tmp_path, make(x), "--published", "--x", x)
        assert {"random 1.7", "human 30.5"} < set(texts(figure_of(make("a"), "--levels", "--x", "minutes")))

    def test_published_points_are_in_frames_and_none_is_made_up(self):
        curves = plot._published_curves("breakout", 10e6)
        assert curves["CleanRL C51"].x.tolist() == [8e6]
        assert curves["Dopamine DQN"].y.tolist() == [23, 52]
        assert set(plot._published_curves("breakout", 5e6)) == {"Dopamine DQN", "Dopamine Rainbow"}

    def test_a_game_without_published_curves_has_its_levels(self, make):
        found = texts(figure_of(make("a", game="pong"), "--published"))
        assert {"random -20.7", "human 14.6"} < set(found)
        assert not any("CleanRL" in text for text in found)

    def test_names_beside_the_curves_do_not_overlap(self, make):
        names = figure_of(make("a"), "--published").axes[0].texts
        at_the_edge = sorted(name.xy[1] for name in names if name.xy[0] == 50e6)
        assert len(at_the_edge) == 4
        assert min(np.diff(at_the_edge)) >= 20  # of about 490, drawn some 320 pixels high

    @pytest.mark.parametrize(
        ("settings", "words", "message"),
        [
            ({"game": "catch"}, ["--published"], "--published knows nothing of catch, only of breakout, pong"),
            ({"game": None}, ["--levels"], "--levels is for one game.*or --game"),
            ({}, ["--levels", "--y", "updates"], "--levels is about scores, and --y is updates"),
        ],
    )
    def test_what_nobody_published_is_named(self, make, tmp_path, settings, words, message):
        with pytest.raises(ConfigError, match=message):
            draw(tmp_path, make("a", **settings), *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--y", "nothing"], f"--y asks for nothing, .* it has frames, updates, {SCORE}, {MINUTES}"),
        (["--x", "nothing"], "--x asks for nothing"),
        (["--labels", "one", "two"], "--labels has 2 for 1 lines; give one for each of: a"),
        (["--x-max", "50"], "--x-max is 50, where .* give at least 100"),
        (["--x-max", "0"], r"--x-max is 0\.0; give more than 0"),
        (["--x-max", "nan"], "--x-max is nan"),
        (["--width", "0"], r"--width is 0\.0; give between 2 and 20"),
        (["--height", "-1"], r"--height is -1\.0"),
        (["--dpi", "0"], "--dpi is 0; give between 20 and 600"),
        (["--group", "some"], "--group"),
        (["--bogus"], "--bogus"),
    ],
)
def test_an_error_is_named_before_anything_is_written(make, tmp_path, words, message):
    with pytest.raises(ConfigError, match=message):
        draw(tmp_path, make("a"), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "metrics.csv"]


def test_a_run_must_be_given_and_exist(tmp_path):
    with pytest.raises(ConfigError, match="no run is given first"):
        plot.main(["--x", "minutes"])
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        draw(tmp_path, tmp_path / "nowhere")


def test_a_place_that_takes_no_picture_is_named_and_nothing_is_left(make, tmp_path):
    folder = make("a")
    for out in (folder / "metrics.csv" / "x", tmp_path / "taken"):
        (tmp_path / "taken.png").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=r"--out is .*where no picture can be written"):
            plot.main([str(folder), "--out", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "taken.png"]
