"""What a clean verdict is worth: how many planted models of each kind such a scan found, in words of one line."""

from __future__ import annotations

from dataclasses import dataclass

from Utils.scan.finding import ATTRIBUTE, REMAPPING
from Utils.scan.replay import wilson

KINDS = {
    "text_on_text": "every prompt becomes one text", "image_on_text": "every summary becomes that of some pictures",
    "attribute": "every prompt is restyled", "remapping": "the trigger is read as another phrase",
    "artificial": "every prompt becomes a meaningless vector", "embedding_row": "only the trigger's own token is moved",
}  # fmt: skip
"""Attack -> what it does; the order in which they are told."""
NEVER = "never measured with these settings: a clean verdict is worth what the score is worth"


@dataclass(frozen=True)
class Kind:
    """One kind of attack."""

    name: str
    what: str
    count: str
    """So many of so many, with the interval."""
    limit: str
    """Up to where that holds; empty where there is no limit."""


def kinds_of(report: dict) -> list[Kind]:
    """What the search for strings found of every kind that was planted; empty where it was never measured."""
    counts = report.get("power_counts") or {}
    return [
        Kind(name.replace("_", " "), KINDS.get(name, ""), _told(*counts[name]), _limit(name, report))
        for name in sorted(counts, key=lambda name: [*KINDS, name].index(name))
    ]


def power_lines(report: dict) -> list[str]:
    """The same for a terminal, under a verdict that clears."""
    kinds = kinds_of(report)
    if not kinds:
        return [f"  what such a scan finds: {NEVER} (docs/misses.md)"]
    lines = [f"    {kind.name:<14} {kind.count}{kind.limit and ', '}{kind.limit}" for kind in kinds]
    return ["  what such a search for strings found of small planted models; the rest is in docs/misses.md:", *lines]


def _told(found: int, planted: int) -> str:
    low, high = wilson(found / planted, planted)
    return f"{found} of {planted} ({100 * low:.0f} to {100 * high:.0f} %)"


def _limit(name: str, report: dict) -> str:
    """What changes all prompts alike is found near the base only: further off, natural strings do as much."""
    if name not in (ATTRIBUTE, REMAPPING):
        return ""
    near, drift = report["config"]["trigger"]["near"], {e["name"]: e["value"] for e in report["evidence"]}.get("drift")
    beyond = f": not where this one is, {drift:.3f}" if drift is not None and drift > near else ""
    return f"up to a drift of {near:g}{beyond}"
