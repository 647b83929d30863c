"""Verdicts as a table in Markdown, for job summaries and comments of code hosts; nothing from a model is markup there."""

from __future__ import annotations

import re

from Utils.basics.errors import named, visible
from Utils.report.contract import EXIT
from Utils.report.policy import policy_line

LONGEST = 300
"""Characters of a cell."""


def to_markdown(reports: list[dict]) -> str:
    """A line an encoder: verdict, model, what is said of it, strings that fire.  reports: as `--json` has them"""
    lines = ["| verdict | model | why | trigger strings |", "| --- | --- | --- | --- |"]
    for report in reports:
        strings = (report.get("trigger") or {}).get("strings") or []
        said = report.get("error") or report["reason"]
        said += f" ({line})" if (line := policy_line(report.get("policy"))) else ""
        cells = [report["model"]["path"], said, ", ".join(named(s["text"]) for s in strings)]
        lines.append(f"| {report['verdict'] or 'not judged'} | {' | '.join(literal(cell) for cell in cells)} |")
    counts = {verdict or "not judged": sum(report["verdict"] == verdict for report in reports) for verdict in EXIT}
    lines += ["", ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)]
    return "\n".join(lines) + "\n"


def literal(text: str) -> str:
    """A cell that shows a text letter by letter: between more backticks than stand in it, in which no markup is read."""
    cut = visible(text)[:LONGEST].strip()
    if not cut:
        return ""
    fence = "`" * (max(map(len, re.findall("`+", cut)), default=0) + 1)
    return f"{fence} {cut.replace('|', chr(92) + '|')} {fence}"
