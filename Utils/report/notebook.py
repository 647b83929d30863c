"""A scan in a notebook: flags as keywords, and the report as a page in the cell."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from Utils.basics.config import settings_of
from Utils.basics.errors import InputError
from Utils.scan.settings import ScanConfig

OTHERS = ("help", "version", "doctor", "dry_run", "try", "model", "models", "workers", "scheduler", "repair", "force")
"""Flags that scan nothing, or more than one encoder, or do more than scan."""
HEIGHT = 900
"""Pixels of the page in a cell."""


class Report(dict):
    """What report.json says, as a dictionary; a cell that ends with it shows the page."""

    def __init__(self, report: dict, folder: Path):
        super().__init__(report)
        self.folder = folder

    def _repr_html_(self) -> str:
        """The page in a frame of its own, in which nothing runs and whose styles stay there."""
        page = (self.folder / "report.html").read_text(encoding="utf-8")
        return f'<iframe title="report" sandbox srcdoc="{escape(page)}" style="width:100%;height:{HEIGHT}px;border:0"></iframe>'


def words_of(flags: dict[str, object]) -> Iterator[str]:
    """Keywords as the words of a command line: True is a flag alone, None is not given, and False only if it is no setting."""
    settings = settings_of(ScanConfig)
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if name in OTHERS:
            raise InputError(f"a scan in a notebook knows no {name}; type python main.py --{flag}.")
        if value is True:
            yield f"--{flag}"
        elif value is False and name in settings:
            yield f"--no-{flag}"
        elif value is not None and value is not False:
            yield f"--{flag}={value}"
