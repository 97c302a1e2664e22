"""One clear message where an optional dependency is missing (standard library only)."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType


def need(module: str, extra: str) -> ModuleType:
    """Import and return `module`, which the optional `extra` of this project brings along.

    Parameters
    ----------
    module : str
        Full name of the module, such as ``"PIL.Image"``.
    extra : str
        Name of the extra that installs it, such as ``"train"``.

    Raises
    ------
    ImportError
        If it is not installed; the message names the caller, the extra and the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise  # the module is there; something that it imports is not
        caller = sys._getframe(1).f_globals["__name__"]
        raise ImportError(
            f"{caller} needs the extra '{extra}': pip install -c constraints.txt -e '.[{extra}]' ({error})"
        ) from error
