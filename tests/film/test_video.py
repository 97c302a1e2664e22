"""Films: readable, exact, in real time, whole."""

import io
import subprocess
import sys

import numpy as np
import pytest

image_module = pytest.importorskip("PIL.Image")

from fastrl.base.errors import ConfigError, RunError  # noqa: E402
from fastrl.film.picture import frame_to_rgb, upscale  # noqa: E402
from fastrl.film.video import (  # noqa: E402
    PICTURES_PER_SECOND,
    check_film,
    gif_bytes,
    write_film,
    write_gif,
)


def read(gif):
    """Pictures [T, H, W, 3] and durations [T] in ms, as a reader of the GIF sees them."""
    image = image_module.open(io.BytesIO(gif))
    pictures, durations = [], []
    for number in range(image.n_frames):
        image.seek(number)
        pictures.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    return np.stack(pictures), np.array(durations)


@pytest.fixture(scope="module")
def film():
    """45 pictures of a dot that walks over a background of 100 colours, [45, 60, 40, 3] uint8."""
    rng = np.random.default_rng(0)
    colours = rng.integers(256, size=(100, 3), dtype=np.uint8)
    background = colours[rng.integers(100, size=(60, 40))]
    pictures = np.repeat(background[None], 45, axis=0)
    for t in range(45):
        pictures[t, t, 5:9] = 255
    return pictures


def test_a_gif_gives_back_every_picture_in_its_very_colours(film):
    pictures, _ = read(gif_bytes(film))
    assert np.array_equal(pictures, film)


@pytest.mark.parametrize("fps", [PICTURES_PER_SECOND, 7.0, 50.0])
def test_a_film_takes_as_long_as_the_game(film, fps):
    _, durations = read(gif_bytes(film, fps=fps))
    assert durations.sum() == pytest.approx(45 / fps * 1000, abs=10)
    assert np.ptp(durations) <= 10


def test_equal_pictures_are_stored_once_and_shown_as_long(film):
    gif = gif_bytes(np.repeat(film[:10], 3, axis=0))
    pictures, durations = read(gif)
    assert np.array_equal(pictures, film[:10])
    assert durations.sum() == 2000


def test_a_long_film_is_thinned_and_takes_as_long(film):
    pictures, durations = read(gif_bytes(film, max_pictures=20))
    assert np.array_equal(pictures, film[::3])
    assert durations.sum() == 3000


def test_a_wide_film_is_shrunk_by_a_whole_factor(film):
    pictures, _ = read(gif_bytes(film[::2], max_width=39))
    assert np.array_equal(pictures, film[::2, ::2, ::2])


def test_a_film_of_too_many_colours_keeps_them_near():
    picture = np.random.default_rng(0).integers(256, size=(1, 64, 64, 3), dtype=np.uint8)  # 4,096 of them
    pictures, _ = read(gif_bytes(picture))
    assert np.abs(pictures.astype(int) - picture).max() < 64
    assert len(np.unique(pictures.reshape(-1, 3), axis=0)) == 64


def test_a_gif_loops_for_ever_unless_told_otherwise(film):
    assert image_module.open(io.BytesIO(gif_bytes(film))).info["loop"] == 0
    assert "loop" not in image_module.open(io.BytesIO(gif_bytes(film, loop=False))).info


def test_a_single_picture_is_a_gif_too(film):
    pictures, _ = read(gif_bytes(film[:1], fps=1))
    assert np.array_equal(pictures, film[:1])


def test_a_moving_dot_costs_little(film):
    assert len(gif_bytes(film)) < len(gif_bytes(film[:1])) + 45 * 100


def test_a_gif_is_written_whole_or_not_at_all(film, tmp_path):
    path = tmp_path / "new" / "film.gif"
    write_gif(path, film)
    before = path.read_bytes()
    assert np.array_equal(read(before)[0], film)
    with pytest.raises(ValueError, match="frames is empty"):
        write_gif(path, [])
    assert path.read_bytes() == before
    assert [child.name for child in path.parent.iterdir()] == ["film.gif"]


def test_a_failed_write_leaves_nothing_behind(film, tmp_path):
    (tmp_path / "film.gif").mkdir()
    with pytest.raises(OSError, match=r"film\.gif"):
        write_gif(tmp_path / "film.gif", film)
    assert [child.name for child in tmp_path.iterdir()] == ["film.gif"]


def test_pixels_are_repeated_to_enlarge_a_picture():
    assert upscale(np.array([[1, 2]]), 2).tolist() == [[1, 1, 2, 2], [1, 1, 2, 2]]
    with pytest.raises(ConfigError, match="factor is 0"):
        upscale(np.zeros((1, 1)), 0)


def test_a_frame_without_colours_is_drawn_in_grey():
    frame = np.zeros((10, 5), np.float32)
    frame[9, 2] = 1
    picture = frame_to_rgb(frame)
    assert picture.shape == (160, 80, 3)
    assert picture.dtype == np.uint8
    assert (picture[144:, 32:48] == 255).all()
    assert picture.sum() == 16 * 16 * 3 * 255
    assert (frame_to_rgb(np.full((84, 84), 7, np.uint8)) == 7).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "fps is 0"),
        ({"fps": 60}, "at most 50"),
        ({"max_width": 0}, "max_width is 0"),
        ({"max_pictures": 0}, "max_pictures is 0"),
    ],
)
def test_a_bad_option_is_named(film, options, message):
    with pytest.raises(ConfigError, match=message):
        gif_bytes(film, **options)


@pytest.mark.parametrize(
    "frames",
    [
        [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)],
        [np.zeros((4, 4, 3))],
        [np.zeros((4, 4), np.uint8)],
    ],
)
def test_pictures_that_do_not_fit_are_named(frames):
    with pytest.raises(ValueError, match="all of one shape"):
        gif_bytes(frames)


def test_an_mp4_is_as_long_as_the_game_and_shows_it(film, tmp_path):
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    path = tmp_path / "new" / "film.mp4"
    write_film(path, film)
    pictures, seconds = imageio_ffmpeg.count_frames_and_secs(str(path))
    assert (pictures, seconds) == (45, pytest.approx(45 / PICTURES_PER_SECOND, abs=0.1))
    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-loglevel",
        "error",
        "-i",
        path,
        *"-f rawvideo -pix_fmt rgb24 -".split(),
    ]
    shown = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    shown = shown.reshape(45, 60 * 8, 40 * 8, 3)[:, 4::8, 4::8]
    assert np.abs(shown.astype(int) - film).mean() < 8
    assert [child.name for child in path.parent.iterdir()] == ["film.mp4"]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="frames is empty"):
        write_film(path, [])
    with pytest.raises(
        RunError, match=r"film\.mp4 could not be written \(OSError: ffmpeg failed: .*\); give --out"
    ) as said:
        write_film(path, [film[0][:, :0]])
    assert "\n" not in str(said.value)
    assert path.read_bytes() == before
    assert [child.name for child in path.parent.iterdir()] == ["film.mp4"]


def test_a_film_is_what_its_name_says(film, tmp_path):
    write_film(tmp_path / "film.gif", film)
    assert (tmp_path / "film.gif").read_bytes()[:6] == b"GIF89a"
    with pytest.raises(ConfigError, match=r"film\.avi; give a name that ends in \.gif or \.mp4"):
        write_film(tmp_path / "film.avi", film)
    check_film(None)


def test_a_film_that_finds_no_folder_is_refused_before_anything_is_played(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match=r"--out is .*film\.gif', where no file can be made .*; give --out another place"
    ):
        check_film(tmp_path / "file" / "deep" / "film.gif")
    check_film(tmp_path / "new" / "deep" / "film.gif")  # made when it is written
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


def test_an_mp4_without_its_library_is_answered_with_the_extra(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"\[mp4\]"):
        check_film(tmp_path / "film.mp4")
