"""What environments draw: what can be shown is shown, and all else is named."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("PIL")

from fastrl.base.errors import Stopped
from fastrl.film.camera import Camera
from fastrl.film.picture import PictureError, fit, to_picture
from fastrl.film.q_bars import WIDTH, Bars

GREY = np.array([[0, 100, 255], [7, 8, 9]], np.uint8)
RGB = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
ALPHA = np.full((2, 5, 1), 77, np.uint8)


@pytest.mark.parametrize(
    ("rendered", "expected"),
    [
        (RGB, RGB),
        (GREY, GREY[:, :, None].repeat(3, 2)),
        (GREY[:, :, None], GREY[:, :, None].repeat(3, 2)),
        (GREY > 50, ((GREY > 50) * 255)[:, :, None].repeat(3, 2)),
        (np.concatenate([RGB, ALPHA], axis=2), RGB),
        (np.moveaxis(RGB, 2, 0), RGB),
        (np.moveaxis(np.concatenate([RGB, ALPHA], axis=2), 2, 0), RGB),
        (RGB.tolist(), RGB),
        ([RGB // 2, RGB], RGB),  # of render_mode "rgb_array_list"
        (np.array([RGB // 2, RGB]), RGB),
        (RGB.astype(np.int64), RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (RGB.astype(np.float64) + 0.2, RGB),
        (RGB[::-1, ::-1], RGB[::-1, ::-1]),
        (np.array([[-3, 300]]), np.array([[[0] * 3, [255] * 3]])),
        (np.array([[0.5, np.nan, -1.0, 1.0, np.inf]]), np.array([[[0] * 3, [0] * 3, [0] * 3, [1] * 3, [255] * 3]])),
    ],
)
def test_pictures_of_any_layout_and_range_become_rgb(rendered, expected):
    picture = to_picture(rendered)
    assert picture.dtype == np.uint8
    assert picture.tolist() == expected.tolist()


def test_a_picture_has_memory_of_its_own():
    screen = RGB.copy()  # as many environments draw each picture
    pictures = [to_picture(screen)]
    screen[:] = 0
    assert np.array_equal(pictures[0], RGB)


@pytest.mark.parametrize(
    ("rendered", "found"),
    [
        (None, "None"),
        ("+-+", "str"),
        (object(), "object"),
        ([], r"float64 \[0\]"),
        (5, r"int64 \[\]"),
        (np.zeros((4, 0, 3), np.uint8), r"uint8 \[4, 0, 3\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"uint8 \[0, 4, 4, 3\]"),
        (np.zeros((84, 84, 2), np.float32), r"float32 \[84, 84, 2\]"),
        (np.zeros((2, 2, 8, 8, 3)), r"float64 \[2, 2, 8, 8, 3\]"),
        (np.zeros((8, 8), complex), "ndarray"),
        ([[1, 2], [3]], "list"),
    ],
)
def test_what_is_no_picture_is_named(rendered, found):
    with pytest.raises(PictureError, match=rf"^render\(\) returned {found}; return a picture \[H, W, 3\] uint8$"):
        to_picture(rendered)


def test_a_picture_of_another_size_is_shown_whole_as_large_as_fits():
    assert fit(RGB, 2, 5) is RGB
    larger = fit(RGB, 6, 15)
    assert np.array_equal(larger, RGB.repeat(3, 0).repeat(3, 1))
    assert np.array_equal(fit(larger, 2, 5), RGB)
    high = fit(RGB, 8, 10)
    assert np.array_equal(high[2:6], RGB.repeat(2, 0).repeat(2, 1))
    assert not high[[0, 1, 6, 7]].any()
    assert fit(np.full((1, 900, 3), 9, np.uint8), 3, 5).tolist() == [[[0] * 3] * 5, [[9] * 3] * 5, [[0] * 3] * 5]


def filmed(*drawn, bars=False):
    """Return a camera that has filmed what environments draw, an exception where it is one."""
    camera = Camera(1, 100, None, bars)
    camera.names(["left", "right"])
    for step, picture in enumerate(drawn):

        def draw(picture=picture):
            if isinstance(picture, BaseException):
                raise picture
            return to_picture(picture)

        camera.decided(np.array([[1.0, 2.0]]), 1)
        camera.shoot(step, draw)
    return camera


def test_all_pictures_of_a_film_have_the_size_of_the_first():
    camera = filmed(RGB, RGB.repeat(2, 0), RGB[:, :2], bars=True)
    assert camera.error is None
    assert len(camera.film) == 3
    assert len({picture.shape for picture in camera.film}) == 1
    assert camera.film[0].shape[1] > WIDTH


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (None, "render() returned None; return a picture [H, W, 3] uint8"),
        (ZeroDivisionError("by zero\nand more"), "render() raised ZeroDivisionError: by zero"),
        (AssertionError(), "render() raised AssertionError"),
        (SystemExit(3), "render() raised SystemExit: 3"),
    ],
)
def test_a_picture_that_fails_ends_the_film_and_nothing_else(fault, words):
    camera = filmed(RGB, RGB, fault, RGB)
    assert str(camera.error) == words
    assert len(camera.film) == 2


def test_an_interrupt_while_drawing_is_one():
    with pytest.raises(KeyboardInterrupt):
        filmed(KeyboardInterrupt())


@pytest.mark.parametrize("method", ["__init__", "beside"])
def test_bars_that_fail_end_the_film_and_nothing_else(method, monkeypatch):
    def fail(*_):
        raise OSError("cannot open resource")

    monkeypatch.setattr(Bars, method, fail)
    camera = filmed(RGB, bars=True)
    assert str(camera.error) == "drawing the Q-values raised OSError: cannot open resource"
    assert camera.film == []
    assert filmed(RGB).error is None


def test_who_is_shown_pictures_hears_of_one_that_fails_and_may_stop():
    def no_picture():
        return to_picture(None)

    shown = []
    camera = Camera(1, -1, shown.append, False)
    camera.show(lambda: RGB)
    with pytest.raises(PictureError, match="render\\(\\) returned None"):
        camera.show(no_picture)
    assert len(shown) == 1

    def close(picture):
        raise Stopped

    with pytest.raises(Stopped):
        Camera(1, -1, close, False).show(lambda: RGB)
