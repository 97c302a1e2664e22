"""One clear message where an optional package is missing (standard library only)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from fastrl.base.commands import install_command


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Guard imports of optional packages: ``with extra("train"): import envpool``.

    Parameters
    ----------
    name : str
        The extra of this project that installs them, such as ``"train"``.

    Raises
    ------
    ImportError
        If one of them is not installed; the message names the importing module, the extra and the command that
        installs it. An installed package that misses a package of its own raises its own error.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        frames = error.__traceback__
        while frames is not None and frames.tb_next is not None:
            frames = frames.tb_next
        importer = "" if frames is None else frames.tb_frame.f_globals["__name__"]
        if importer.partition(".")[0] != "fastrl":
            raise
        raise _missing(importer, name, error) from error


def need(module: str, extra: str) -> ModuleType:
    """Import and return a module late, where its package is optional and slow to import.

    Parameters
    ----------
    module : str
        Full name of the module, such as ``"torch.utils.tensorboard"``.
    extra : str
        Name of the extra that installs it, such as ``"train"``.

    Raises
    ------
    ImportError
        As of `extra`.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there; something that it imports is not
        raise _missing(sys._getframe(1).f_globals["__name__"], extra, error) from error


def _missing(importer: str, extra: str, error: ModuleNotFoundError) -> ImportError:
    return ImportError(f"{importer} needs the extra '{extra}': {install_command(extra)} ({error})")
