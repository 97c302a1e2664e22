"""Pictures of learning curves."""

import functools
import io
import os
import subprocess
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from recorded import MINUTES, SCORE, record

pytest.importorskip("matplotlib")
pytest.importorskip("scipy")
image_module = pytest.importorskip("PIL.Image")

from fastrl import cli, plot  # noqa: E402
from fastrl.base.errors import ConfigError  # noqa: E402
from fastrl.runs.curves import band_of, curve_of, group_runs, name_groups, read_run  # noqa: E402


@pytest.fixture
def make(tmp_path):
    return functools.partial(record, tmp_path)


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
    args = plot.Arguments(**cli.read([w for w in words if isinstance(w, str)], plot.Arguments).given)
    groups = group_runs([read_run(path, args.game) for path in paths], args.group)
    bands = [band_of([curve_of(run, *args.columns) for run in group]) for group in groups]
    return plot.draw(bands, name_groups(groups), groups[0][0].game, args)


def texts(figure):
    axes = figure.axes[0]
    return [text.get_text() for text in [*axes.texts, *axes.get_legend().texts, *figure.texts]]


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

    def test_names_are_drawn_as_they_are_given(self, make, tmp_path):
        _, svg = draw(tmp_path, make("a"), make("b", num_envs=2), "--labels", r"a$\foo$b", "_x", "--group", "each")
        assert all(name in svg for name in (rb"a$\foo$b", b"_x"))

    def test_one_name_may_have_relative_and_absolute_paths(self, make, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        for name in "abc":
            (tmp_path / f"{name}.csv").write_bytes((make(name) / "metrics.csv").read_bytes())
        draw(tmp_path, "b.csv", "b=a.csv", f"b={tmp_path / 'c.csv'}")

    def test_the_size_is_as_asked(self, make, tmp_path):
        png, _ = draw(tmp_path, make("a"), "--size", 4, 3, "--dpi", 150)
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
        assert figure_of(make("d", batch_size=64), "--x", "samples").axes[0].get_xlabel() == "samples learned"

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


@pytest.mark.parametrize("missing", ["matplotlib", "scipy"])
def test_a_missing_package_is_answered_with_the_extra_that_brings_it(make, tmp_path, missing):
    runs = [str(make(f"a-s{seed}", seed=seed)) for seed in (1, 2)]
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = {[*runs, '--out', str(tmp_path / 'x')]!r}; "
    code += "from fastrl.cli import run_command; from fastrl.plot import main; run_command(main, 'plot')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert "[train]" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-s1", "a-s2"]


class TestPublished:
    def test_published_curves_come_with_source_and_protocol(self, make):
        found = texts(figure_of(make("a"), "--published"))
        assert {"CleanRL DQN", "CleanRL C51", "CleanRL PQN", "Dopamine DQN", "Dopamine Rainbow"} < set(found)
        assert {"Dopamine IQN, Impala", "BTR"} < set(found)
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
        names = {"Dopamine DQN", "Dopamine Rainbow", "Dopamine IQN, Impala", "BTR"}
        assert set(plot._published_curves("breakout", 5e6)) == names

    def test_a_game_without_published_curves_has_its_levels(self, make):
        found = texts(figure_of(make("a", game="pong"), "--published"))
        assert {"random -20.7", "human 14.6"} < set(found)
        assert not any("CleanRL" in text for text in found)

    @pytest.mark.parametrize("game", ["Breakout", "ALE/Breakout-v5", "breakout"])
    def test_the_game_of_a_table_has_any_spelling(self, make, game):
        assert "CleanRL C51" in texts(figure_of(make("a", game=None) / "metrics.csv", "--game", game, "--published"))

    def test_names_beside_the_curves_do_not_overlap(self, make):
        names = figure_of(make("a"), "--published").axes[0].texts
        at_the_edge = sorted(name.xy[1] for name in names if name.xy[0] == 50e6)
        assert len(at_the_edge) == 6
        assert min(np.diff(at_the_edge)) >= 20  # of about 490, drawn some 320 pixels high

    @pytest.mark.parametrize(
        ("settings", "words", "message"),
        [
            ({"game": "catch"}, ["--published"], "--published draws .* Wang et al. 2016 does not say of catch; leave"),
            ({"game": None}, ["--levels"], "--levels is for one game.*or --game"),
            ({"game": None}, ["--levels", "--game", "Brakeout"], "Wang et al. 2016 does not say of Brakeout; leave"),
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
        (["--x-max", "0"], r"--x-max is 0\.0; give a finite number above 0"),
        (["--x-max", "nan"], "--x-max is nan"),
        (["--size", "0", "4"], r"--size is 0 4; give two numbers between 2 and 20"),
        (["--size", "8", "-1"], r"--size is 8 -1"),
        (["--at", "nan"], r"--at is nan; give numbers from 0"),
        (["--at", "1e6", "-5"], r"--at is -5; give numbers from 0"),
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


@pytest.mark.parametrize("words", [["--y", "big"], ["--x", "big", "--y", "updates"]])
def test_numbers_that_no_axis_takes_are_named(tmp_path, words):
    (tmp_path / "a.csv").write_text("frames,updates,big\n1,1,1e308\n2,2,-1e308\n")
    with pytest.raises(ConfigError, match=r"a\.csv has 1e\+308 in column big; give numbers up to 1e\+100"):
        plot.main([str(tmp_path / "a.csv"), *words, "--out", str(tmp_path / "drawn")])
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_a_game_beside_runs_that_name_another_is_refused(make, tmp_path):
    with pytest.raises(ConfigError, match="--game is pong, and each run says itself that it plays another game"):
        draw(tmp_path, make("a", game="breakout"), "--game", "pong")
    draw(tmp_path, make("b", game="breakout"), "--game", "breakout")


def test_a_run_must_be_given_and_exist(tmp_path):
    with pytest.raises(ConfigError, match="no run is given first"):
        plot.main(["--x", "minutes"])
    with pytest.raises(ConfigError, match=r"there is no .*nowhere"):
        draw(tmp_path, tmp_path / "nowhere")


def test_a_run_that_is_near_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for name in ("old", "new"):
        record(tmp_path / "runs", name)
    os.utime("runs/old", (0, 0))
    (tmp_path / "runs/new/pictures").mkdir()
    for given, hint in (
        ("runs", "it holds runs: give one of them, such as runs/new"),
        ("new", "did you mean runs/new?"),
        ("runs/new/pictures", "it lies in one: give runs/new"),
        ("runs/new/metric.csv", "it lies in one: give runs/new"),
    ):
        with pytest.raises(ConfigError) as refused:
            plot.main([given])
        assert str(refused.value).endswith(hint)
    assert not list(tmp_path.glob("*.png"))


def test_a_place_that_takes_no_picture_is_named_and_nothing_is_left(make, tmp_path):
    folder = make("a")
    for out in (folder / "metrics.csv" / "x", tmp_path / "taken"):
        (tmp_path / "taken.png").mkdir(exist_ok=True)
        with pytest.raises(ConfigError, match=r"--out is .*(where no file can be made|a folder)"):
            plot.main([str(folder), "--out", str(out)])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "taken.png"]
