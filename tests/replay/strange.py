"""Objects and arrays that are not what one expects."""

from __future__ import annotations

import numpy as np


class Array:
    """Gives its answers to ``__array__`` one after the other, and the last one ever after."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __array__(self, dtype=None, copy=None):
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Length:
    """A sequence, it says."""

    def __init__(self, length):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, i):
        raise IndexError


class Index:
    def __index__(self):
        return 3


def misaligned(values, dtype):
    """Return the same values one byte beside where they should lie."""
    values = np.asarray(values, dtype)
    return np.frombuffer(b"?" + values.tobytes(), dtype, offset=1).reshape(values.shape)


def misaligned_view(values, code):
    """Return a memoryview that does not tell where it lies, unlike NumPy's."""
    return memoryview(bytearray(b"?" + np.asarray(values, code).tobytes()))[1:].cast(code)


def read_only(values, dtype=None):
    values = np.array(values, dtype)
    values.flags.writeable = False
    return values


class Thief:
    """Does something else first when it is read."""

    def __init__(self, what, answer):
        self.what, self.answer = what, answer

    def __array__(self, dtype=None, copy=None):
        self.what()
        return self.answer
