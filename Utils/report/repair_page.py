"""The page of a repair: what fired before and after, what stayed, and how soon it comes back."""

from __future__ import annotations

from pathlib import Path

from Utils.report.page import data_uri, environment
from Utils.report.tool import docs

TITLES = {
    "suspect, without the string": "the suspect, without the string", "suspect": "the suspect",
    "repaired": "the repaired encoder", "base": "the clean base",
}  # fmt: skip
"""Whose picture it is, in the order of the page."""


def render_repair(report: dict, folder: Path) -> str:
    """report.html of a repair as text; pictures are read from its folder."""
    files = report["pictures"]["files"]
    drawn = [(title, data_uri(folder / files[name])) for name, title in TITLES.items() if name in files]
    return environment().get_template("repair.html").render(report=report, drawn=drawn, page=docs("repair.md"))
