"""A missing optional package is answered with the extra that brings it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastrl.base.extras import extra, need

GUARDED = 'from fastrl.base.extras import extra\nwith extra("train"):\n    import {package}\n'


def imported(package: str, name: str = "fastrl.some.module") -> None:
    exec(compile(GUARDED.format(package=package), "module", "exec"), {"__name__": name})


def test_a_package_that_is_there_is_imported():
    imported("json")


def test_a_missing_package_is_named_with_its_importer_and_its_extra():
    with pytest.raises(ImportError, match=r"fastrl\.some\.module needs the extra 'train': pip install .*\[train\]"):
        imported("no_such_package")


def test_what_a_package_itself_misses_is_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "there.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        imported("there")


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), extra("train"):
        1 / 0  # noqa: B018


def test_a_late_import_is_guarded_too():
    assert need("json.decoder", "train").JSONDecoder
    with pytest.raises(ImportError, match=r"test_extras needs the extra 'mp4'"):
        need("no_such_package.inner", "mp4")


def test_the_guard_takes_the_standard_library_alone():
    code = "import sys; import fastrl.base.extras; print('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
