"""``metrics.csv``: a table that grows, row by row."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastrl.base.errors import ConfigError
from fastrl.base.files import write_atomically


class MetricsCsv:
    """A growing table: one row per `append`, columns in the order in which their keys first appeared.

    Parameters
    ----------
    path : Path
        The file; made with the first row.
    unit : str
        Name of the first column, which says when: ``"frames"`` or ``"steps"``.
    rows : int, optional
        Continue the file after a resume: keep this many rows and drop the others, one that a crash cut short
        included. Without it the file must not exist.

    Raises
    ------
    ConfigError
        If the file exists and ``rows`` is not given, or if it counts in another unit.
    """

    def __init__(self, path: Path, unit: str, rows: int | None = None) -> None:
        self.path, self.rows = path, 0
        self._columns = [unit]
        if not path.exists():
            return
        if rows is None:
            raise ConfigError(f"{path} exists already; give --name another name, or resume that run")
        known = self._read()
        if self._columns[0] != unit:
            raise ConfigError(f"{path} counts {self._columns[0]}, not {unit}; resume the run with its own command")
        self._rewrite(known[:rows])
        self.rows = len(known[:rows])

    def append(self, values: Mapping[str, float], at: int) -> None:
        """Add a row and flush it; a new key rewrites the file with a longer header first."""
        new = [key for key in values if key not in self._columns]
        if new or not self.path.exists():
            rows = self._read() if self.path.exists() else []
            self._columns += new
            self._rewrite(rows)
        row = {self._columns[0]: str(int(at))} | {key: repr(float(value)) for key, value in values.items()}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            self._writer(file).writerow(row)
        self.rows += 1

    def _read(self) -> list[dict[str, str]]:
        """Read the columns and every whole row."""
        whole = self.path.read_text(encoding="utf-8").rpartition("\n")[0]  # what has no line end was cut short
        lines = csv.DictReader(whole.splitlines())
        self._columns = list(lines.fieldnames or self._columns)
        return [row for row in lines if None not in row and None not in row.values()]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        """Replace the file in one move: a crash leaves the old one or the new one."""
        table = io.StringIO()
        writer = self._writer(table)
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path, table.getvalue())

    def _writer(self, file: Any) -> csv.DictWriter[str]:
        return csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
