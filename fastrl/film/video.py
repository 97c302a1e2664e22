"""Films as GIFs, small and exact in colour, or as MP4; both play as fast as the game.

An agent step is four emulator frames at 60 Hz, so a film with one picture per agent step plays at
``PICTURES_PER_SECOND`` = 15.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastrl.base.checks import at_least
from fastrl.base.errors import ConfigError, RunError, in_words
from fastrl.base.extras import extra, need
from fastrl.base.files import require_place, write_atomically
from fastrl.film.picture import Picture

PICTURES_PER_SECOND = 15.0
MAX_PICTURES_PER_SECOND = 50.0  # browsers slow faster GIFs down to 10 pictures a second


def gif_bytes(
    frames: Sequence[Picture],
    *,
    fps: float = PICTURES_PER_SECOND,
    max_width: int = 480,
    max_pictures: int | None = None,
    loop: bool = True,
) -> bytes:
    """Return an animated GIF of RGB pictures; Breakout takes about 0.1 kB a picture.

    Parameters
    ----------
    frames : sequence of [H, W, 3] uint8
        At least one, all of one shape. Equal neighbours are stored once and shown longer.
    fps : float
        Pictures per second, above 0 and at most 50. GIFs count hundredths of a second: the time of a picture is
        rounded, that of the whole film is not.
    max_width : int
        Wider pictures are shrunk by a whole factor, every k-th pixel of both axes.
    max_pictures : int, optional
        Longer films are thinned to every k-th picture, each shown k times as long.
    loop : bool
        Play for ever instead of once.

    Raises
    ------
    ConfigError
        For a setting out of its range.
    ValueError
        If there are no pictures or they do not fit.
    """
    if not 0 < fps <= MAX_PICTURES_PER_SECOND:
        raise ConfigError(f"fps is {fps!r}; give more than 0 and at most {MAX_PICTURES_PER_SECOND:g}")
    at_least(1, max_width=max_width, **({} if max_pictures is None else {"max_pictures": max_pictures}))
    if not len(frames):
        raise ValueError("frames is empty; give at least one picture")
    for frame in frames:
        if frame.shape != frames[0].shape or frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
            raise ValueError(f"frames hold {frame.dtype} {frame.shape}; give [H, W, 3] uint8, all of one shape")

    every = -(-len(frames) // max_pictures) if max_pictures else 1
    smaller = -(-frames[0].shape[1] // max_width)
    pictures, palette = _indexed([frame[::smaller, ::smaller] for frame in frames[::every]])
    ends = np.round(np.arange(1, len(pictures) + 1) * every * 100 / fps).astype(int)  # hundredths of a second
    with extra("train"):  # here, not above: commands check the name of a film without Pillow
        from PIL import Image
    images = [Image.fromarray(picture) for picture in pictures]
    for image in images:
        image.putpalette(palette)
    file = io.BytesIO()
    images[0].save(
        file,
        format="GIF",
        save_all=True,
        append_images=images[1:],
        duration=(np.diff(ends, prepend=0) * 10).tolist(),
        palette=palette,  # one table for all pictures, not one in each
        optimize=True,  # pixels that did not change become transparent: the last entry of the palette
        transparency=len(palette) // 3 - 1,
        disposal=1,
        **({"loop": 0} if loop else {}),
    )
    return file.getvalue()


def write_gif(path: str | os.PathLike[str], frames: Sequence[Picture], **options: Any) -> None:
    """Write a GIF whole or not at all: a reader never sees half a film. Options are those of `gif_bytes`."""
    path = Path(path)
    content = gif_bytes(frames, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)


def write_mp4(path: str | os.PathLike[str], frames: Sequence[Picture], fps: float = PICTURES_PER_SECOND) -> None:
    """Write an MP4 (H.264) of RGB pictures ``[H, W, 3] uint8`` whole or not at all, enlarged by an even factor.

    H.264 halves the resolution of colours: the sides have to be even, and enlarged pixels survive the halving.

    Raises
    ------
    ImportError
        If imageio-ffmpeg is missing; the message names the extra.
    OSError
        If ffmpeg fails; the message quotes it.
    ValueError
        If there are no pictures.
    """
    ffmpeg = need("imageio_ffmpeg", "mp4").get_ffmpeg_exe()
    if not len(frames):
        raise ValueError("frames is empty; give at least one picture")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    factor = 2 * max(1, round(500 / (2 * height)))
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    taken = f"-f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {fps:g} -i -".split()
    made = f"-vf scale=iw*{factor}:ih*{factor}:flags=neighbor -c:v libx264 -crf 18 -pix_fmt yuv420p -f mp4".split()
    try:
        command = [ffmpeg, "-y", "-loglevel", "error", *taken, *made, str(partial)]
        ended = subprocess.run(command, input=b"".join(frame.tobytes() for frame in frames), capture_output=True)
        if ended.returncode:
            raise OSError(f"ffmpeg failed: {ended.stderr.decode(errors='replace').strip()}")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


WRITERS: dict[str, Callable[..., None]] = {".gif": write_gif, ".mp4": write_mp4}


def check_film(path: Path | None) -> None:
    """Raise if `write_film` could not write to this path: ConfigError, or ImportError if an extra is missing."""
    if path is None:
        return
    if path.suffix not in WRITERS and not os.path.isdir(path):
        raise ConfigError(f"--out is {path}; give a name that ends in {' or '.join(WRITERS)}")
    require_place(path, "--out")
    if path.suffix == ".mp4":
        need("imageio_ffmpeg", "mp4")


def write_film(path: Path, frames: Sequence[Picture]) -> None:
    """Write a film of one picture per agent step, in the format that its suffix names.

    Raises
    ------
    ConfigError, ImportError
        As `check_film` does.
    RunError
        If it cannot be written all the same: to a full disk, for example.
    ValueError
        If there are no pictures.
    """
    check_film(path)
    with _explained(path):
        WRITERS[path.suffix](path, frames)


def write_content(path: Path, content: bytes) -> None:
    """Write the file of a film that was made elsewhere, whole or not at all; RunError if it cannot be written."""
    check_film(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"the film {path} could not be written ({in_words(error)}); give --out another place") from error


def _indexed(frames: Sequence[Picture]) -> tuple[list[Picture], bytes]:
    """Return the pictures as [H, W] indices into one palette, and the palette: 255 colours and one to spare.

    Atari shows 128 colours at most, so its films come out exact; films with more lose the lowest bits.
    """
    seen = np.zeros(1 << 24, np.bool_)
    for frame in frames:
        seen[_codes(frame)] = True
    colours = np.flatnonzero(seen)
    index = np.zeros(1 << 24, np.uint8)
    for lost_bits in range(8):
        mask = 0x010101 * (0xFF >> lost_bits << lost_bits)
        kept, inverse = np.unique(colours & mask, return_inverse=True)
        if len(kept) <= 255:
            index[colours] = inverse
            break
    palette = np.stack([kept >> 16, kept >> 8 & 0xFF, kept & 0xFF], axis=1).astype(np.uint8)
    return [index[_codes(frame)] for frame in frames], palette.tobytes() + bytes(3)


def _codes(frame: Picture) -> npt.NDArray[np.uint32]:
    """Return the colours of a picture as [H, W] uint32, 0xRRGGBB."""
    codes: npt.NDArray[np.uint32] = frame.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    return codes
