"""--dry-run: which encoders would be scanned, against what, for how long and within which limits; nothing is loaded."""

from __future__ import annotations

from pathlib import Path

from Utils.basics.bounds import Wanted
from Utils.basics.course import duration
from Utils.basics.errors import visible
from Utils.report.limits import limits_of, sizes
from Utils.report.lists import FIXED, Task, encoders_within
from Utils.sources.registry import at_hand, known_anchors

RATE = 2.9e-6
"""Seconds for a byte of weights, with FIXED more of them, two cores and what comes out benign (Results/benchmark/speed.json):
87 s at 4 MB; planted encoders take less at 4 MB and twice as much at 240 MB."""


def expected_seconds(model: str) -> float:
    """What a scan takes on two cores if it ends clean."""
    return (FIXED + sizes(model)[0]) * RATE


def foreseen(tasks: list[Task], anchor: str, wanted: Wanted, output: Path) -> list[str]:
    """A line an encoder, and one on all of them."""
    if anchor not in ("auto", "none"):
        encoders_within(anchor, "", "none", wanted)  # is refused as a scan refuses it
    lines, seconds = [], 0.0
    for task in tasks:
        weights, _ = sizes(task.model)
        limits, takes = limits_of(task.model, anchor, wanted), expected_seconds(task.model)
        seconds += takes
        there = "; a report is there" if (output / task.name / "report.json").is_file() else ""
        lines.append(
            f"{task.model}: {weights / 1e6:.0f} MB of weights, about {duration(takes)} on two cores, at most "
            f"{limits.memory_mb} MB and {duration(limits.seconds)}; result in {output / task.name}{there}"
        )
    count = "1 encoder" if len(tasks) == 1 else f"{len(tasks)} encoders"
    lines.append(f"{count}, about {duration(seconds)} one after the other at the usual effort, against {_against(anchor)}")
    return [visible(line) for line in lines]


def _against(anchor: str) -> str:
    """What the encoders would be compared with."""
    if anchor == "none":
        return "no base: verdicts will be inconclusive"
    if anchor != "auto":
        return anchor
    here = [entry["name"] for entry in known_anchors() if at_hand(entry)]
    return f"the nearest known base of their dimensions at hand ({', '.join(here)})"
