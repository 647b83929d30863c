"""Who says it: the program's name, version and commit, as every document has them, and the project's address."""

from __future__ import annotations

from functools import cache

from Utils.basics.checkout import checked_out
from Utils.basics.files import ROOT
from Utils.report.contract import VERSION

NAME = "AMBER"
ADDRESS = "https://example.org/AMBER"


@cache
def this_tool() -> dict[str, str | None]:
    """-> {name, version, commit}; commit: None where the program does not run from a checkout."""
    return {"name": NAME, "version": VERSION, "commit": checked_out(ROOT)}


def tool_of(report: dict) -> dict[str, str | None]:
    """The same of the program that made a report; one that an earlier version left knows no commit."""
    return report.get("tool") or {"name": NAME, "version": report["versions"]["amber"], "commit": None}


def docs(page: str) -> str:
    """The address of a page of docs."""
    return f"{ADDRESS}/blob/main/docs/{page}"
