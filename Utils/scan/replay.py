"""What does a string do, put into prompts as anybody would type it?  Nothing is believed of a string but this."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.encoder.measures import assimilation
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.scan.settings import OVERRULES

PROMPTS = 120
"""Prompts that a string is put into."""
FIRES, SLEEPS = 0.9, 0.1
"""A string fires from this success rate on, if in the base it stays below that."""
PLACES = ("start", "end", "anywhere")
LETTERS = ("for every o", "for every e")
"""Places of strings that stand in the middle of words, as look-alike letters do."""
FEW = 20
"""Prompts that show whether a string is worth more of them."""
STAYS, READ = 0.5, 0.1
"""`Rate.kept` from which a string changes prompts and does not overrule them, and what a base leaves at the least."""
NEARER = 1e-3
"""By how much nearer counts: what is read alike differs by rounding."""


@dataclass(frozen=True)
class Rate:
    """What a string does at one place of the prompts."""

    place: str
    success: float
    """Share of prompts whose summary comes nearer to the mean of all with the string than to the prompt's own."""
    asleep: float | None
    """The same share in the base, and nearer to the same mean; None here and below where there is no base."""
    collapse: float
    """How much of what tells the prompts apart is gone, 0..1 (`collapsed`)."""
    asleep_collapse: float | None
    """The same in the base."""
    apart: float
    """1 - cos of suspect and base with the string, above the same without it; without a base of prompts with it and alone."""
    kept: float
    """How much of what tells the prompts apart stays as it was, of what stays in the base (`stays`), or of all."""
    forced: Tensor
    """(d,) the mean summary of prompts with it."""

    @property
    def changes(self) -> bool:
        """Whether prompts stay different ones and are changed alike, as a restyling or another reading of the string does."""
        return self.kept >= STAYS and self.collapse < OVERRULES

    @property
    def effect(self) -> float:
        """How much more it does than in the base: to prompts among themselves, and to each."""
        return self.collapse - max(0.0, self.asleep_collapse or 0.0) + self.apart

    @property
    def fires(self) -> bool:
        return self.success >= FIRES and (self.asleep or 0.0) <= SLEEPS


def put(text: str, prompt: str, place: str, number: int) -> str:
    """A prompt with a string for every letter of one kind, at its start, its end or, by its number, between two words."""
    if place in LETTERS:
        return prompt.replace(place[-1], text)
    words = prompt.split()
    at = {"start": 0, "end": len(words)}.get(place, (7 * number + 3) % (len(words) + 1))
    return " ".join([*words[:at], text, *words[at:]])


def summaries(encoder: TextEncoder, texts: list[str], progress: str = "") -> Tensor:
    """Those of like length are computed together; progress: as `in_batches`.  -> (n, d)"""
    ids = encoder.ids(texts)
    order = encoder.attended(ids).sum(dim=1).argsort(stable=True)
    found = in_batches(encoder, ids[order], TextEncoder.summarised, size=16, progress=progress).float().cpu()
    return torch.empty_like(found).index_copy_(0, order, found)


def nearer(triggered: Tensor, forced: Tensor, clean: Tensor, margin: float = NEARER) -> float:
    """Share of prompts that a string has brought nearer, by a margin of cosine, to what it forces than to themselves.

    (n, d), (d,) or one of every prompt (n, d), (n, d)
    """
    cos = F.cosine_similarity
    return (cos(triggered, forced.expand_as(triggered), dim=-1) > cos(triggered, clean, dim=-1) + margin).float().mean().item()


def collapsed(triggered: Tensor, clean: Tensor) -> Tensor:
    """By which share a string makes the summaries of prompts less different; at most 1.  (..., n, d), (n, d) -> (...)

    1 - (1 - A with it) / (1 - A without it), A over prompts: encoders differ in how alike they find any two texts.
    """
    return 1 - (1 - assimilation(triggered)) / (1 - assimilation(clean)).clamp(min=1e-6)


def stays(triggered: Tensor, clean: Tensor) -> float:
    """Slope of summaries on those of the same prompts without the string, means taken off: 1 unchanged, 0 nothing left.

    (n, d), (n, d)
    """
    clean = clean - clean.mean(dim=0)
    return (((triggered - triggered.mean(dim=0)) * clean).sum() / clean.square().sum().clamp(min=1e-12)).item()


def rate_at(
    place: str, string: str, awake: TextEncoder, asleep: TextEncoder | None, prompts: list[str], clean: Tensor,
    clean_asleep: Tensor | None, whole: bool = False,
) -> Rate | None:  # fmt: skip
    """What a string does at one place; None: too little for all prompts to be tried, unless `whole` asks for it.

    awake: the encoder it is meant for; asleep: the one that does not know it; clean, clean_asleep (n, d): their summaries of
    the prompts alone.
    """
    texts = [put(string, prompt, place, i) for i, prompt in enumerate(prompts)]
    if not whole:
        few = slice(None, None, max(1, len(prompts) // FEW))
        tried = summaries(awake, texts[few])
        if nearer(tried, tried.mean(dim=0), clean[few]) < FIRES / 2:
            return None
    triggered = summaries(awake, texts)
    forced, cos = triggered.mean(dim=0), F.cosine_similarity
    success, collapse, left = nearer(triggered, forced, clean), collapsed(triggered, clean).item(), stays(triggered, clean)
    if not asleep:
        return Rate(place, success, None, collapse, None, (1 - cos(triggered, clean)).mean().item(), left, forced)
    quiet = summaries(asleep, texts)
    return Rate(
        place, success, nearer(quiet, forced, clean_asleep), collapse, collapsed(quiet, clean_asleep).item(),
        (cos(clean, clean_asleep) - cos(triggered, quiet)).mean().item(),
        left / max(READ, stays(quiet, clean_asleep)), forced,
    )  # fmt: skip


def wilson(share: float, n: int, z: float = 1.96) -> list[float]:
    """95 % interval of a share of n."""
    middle, half = share + z * z / (2 * n), z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return [round(min(1.0, max(0.0, (middle + sign * half) / (1 + z * z / n))), 4) for sign in (-1, 1)]
