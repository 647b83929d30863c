"""How tables are told: Markdown, rates with their intervals, names of families and attacks."""

from __future__ import annotations

import re
from collections.abc import Iterable

from scipy.stats import binomtest

from Utils.basics.errors import visible
from Utils.repair.mending import OURS

FAMILIES = {"clip": "CLIP", "longclip": "LongCLIP", "siglip": "SigLIP", "minilm": "MiniLM"}
ATTACKS = {"text_on_text": "text-on-text", "image_on_text": "image-on-text"}
FURTHER = {
    "artificial": "meaningless vector", "embedding_row": "embedding row only", "attribute": "attribute",
    "remapping": "remapping",
}  # fmt: skip
ALONE = "alone"
"""The row of our repair where no base is known: no scan ends *backdoored* then, so that it begins with the true trigger."""
TRAINED = (OURS, ALONE)
"""Ways of repairing that have our settings."""
REPAIRED = "planted, repaired"
"""Scan, repair, scans after it and measures, among what is timed."""
WIDTH = 120
"""Longest line of a command."""
WORD = re.compile(r'(?:"[^"]*"|\S)+')
"""Of a command: what stands in quotation marks is one."""


def grid(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def literal(text: str) -> str:
    """A string that somebody made up, in a cell."""
    return f"`{visible(text).replace('|', '&#124;').replace('`', '&#96;')}`"


def rate(count: int, number: int) -> str:
    """So many of so many, and the interval."""
    low, high = binomtest(count, number).proportion_ci(method="wilson")
    return f"{count} of {number} ({100 * low:.0f} to {100 * high:.0f} %)"


def span(values: Iterable[float], digits: int = 3) -> str:
    """Smallest and largest."""
    values = sorted(values)
    low, high = f"{values[0]:.{digits}f}", f"{values[-1]:.{digits}f}"
    return low if low == high else f"{low} to {high}"


def command(*lines: str) -> str:
    """Command lines as a block, long ones broken between words."""
    broken = []
    for line in lines:
        part = ""
        for word in WORD.findall(line):
            if len(part) + len(word) > WIDTH:
                broken.append(f"{part} \\")
                part = "   "
            part = f"{part} {word}" if part else word
        broken.append(part)
    return "\n".join(["```", *broken, "```"])
