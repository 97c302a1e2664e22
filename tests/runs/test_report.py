"""The reporter: what it leaves in metrics.csv and in TensorBoard."""

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastrl.base.errors import ConfigError
from fastrl.runs.metrics_csv import MetricsCsv
from fastrl.runs.report import Reporter

event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")


def events(folder):
    """Everything in a folder's event files, nothing thinned out."""
    everything = dict.fromkeys(("scalars", "histograms", "images"), 0)
    return event_accumulator.EventAccumulator(str(folder), size_guidance=everything).Reload()


def quiet(folder, **options):
    return Reporter(folder, total=100, quiet=True, **options)


class TestMetricsCsv:
    def test_has_the_unit_first_and_the_keys_as_they_came(self, tmp_path):
        with quiet(tmp_path, unit="steps") as out:
            out.write({"b": 1.0, "a": 2.5}, 10)
            out.write({"a": 0.1}, 20)
        assert (tmp_path / "metrics.csv").read_text() == "steps,b,a\n10,1.0,2.5\n20,,0.1\n"

    def test_grows_by_a_new_key_and_keeps_its_rows(self, tmp_path):
        with quiet(tmp_path) as out:
            out.write({"a": 1.0}, 10)
            out.write({"z": 3.0, "a": 2.0}, 20)
        assert (tmp_path / "metrics.csv").read_text() == "frames,a,z\n10,1.0,\n20,2.0,3.0\n"
        assert not list(tmp_path.glob(".*.partial"))

    def test_holds_each_row_as_soon_as_it_is_written(self, tmp_path):
        with quiet(tmp_path) as out:
            out.write({"a": 1.0}, 10)
            assert (tmp_path / "metrics.csv").read_text() == "frames,a\n10,1.0\n"

    def test_keeps_every_bit_of_a_number(self, tmp_path):
        table, numbers = MetricsCsv(tmp_path / "m.csv", "frames"), [1 / 3, 1e-300, -0.1, 1e22, 30]
        for i, number in enumerate(numbers):
            table.append({"a": number}, i)
        rows = (tmp_path / "m.csv").read_text().splitlines()[1:]
        assert [float(row.split(",")[1]) for row in rows] == numbers

    def test_takes_the_numbers_of_numpy(self, tmp_path):
        with quiet(tmp_path) as out:
            out.write({"a": np.float32(0.5), "b": np.int64(2)}, np.int64(10))
        assert (tmp_path / "metrics.csv").read_text() == "frames,a,b\n10,0.5,2.0\n"

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"a": 1.0, "mine/x": "high"}, r"metric 'mine/x' is 'high'; give a number"),
            ({"a": 1.0, "x": None}, r"metric 'x' is None; give a number"),
            ({"a": 1.0, "x": np.zeros(2)}, r"metric 'x' is array\(\[0\., 0\.\]\); give a number"),
            ({3: 1.0}, r"a metric has the key 3; give text"),
        ],
    )
    def test_what_is_no_number_is_named_and_nothing_of_the_row_is_written(self, tmp_path, values, message):
        with quiet(tmp_path) as out:
            out.write({"a": 0.5}, 10)
            with pytest.raises(ConfigError, match=message):
                out.write(values, 20)
            out.write({"a": 2.0}, 30)
        assert (tmp_path / "metrics.csv").read_text() == "frames,a\n10,0.5\n30,2.0\n"

    def test_drops_what_came_after_the_point_of_the_resume(self, tmp_path):
        with quiet(tmp_path) as out:
            for at in (10, 20):
                out.write({"a": float(at)}, at)
            state = out.state()
            for at in (20, 30):
                out.write({"a": float(at)}, at)
        with quiet(tmp_path, resume=state) as out:  # of the two rows at 20 it knows the first
            out.write({"a": 31.0, "b": 1.0}, 30)
        expected = "frames,a,b\n10,10.0,\n20,20.0,\n30,31.0,1.0\n"
        assert (tmp_path / "metrics.csv").read_text() == expected

    def test_drops_a_row_that_a_crash_cut_short(self, tmp_path):
        path = tmp_path / "m.csv"
        for torn in ("20,1", "20", "20,1.0,2"):
            path.write_text("frames,a,b\n10,1.0,2.0\n" + torn)
            MetricsCsv(path, "frames", rows=100)
            assert path.read_text() == "frames,a,b\n10,1.0,2.0\n"
        for torn in ("", "frames,a"):
            path.write_text(torn)
            MetricsCsv(path, "frames", rows=100).append({"a": 1.0}, 10)
            assert path.read_text() == "frames,a\n10,1.0\n"

    def test_is_never_overwritten_without_a_resume(self, tmp_path):
        quiet(tmp_path).write({"a": 1.0}, 10)
        with pytest.raises(ConfigError, match=r"metrics\.csv exists already"):
            quiet(tmp_path)

    def test_refuses_another_unit(self, tmp_path):
        out = quiet(tmp_path)
        out.write({"a": 1.0}, 10)
        with pytest.raises(ConfigError, match="counts frames, not steps"):
            quiet(tmp_path, unit="steps", resume=out.state())

    def test_is_the_same_for_the_same_values(self, tmp_path):
        for name in ("one", "two"):
            with quiet(tmp_path / name) as out:
                for at in range(5):
                    out.write({"a": np.sin(at)}, at)
        one, two = ((tmp_path / name / "metrics.csv").read_bytes() for name in ("one", "two"))
        assert one == two


class TestTensorBoard:
    def test_has_every_scalar_at_its_point(self, tmp_path):
        with quiet(tmp_path) as out:
            out.write({"games/score": 1.5, "loss": 0.25}, 10)
            out.write({"games/score": 2.5}, 20)
        read = events(tmp_path)
        assert [(e.step, e.value) for e in read.Scalars("games/score")] == [(10, 1.5), (20, 2.5)]
        assert [(e.step, e.value) for e in read.Scalars("loss")] == [(10, 0.25)]

    def test_shows_no_double_curve_after_a_resume(self, tmp_path):
        with quiet(tmp_path) as out:
            for at in (10, 20):
                out.write({"a": float(at)}, at)
            state = out.state()
            for at in (20, 30):
                out.write({"a": float(at)}, at)
        with quiet(tmp_path, resume=state) as out:
            out.write({"a": 30.5}, 30)
        with quiet(tmp_path, resume=state) as out:  # what the one before wrote is undone too
            out.write({"a": 31.0}, 30)
        read = [(e.step, e.value) for e in events(tmp_path).Scalars("a")]
        assert read == [(10, 10.0), (20, 20.0), (30, 31.0)]

    def test_has_histograms(self, tmp_path):
        with quiet(tmp_path) as out:
            out.histogram("actions", np.array([0, 0, 1, 3]), 10)
        (entry,) = events(tmp_path).Histograms("actions")
        assert (entry.step, entry.histogram_value.num, entry.histogram_value.sum) == (10, 4, 4)

    def test_leaves_out_of_a_histogram_what_is_no_number(self, tmp_path):
        with quiet(tmp_path) as out:
            out.histogram("q", np.array([[1.0, np.nan], [np.inf, 2.0]]), 10)
            out.histogram("nothing", np.array([np.nan]), 10)
            out.histogram("nothing", np.zeros(0), 20)
        read = events(tmp_path)
        (entry,) = read.Histograms("q")
        assert (entry.histogram_value.num, entry.histogram_value.sum) == (2, 3)
        assert read.Tags()["histograms"] == ["q"]

    def test_has_the_gif_itself_with_all_its_pictures(self, tmp_path):
        pictures = [Image.new("RGB", (7, 5), colour) for colour in ("red", "blue", "lime")]
        gif = tmp_path / "film.gif"
        pictures[0].save(gif, save_all=True, append_images=pictures[1:])
        with quiet(tmp_path / "run") as out:
            out.image("film", gif, 10)
        (entry,) = events(tmp_path / "run").Images("film")
        assert (entry.step, entry.width, entry.height) == (10, 7, 5)
        assert Image.open(io.BytesIO(entry.encoded_image_string)).n_frames == 3

    def test_refuses_a_picture_that_is_no_gif(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "film.png")
        with quiet(tmp_path / "run") as out, pytest.raises(ValueError, match=r"film\.png is no GIF"):
            out.image("film", tmp_path / "film.png", 10)

    def test_is_on_disk_when_the_state_is_taken(self, tmp_path):
        with quiet(tmp_path) as out:
            out.write({"a": 1.0}, 10)
            (file,) = tmp_path.glob("events.out.tfevents.*")
            assert out.state() == {"resume_at": 10, "rows": 1, "events": {file.name: file.stat().st_size}}
            assert [e.step for e in events(tmp_path).Scalars("a")] == [10]


def test_a_state_is_there_after_a_write_that_failed(tmp_path, monkeypatch):
    with quiet(tmp_path) as out:
        out.write({"a": 1.0}, 10)
        with monkeypatch.context() as full:
            full.setattr(out._board, "flush", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            assert out.state()["rows"] == 1


def test_numbers_that_no_bin_takes_are_left_out(tmp_path):
    with quiet(tmp_path) as out:
        out.histogram("far", np.array([1e30, -np.inf, np.nan]), 1)
        out.histogram("some", np.array([1e30, 2.0]), 1)
    assert events(tmp_path).Tags()["histograms"] == ["some"]


def test_a_reporter_closes_twice_without_harm(tmp_path):
    out = quiet(tmp_path)
    out.close()
    out.close()


def test_importing_the_module_brings_in_neither_torch_nor_rich_nor_gymnasium():
    code = (
        "import sys, fastrl.runs.report, fastrl.sarsa;"
        "print(sorted({'torch', 'rich', 'tensorboard', 'gymnasium'} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
