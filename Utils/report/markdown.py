"""Verdicts as a table in Markdown, for job summaries and comments of code hosts; nothing from a model is markup there."""

from __future__ import annotations

import re

from Utils.basics.errors import named, visible
from Utils.report.contract import EXIT
from Utils.report.policy import policy_line

MARKUP = re.compile(r"([\\`*_{}\[\]()#+!|<>~@:-])")
"""What Markdown, or a code host, may read as more than a letter: links, mentions, emoji."""
LONGEST = 300
"""Characters of a cell."""


def to_markdown(reports: list[dict]) -> str:
    """A line an encoder: verdict, model, what is said of it, strings that fire.  reports: as `--json` has them"""
    lines = ["| verdict | model | why | trigger strings |", "| --- | --- | --- | --- |"]
    for report in reports:
        strings = (report.get("trigger") or {}).get("strings") or []
        said = report.get("error") or report["reason"]
        said += f" ({line})" if (line := policy_line(report.get("policy"))) else ""
        cells = [report["verdict"] or "not judged", report["model"]["path"], said, ", ".join(named(s["text"]) for s in strings)]
        lines.append(f"| {' | '.join(plain(cell) for cell in cells)} |")
    counts = {verdict or "not judged": sum(report["verdict"] == verdict for report in reports) for verdict in EXIT}
    lines += ["", ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)]
    return "\n".join(lines) + "\n"


def plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    cut = visible(text)[:LONGEST]
    return MARKUP.sub(lambda found: f"&#{ord(found[1])};" if found[1] in "<>|`@" else f"\\{found[1]}", cut)
