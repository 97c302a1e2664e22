"""Errors that a user sees, each with what to do about it (standard library only)."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A setting out of its range; the message names the setting, its value and the remedy."""


class Stopped(Exception):  # noqa: N818 - no error
    """Raised out of work that may be left halfway, such as an evaluation, once a stop was asked for."""


class RunError(RuntimeError):
    """A run cannot continue; the message says why and what to do."""


class NoWindowError(ConfigError):
    """No window can be opened here."""


class DamageError(ConfigError):
    """A file is not what was written."""


def in_words(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message, for a message of one line."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def damaged(path: Path, error: object) -> DamageError:
    """Return the error to raise for a file that cannot be read for this reason."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DamageError(f"{path} cannot be read ({reason}); use another checkpoint of the run")
