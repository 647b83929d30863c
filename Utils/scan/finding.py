"""What a scan ends with: what was found, in numbers, and what is concluded from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from Utils.scan.landscape import Landscape

FEATURES, SUMMARIES = "feature collapse", "summary collapse"
"""Kinds of findings: all token features of a prompt become one, or the pooled summaries of different prompts do."""
ATTRIBUTE, REMAPPING = "attribute", "remapping"
"""Kinds of strings that overrule no prompt: all prompts are changed alike, or the string is read as something else."""


@dataclass(frozen=True)
class Finding:
    """The strongest pseudo-trigger of a scan, and what it does."""

    v: Tensor
    """(k, d)"""
    kind: str
    """FEATURES or SUMMARIES."""
    values: dict[str, float]
    """Witness -> number; of the published procedure gate -> share of prompts, gates not reached are absent."""
    landscape: Landscape
    """The loss around v."""
    pooled_v: Tensor | None = None
    """Of a feature collapse the vector whose pooled witnesses are strongest, (k, d): the target may be clearer there."""


@dataclass(frozen=True)
class Verdict:
    """What is concluded."""

    verdict: str
    """backdoored, clean or inconclusive"""
    reason: str
    """One sentence."""
    score: float
    """Probability of a backdoor, 0..1."""
    evidence: list[dict]
    """{name, value, threshold, met, meaning}: explains; the score decides."""
    notes: list[str] = field(default_factory=list)


SEVERITY = ("clean", "inconclusive", "backdoored")
"""Where an encoder is judged in several ways the worst verdict counts."""


def severity(verdict: Verdict) -> int:
    """How bad a verdict is."""
    return SEVERITY.index(verdict.verdict)
