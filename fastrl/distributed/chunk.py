"""Chunks: what a collector plays for one request, packed for the way to the learner.

Letters in shapes: ``T`` vector steps of the chunk, ``n`` games of the collector.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrl.base.extras import need
from fastrl.dqn.collector import Rows
from fastrl.envs.frames import Frame, FrameShape, per_array

Array = NDArray[Any]
COLUMNS = ("action", "reward", "terminated", "truncated", "first", "reset", "game_over", "score", "length")
"""Of `Rows`, but for frames, masks and the numbers of the games."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """T vector steps of one collector; packing and unpacking cost about a microsecond per frame of 84x84."""

    number: int
    """Of the collector."""
    born: int
    """A random number that the process of the collector drew when it began."""
    seq: int
    """Number of the chunk, in this process: those in a row follow on from each other."""
    version: int
    """Updates that the weights which acted have had."""
    frame_shape: FrameShape
    frame_dtype: Any
    """Of one frame, str; of several arrays by name, as what follows."""
    columns: dict[str, Array]
    """By the names of `COLUMNS`, [T, n] each; and where the games give masks, ``mask`` [T, n, A] bool."""
    frames: list[Any]
    """T times [n, *frame_shape], as bytes, compressed by lz4 where that makes it smaller."""
    finals: dict[int, Any]
    """`Rows.final` by vector step, packed like frames; steps without are left out."""
    final_masks: dict[int, Array]
    """`Rows.final_mask` by vector step, [n, A] bool; steps without are left out."""

    @property
    def steps(self) -> int:
        """Vector steps, T."""
        return len(self.frames)

    def rows(self, step: int, env_id: NDArray[np.int64]) -> Rows:
        """Return one vector step. Its arrays are copies: a view would keep the whole chunk in Ray's store.

        Parameters
        ----------
        step : int
            Which one, below T.
        env_id : [n] int64
            Numbers of the games among those of all collectors.
        """
        final, final_mask = self.finals.get(step), self.final_masks.get(step)
        columns = {name: column[step].copy() for name, column in self.columns.items()}
        return Rows(
            frame=self._unpacked(self.frames[step]),
            final=None if final is None else self._unpacked(final),
            final_mask=None if final_mask is None else final_mask.copy(),
            env_id=env_id,
            **columns,
        )

    def _unpacked(self, contents: Any) -> Frame:
        n = self.columns["action"].shape[1]

        def unpacked(content: bytes, frame_shape: tuple[int, ...], frame_dtype: str) -> Array:
            shape, dtype = (n, *frame_shape), np.dtype(frame_dtype)
            size = int(np.prod(shape)) * dtype.itemsize
            if len(content) == size:
                raw = bytearray(content)
            else:
                raw = need("lz4.block", "train").decompress(content, uncompressed_size=size, return_bytearray=True)
            return np.frombuffer(raw, dtype).reshape(shape)

        return per_array(unpacked, contents, self.frame_shape, self.frame_dtype)


def pack(rows: Sequence[Rows], *, number: int, born: int, seq: int, version: int) -> Chunk:
    """Return vector steps, at least one, as a chunk; the other arguments are its fields."""
    frame = rows[0].frame
    names = COLUMNS if rows[0].mask is None else (*COLUMNS, "mask")
    return Chunk(
        number=number,
        born=born,
        seq=seq,
        version=version,
        frame_shape=per_array(lambda array: array.shape[1:], frame),
        frame_dtype=per_array(lambda array: array.dtype.str, frame),
        columns={name: np.stack([getattr(row, name) for row in rows]) for name in names},
        frames=[per_array(_packed, row.frame) for row in rows],
        finals={step: per_array(_packed, row.final) for step, row in enumerate(rows) if row.final is not None},
        final_masks={step: row.final_mask for step, row in enumerate(rows) if row.final_mask is not None},
    )


def _packed(frames: Array) -> bytes:
    plain = np.ascontiguousarray(frames).tobytes()
    compressed: bytes = need("lz4.block", "train").compress(plain, store_size=False)
    return compressed if len(compressed) < len(plain) else plain
