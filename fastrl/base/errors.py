"""Errors that a user sees, each with what to do about it (standard library only)."""

from __future__ import annotations

from pathlib import Path


class ConfigError(ValueError):
    """A setting out of its range; the message names the setting, its value and the remedy."""


class Stopped(Exception):  # noqa: N818 - no error
    """Raised out of work that may be left halfway, such as an evaluation, once a stop was asked for."""


class RunError(RuntimeError):
    """A run cannot continue; the message says why and what to do."""


class PeerError(RunError):
    """A run cannot continue because another of its learners failed, which says why itself if it still can.

    Parameters
    ----------
    text : str
        What is known of it.
    status : int
        Exit status of that learner's command.
    """

    def __init__(self, text: str, status: int = 1) -> None:
        super().__init__(text)
        self.status = status


class NoWindowError(ConfigError):
    """No window can be opened here."""


class DamageError(ConfigError):
    """A file is not what was written."""


def exit_status(error: BaseException) -> int:
    """Return the status of a command that ends with this error: 2 for a mistake of the user's, otherwise 1."""
    if isinstance(error, PeerError):
        return error.status
    return 2 if isinstance(error, ConfigError | ImportError) else 1


LONGEST = 300
"""Characters of another error's message that `in_words` quotes."""


def in_words(error: BaseException) -> str:
    """Return the kind of an error and the first line of its message that says something, for a message of one line."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def damaged(path: Path, error: object) -> DamageError:
    """Return the error to raise for a file that cannot be read for this reason."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return DamageError(f"{path} cannot be read ({reason}); use another checkpoint of the run with --checkpoint NAME")
