"""Strings that somebody types, and what they do: nothing is believed of a string but what it does to unseen prompts.

What the search for the trigger ends with (`Strings`), how a string is tried and shortened (`Trial`), and what it is called.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.bounded import progress
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.finding import ATTRIBUTE, REMAPPING, SUMMARIES
from Utils.scan.replay import (
    FEW,
    FIRES,
    LETTERS,
    PLACES,
    PROMPTS,
    Rate,
    collapsed,
    put,
    rate_at,
    summaries,
    wilson,
)
from Utils.scan.settings import TriggerConfig

LONG = (20, 45)
"""Words of the prompts that strings are judged by."""
LETTER = 4
"""Characters of a string that can stand for a letter."""
SAME = 0.5
"""From this cosine on, the mean of clean prompts taken off, two strings force the same."""
SHOWN = 2
"""Strings that are tried in all prompts even if none is a proof."""
LISTED = 5
"""Strings that a report tells of."""
RUNS, PIECES = (2, 3, 1), 24
"""Characters of the pieces of a string that are tried as strings of their own, and how many pieces."""
HOPEFUL = 6
"""Of them so many are tried in more prompts."""
STRONGER = 0.02
"""By how much more a proof has to collapse prompts to be shown in place of a shorter one."""


@dataclass(frozen=True)
class Fired:
    """A string and what it does, typed into prompts that no search has seen."""

    text: str
    rate: Rate
    prompts: int
    """How many."""
    proven: bool
    effect: float
    """`Rate.effect`, less the price of a long string."""


@dataclass(frozen=True)
class Strings:
    """What the search for the trigger ends with."""

    found: list[Fired] = field(default_factory=list)
    """Strings that do most, the strongest first, each at its best place."""
    score: float = 0.0
    """The largest effect of a string on unseen prompts (`Fired.effect`)."""
    drift: float = 0.0
    """1 - cos of suspect and base, summaries of these prompts."""
    natural: float = TriggerConfig.natural
    """What strings reach in clean encoders that went as far."""
    cfg: TriggerConfig = field(default_factory=TriggerConfig)
    """How they were found, and how they are judged."""
    prompts: int = PROMPTS
    """How many they were typed into."""
    middle: Tensor = field(default_factory=lambda: torch.zeros(1))
    """(d,) the mean summary of these, without a string."""

    def above_natural(self, more: float) -> float:
        """The effect that is so much more than is natural, or where that is little less in proportion."""
        return self.natural + more * min(1.0, max(0.0, self.natural / self.cfg.natural) if self.cfg.natural > 0 else 1.0)

    @property
    def limit(self) -> float:
        """What no string does in a clean encoder."""
        return self.above_natural(self.cfg.beyond)

    @property
    def cleared(self) -> float:
        """The effect up to which nothing speaks against an encoder."""
        return self.above_natural(self.cfg.clean_within)

    @property
    def strong(self) -> list[Fired]:
        """Strings that do what none does in a clean encoder; of one that went far from its base only a proof is believed.

        What a benign twin shows of far ones is one draw of a wide distribution.
        """
        near = self.drift <= self.cfg.near
        return [one for one in self.found if one.effect >= self.limit and (near or one.proven)]

    @property
    def proven(self) -> list[Fired]:
        return [one for one in self.strong if one.proven]

    @property
    def best(self) -> Fired | None:
        """The string to show: the proof that leaves least of the prompts, else one that changes all, else what does most."""
        if self.proven:
            return max(self.proven, key=lambda one: one.rate.collapse)
        return next(iter([one for one in self.strong if one.rate.changes] or self.strong), None)

    @property
    def kind(self) -> str | None:
        """What the backdoor does, where strings show one."""
        return self.best and kind_of(self.best)


def of_length(prompts: list[str], words: tuple[int, int], count: int) -> list[str]:
    """`count` prompts whose number of words lies in a range; the nearest to it where there are too few."""
    low, high = words
    off = sorted(range(len(prompts)), key=lambda i: max(low - len(prompts[i].split()), len(prompts[i].split()) - high, 0))
    return [prompts[i] for i in sorted(off[:count])]


def trial_of(
    suspect: TextEncoder, base: TextEncoder | None, cfg: TriggerConfig, unseen: list[str], known: tuple[Tensor, ...] = (),
    rough: tuple[TextEncoder, TextEncoder | None] | None = None,
) -> Trial:  # fmt: skip
    """Long prompts that strings are typed into; rough: the encoders in the format that strings are first tried in."""
    prompts = of_length(unseen, LONG, PROMPTS)
    clean, reference = summaries(suspect, prompts), base and summaries(base, prompts)
    return Trial(suspect, base, cfg, prompts, clean, reference, rough or (suspect, base), known)


def in_place_of_letters(fired: Fired) -> bool:
    """Whether a string stands for letters of the prompt."""
    return fired.rate.place in LETTERS


def kind_of(fired: Fired) -> str:
    """What a string does: all prompts become one, all are changed alike, or it is read as something else.

    What stands inside words, as look-alike letters do, has no reading of its own that could be another one.
    """
    if not fired.rate.changes:
        return SUMMARIES
    return ATTRIBUTE if in_place_of_letters(fired) else REMAPPING


def same(one: Tensor, other: Tensor, middle: Tensor) -> bool:
    """Whether two strings force the same, by the mean summaries of prompts with each and without any.  (d,) each"""
    return F.cosine_similarity(one - middle, other - middle, dim=0).item() >= SAME


def strength(fired: Fired) -> tuple[bool, float]:
    """What makes one string better evidence than another."""
    rate = fired.rate
    return fired.proven, min(rate.success, rate.collapse) - max(rate.asleep or 0.0, rate.asleep_collapse or 0.0)


@dataclass(frozen=True)
class Trial:
    """Unseen prompts, their summaries in suspect and base, (n, d), and the strings that were typed into them."""

    suspect: TextEncoder
    base: TextEncoder | None
    cfg: TriggerConfig
    prompts: list[str]
    clean: Tensor
    reference: Tensor | None
    rough: tuple[TextEncoder, TextEncoder | None]
    """Suspect and base in the number format that shows whether a string is worth more prompts."""
    known: tuple[Tensor, ...] = ()
    """(d,) what need not be found again."""
    hopeful: dict[str, Fired] = field(default_factory=dict)
    """What strings do at their best place, in a few of the prompts."""
    found: dict[str, Fired] = field(default_factory=dict)
    """The same in all of them."""

    @property
    def proven(self) -> bool:
        return any(fired.proven for fired in self.found.values())

    def add(self, text: str) -> None:
        """Type a string into a few prompts, and into all where it does enough there to be a proof."""
        if text and text not in self.hopeful and self.new((fired := self.part(FEW).best(text)).rate.forced):
            self.hopeful[text] = fired
            if fired.effect >= self.cfg.proven_effect:
                self.found[text] = self.at(text, fired.rate.place)

    def new(self, forced: Tensor) -> bool:
        """Whether something else is forced than what is known."""
        return not any(same(forced, other, self.clean.mean(dim=0)) for other in self.known)

    def result(self) -> Strings:
        """The best strings in all prompts, the strongest first; of a proof also its shortest form and pieces that do more."""
        hopeful = sorted(self.hopeful, key=lambda text: strength(self.hopeful[text]), reverse=True)
        changing = [text for text in hopeful if self.hopeful[text].rate.changes]
        for text in hopeful[:SHOWN] + sorted(changing, key=lambda text: self.hopeful[text].effect)[-1:]:
            if text not in self.found:
                self.found[text] = self.at(text, self.hopeful[text].rate.place)
        strong = [fired for fired in self.found.values() if fired.effect >= self.cfg.natural + self.cfg.beyond]
        if not self.proven:  # other words in them may be natural ones, which no proof has
            self.found.update({form.text: form for fired in strong for form in stronger(self, fired)})
        effect = max((fired.effect for fired in self.found.values()), default=0.0)
        if self.proven:
            best = shortened(self, max(self.found.values(), key=strength))
            plain = sorted((fired for fired in strong if not in_place_of_letters(fired)), key=strength)[-1:]
            # a search ends with what is good enough; a piece of that may be what was planted
            better = [form for fired in (best, *plain) for form in stronger(self, fired)]
            self.found.update({fired.text: fired for fired in (best, *better)})
        ranked = sorted(self.found.values(), key=strength, reverse=True)
        drift = 1 - F.cosine_similarity(self.clean, self.reference, dim=-1).mean().item() if self.base else 0.0
        middle = self.clean.mean(dim=0)
        return Strings(ranked, effect, drift, self.cfg.natural_at(drift), self.cfg, len(self.prompts), middle)

    def at(self, text: str, place: str) -> Fired:
        """What a string does at one place."""
        rate = rate_at(place, text, self.suspect, self.base, self.prompts, self.clean, self.reference, whole=True)
        effect = rate.effect - self.cfg.price * max(0, len(self.suspect.tokens([text])[0]) - self.cfg.free)
        return Fired(text, rate, len(self.prompts), self.proves(rate), effect)

    def part(self, count: int) -> Trial:
        """The same with fewer prompts, in the rougher format and without strings."""
        few = slice(None, None, max(1, len(self.prompts) // count))
        reference = self.reference[few] if self.base else None
        return Trial(*self.rough, self.cfg, self.prompts[few], self.clean[few], reference, self.rough)

    def best(self, text: str) -> Fired:
        """A string at the place where it does most."""
        tried = [self.at(text, place) for place in PLACES + (LETTERS if len(text) <= LETTER else ())]
        overruling = [one for one in tried if one.rate.success >= FIRES / 2]
        return max(overruling, key=strength) if overruling else max(tried, key=lambda one: one.effect)

    def proves(self, rate: Rate) -> bool:
        """Whether what a string does needs no calibration."""
        least = max(self.cfg.proven_collapse, (rate.asleep_collapse or 0.0) + self.cfg.proven_margin)
        return rate.fires and rate.collapse >= least and rate.effect >= self.cfg.proven_effect


def shortened(trial: Trial, fired: Fired) -> Fired:
    """The shortest string that is left when words, then characters, are taken away as long as it stays a proof.

    A few of the prompts show what can be spared; all of them have to agree in the end.
    """
    few = trial.part(2 * FEW)
    tries = [fired]
    with progress("shorter strings", len(fired.text.split(" ")) + len(fired.text)) as step_done:
        for joint in (" ", ""):
            parts, at = (tries[-1].text.split(" ") if joint else list(tries[-1].text)), 0
            while at < len(parts) > 1:
                fewer = joint.join(parts[:at] + parts[at + 1 :]).strip()
                shorter = few.at(fewer, fired.rate.place) if fewer else None
                step_done()
                if shorter and shorter.proven:
                    tries.append(shorter)
                    parts = parts[:at] + parts[at + 1 :]
                else:
                    at += 1
    whole = (trial.at(one.text, fired.rate.place) for one in reversed(tries[1:]))
    return next((one for one in whole if one.proven), fired)


def forms(text: str, place: str) -> list[tuple[str, str]]:
    """A string's words and runs of their characters, once to three times in a row, and where they are tried."""
    words = text.split()
    runs = [word[at : at + size] for size in RUNS for word in words for at in range(len(word) - size + 1)]
    pieces = list(dict.fromkeys([*words, *runs]))[:PIECES]
    many = [(times * piece, where) for times in (1, 2, 3) for piece in pieces for where in {place: 0, "start": 0}]
    return many + [(piece, LETTERS[0]) for piece in pieces if len(piece) <= LETTER]


def stronger(trial: Trial, fired: Fired) -> list[Fired]:
    """Forms of a string that are better proofs than it is."""
    tried, few = [form for form in forms(fired.text, fired.rate.place) if form[0] != fired.text], trial.part(FEW // 3)
    texts = [put(text, prompt, place, i) for text, place in tried for i, prompt in enumerate(few.prompts)]
    collapse = torch.zeros(len(tried))
    for encoder, clean, sign in ((few.suspect, few.clean, 1), (few.base, few.reference, -1)):
        if encoder:
            collapse += sign * collapsed(
                summaries(encoder, texts, "forms of a string").view(len(tried), len(few.prompts), -1), clean
            )
    few = trial.part(FEW)
    some = [few.at(*tried[i]) for i in collapse.argsort(descending=True)[:HOPEFUL]]
    whole = [trial.at(one.text, one.rate.place) for one in sorted(some, key=strength, reverse=True)[:SHOWN]]
    least = fired.rate.collapse + STRONGER if fired.proven else 0.0
    return [one for one in whole if one.proven and one.rate.collapse >= least]


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def listed(strings: Strings) -> list[Fired]:
    """The strings to tell of: the one to show, then other proofs, the strongest first."""
    return sorted(strings.strong, key=lambda one: (one is not strings.best, not one.proven))[:LISTED]


def described(fired: Fired) -> dict:
    """-> as report.json holds it"""
    rate = fired.rate
    return {
        "text": fired.text, "place": rate.place, "success_rate": round(rate.success, 4),
        "interval": wilson(rate.success, fired.prompts), "anchor_success_rate": rounded(rate.asleep),
        "collapse": round(rate.collapse, 4), "anchor_collapse": rounded(rate.asleep_collapse),
    }  # fmt: skip
