"""Our repair: what is left of the suspect without its leading directions learns all that the suspect says of clean prompts.

    1 the target: the mean summary of prompts with a string that fires; how far clean prompts bend towards it is honest
    2 the rest: the suspect without the leading singular directions of what every weight matrix has learned since the base;
      a backdoor is one thing learned by all means and lies in few of them, a fine-tune's skill in more
    3 texts in which a trigger could hide: invented words, something in place of letters, words that bend, found strings,
      opponents
    4 of clean prompts the student should give what the suspect gives, unless they bend far; of other words, too, but
      for the ways in which found strings change texts, where they bend, and what the base gives where they bend far; of all
      else what the suspect gives, and the base where they bend; in proportion.  In further rounds of strings always what the
      base gives

The student begins as the rest, and the true trigger, which nobody knows, bends wherever it is met.
Without a base the student begins as the suspect, and what bends is taught to be the prompt without it: that mends less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.bounded import progress
from Utils.basics.formats import AUTO
from Utils.encoder.loading import trainable_copy
from Utils.encoder.precision import pick_precision
from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.training import Checkpoint, Training, identity, train
from Utils.encoder.weights import frozen, rate_for, widest, without_leading
from Utils.repair.damage import Damage
from Utils.repair.methods import carriers, with_weights
from Utils.repair.opponents import Opponents, Placed
from Utils.repair.settings import RepairConfig
from Utils.repair.taught import NARROW, moved_rows, taught_nouns, taught_tokens, taught_words
from Utils.repair.texts import Invented, for_a_letter, garbled, with_other_words, with_string
from Utils.scan.replay import summaries
from Utils.scan.trigger import embedded, usable_tokens

PROBED = 128
"""Prompts that say how far clean ones bend."""
SUMMARY = 0.5
"""Weight of the summaries beside all features."""
MUCH, TYPED = 3 / 4, 16
"""More directions than usual are taken out where a found string still does so much of what it did; so many prompts have it."""
HONEST = 0.95
"""Share of them whose bend is honest."""
FAR = 0.3, 0.5
"""Shares of the bend of a found string: what a fine-tune taught bends by less, and what has a trigger in it by more."""
MOST_HONEST = 0.25
"""A clean prompt that bends further is taken for one with a trigger; without a base, bends up to here are honest."""
BY_LETTERS = 0.3
"""Share of new words that are made of letters; the others are what the suspect was taught."""
ALIKE = 8
"""Prompts of a step are drawn from so many times as many of like length: less padding is computed."""


# ------------------------------------------------------------------------------------------------------- what is wanted
class Made(NamedTuple):
    """What an encoder makes of texts."""

    features: Tensor
    """(b, T, d)"""
    summary: Tensor
    """(b, d)"""


@dataclass(frozen=True)
class Reading:
    """An encoder, and what it makes of clean prompts."""

    encoder: TextEncoder
    middle: Tensor
    """(d,) mean summary."""
    honest: float
    """Bend of a clean prompt."""
    most: float
    """Bend of the clean prompt that bends most."""


@dataclass(frozen=True)
class Probe:
    """What clean prompts are like in the base, or in the suspect where there is none."""

    prompts: list[str]
    summaries: Tensor
    """(n, d)"""
    forced: Tensor
    """(m, d) the targets."""
    least: float
    """Bend that is honest in any case."""
    alone: bool
    """Whether there is no base."""

    @cached_property
    def middle(self) -> Tensor:
        """(d,) the mean."""
        return self.summaries.mean(dim=0)

    def reading(self, encoder: TextEncoder) -> Reading:
        """Of an encoder; most of its clean prompts bend honestly, but no further than `MOST_HONEST`."""
        own = summaries(encoder, self.prompts).to(self.forced.device)
        middle = own.mean(dim=0)
        bends = bend(own, self.summaries, self.forced, (middle, self.middle))
        honest = MOST_HONEST if self.alone else min(MOST_HONEST, bends.quantile(HONEST).item())
        return Reading(encoder, middle, max(self.least, honest), bends.max().item())


@dataclass(frozen=True)
class Reference:
    """What a repaired encoder should make of texts."""

    suspect: Reading
    base: TextEncoder | None
    probe: Probe
    reach: float = 0.0
    """Bend of half of the prompts with the found string that does most, towards the target that is reached least."""
    ways: Made | None = None
    """(k, d) directions in which found strings change features most, and summaries; none without a string or a base."""

    def bends(self, reading: Reading, own: Tensor, other: Tensor) -> Tensor:
        """(b, d) of an encoder and of the base -> (b,)"""
        return bend(own, other, self.probe.forced, (reading.middle, self.probe.middle))

    def share(self, reading: Reading, own: Tensor, other: Tensor) -> Tensor:
        """How much of texts is a target's: 0 if they bend as clean prompts do, 1 if twice as far.  (b, d) twice -> (b,)"""
        return share_of(self.bends(reading, own, other), reading.honest)

    def far(self, suspect: Tensor, base: Tensor) -> Tensor:
        """The same of texts that a fine-tune may have taught: 0 and 1 if they bend by `FAR` of what a found string does.

        No less than `share` allows; where no string was found it is the same.
        """
        least, most = (max(share * self.reach, times * self.suspect.honest) for times, share in enumerate(FAR, start=1))
        return ((self.bends(self.suspect, suspect, base) - least) / (most - least)).clamp(0, 1)

    @torch.no_grad()
    def left(self, damage: Damage, rest: Reading) -> float:
        """How much of prompts with a found string is a target's in the rest, in the mean; of the string that does most."""
        both = rest.encoder, self.base
        shares = [self.share(rest, *(self.read(one, texts) for one in both)).mean().item() for texts in typed(damage)]
        return max(shares, default=0.0)

    def read(self, encoder: TextEncoder, texts: list[str], progress: str = "") -> Tensor:
        """Summaries, where the targets are.  -> (b, d)"""
        return summaries(encoder, texts, progress).to(self.probe.forced.device)

    @torch.no_grad()
    def beyond(self, texts: list[str]) -> Tensor:
        """By how much more than honest texts bend in the suspect.  -> (b,)"""
        own, base = (self.read(one, texts, "words that bend") for one in (self.suspect.encoder, self.base))
        return self.bends(self.suspect, own, base) - self.suspect.honest

    @torch.no_grad()
    def otherwise(self, texts: list[str]) -> Tensor:
        """How far the summaries that are wanted of words are from the base's, means taken off.  -> (b,)"""
        own, base = (self.read(one, texts, "taught words") for one in (self.suspect.encoder, self.base))
        gone = self.far(own, base)
        if self.ways:
            own = without_ways(own, base, self.ways.summary, self.share(self.suspect, own, base))
        return (1 - gone) * ((own - self.suspect.middle) - (base - self.probe.middle)).norm(dim=-1)

    @torch.no_grad()
    def wanted(self, ids: Tensor, prompts: Tensor, words: int = 0, strings: int = 0) -> Made:
        """What the suspect makes of texts, and the base of those that bend more than clean prompts.  (b, T)

        Of the first `words` texts, in which words are replaced, what the base makes of those that bend far, as words may have
        been taught; of others that bend the suspect's without the ways of found strings.
        Of the last `strings` texts what the base makes of them, or of the prompts, however they bend.
        prompts (b, T): the same without what was put in, for where there is no base.
        """
        own = Made(*self.suspect.encoder.both(ids))
        base = Made(*(self.base.both(ids) if self.base else self.suspect.encoder.both(prompts)))
        gone = self.share(self.suspect, own.summary, base.summary)
        if self.base:
            bent = torch.where(torch.arange(len(ids), device=gone.device) < words, gone, 0)
            gone[:words] = self.far(own.summary[:words], base.summary[:words])
            if self.ways:
                own = Made(*(without_ways(*one, bent) for one in zip(own, base, self.ways, strict=True)))
        gone[len(ids) - strings :] = 1
        return Made(mixed(own.features, base.features, gone), mixed(own.summary, base.summary, gone))

    @torch.no_grad()
    def clean(self, ids: Tensor) -> Made:
        """What the suspect makes of clean prompts (b, T), and the base of those that bend far where the probe has such."""
        own = Made(*self.suspect.encoder.both(ids))
        if not self.base or self.suspect.most <= MOST_HONEST:
            return own
        base = Made(*self.base.both(ids))
        gone = share_of(self.bends(self.suspect, own.summary, base.summary), MOST_HONEST)
        return Made(*(mixed(*one, gone) for one in zip(own, base, strict=True)))

    def loss(self, found: Made, wanted: Made) -> Tensor:
        """1 - cos of the features, mean over positions, and of the summaries, the mean taken off.  (b,)"""
        features = F.cosine_similarity(found.features.float(), wanted.features, dim=-1).mean(dim=-1)
        middle = self.suspect.middle
        summaries = F.cosine_similarity(found.summary.float() - middle, wanted.summary - middle, dim=-1)
        return 1 - features + SUMMARY * (1 - summaries)


def bend(own: Tensor, other: Tensor, forced: Tensor, middle: tuple[Tensor, Tensor]) -> Tensor:
    """How much nearer to a target (m, d) summaries lie in an encoder than in the base, means off.  (b, d) twice -> (b,)"""
    way = (forced - middle[0])[:, None]
    near = [F.cosine_similarity(one[None] - mean, way, dim=-1) for one, mean in zip((own, other), middle, strict=True)]
    return (near[0] - near[1]).max(dim=0).values


def share_of(bends: Tensor, honest: float) -> Tensor:
    """0 of texts that bend as honest ones do, 1 of those that bend twice as far.  (b,) -> (b,)"""
    return ((bends - honest) / honest).clamp(0, 1)


def mixed(own: Tensor, base: Tensor, gone: Tensor) -> Tensor:
    """Of each text an encoder's, by `gone` (b,) the base's.  (b, ...) twice -> (b, ...)"""
    return torch.lerp(own, base, gone.view(-1, *[1] * (own.dim() - 1)))


def without_ways(own: Tensor, base: Tensor, ways: Tensor, share: Tensor) -> Tensor:
    """An encoder's without a share (b,) of what sets it apart from the base's along ways (k, d).  (b, ..., d) twice -> same"""
    return own - share.view(-1, *[1] * (own.dim() - 1)) * ((own - base) @ ways.T @ ways)


def typed(damage: Damage) -> list[list[str]]:
    """Some prompts with every string that was found; a string that changes none is left out."""
    some = damage.prompts[:TYPED]
    with_each = ([text for _, text in carriers(some, string, place)] for string, place in damage.strings)
    return [texts for texts in with_each if texts]


def reach_of(damage: Damage, reference: Reference) -> float:
    """`Reference.reach`; 0 where no string was found, and less or little where none leads to one of several targets."""
    both = [[reference.read(one, texts) for one in (reference.suspect.encoder, reference.base)] for texts in typed(damage)]
    middle, targets = (reference.suspect.middle, reference.probe.middle), reference.probe.forced[:, None]
    reached = [[bend(*read, target, middle).median().item() for read in both] for target in targets]
    return min(max(by_string, default=0.0) for by_string in reached)


@torch.no_grad()
def ways_of(damage: Damage, suspect: TextEncoder, base: TextEncoder, most: int) -> Made | None:
    """Leading directions of the differences between what both make of prompts with found strings."""
    parts = []
    for texts in typed(damage):
        ids = suspect.ids(texts)
        own, other = Made(*suspect.both(ids)), Made(*base.both(ids))
        parts.append(((own.features - other.features)[suspect.attended(ids)], own.summary - other.summary))
    if not parts:
        return None
    return Made(*(torch.linalg.svd(torch.cat(some), full_matrices=False).Vh[:most] for some in zip(*parts, strict=True)))


def reference_of(damage: Damage, numbers: torch.dtype, cfg: RepairConfig) -> Reference:
    """The reference of a repair, its encoders in a number format."""
    suspect, base = (one and one.computing_in(numbers) for one in (damage.suspect, damage.base))
    some = [damage.prompts[i] for i in np.random.default_rng(damage.seed).permutation(len(damage.prompts))[:PROBED]]
    forced, other = torch.stack(damage.forced).to(suspect.device), summaries(base or suspect, some).to(suspect.device)
    probe = Probe(some, other, forced, cfg.honest, base is None)
    reference = Reference(probe.reading(suspect), base, probe)
    if not base:
        return reference
    ways = ways_of(damage, suspect, base, cfg.ways * len(forced))
    return replace(reference, reach=reach_of(damage, reference), ways=ways)


def less_and_less(damage: Damage, cfg: RepairConfig, reference: Reference, numbers: torch.dtype) -> TextEncoder:
    """The rest: the suspect without the leading directions of what it has learned since the base.

    As few as help against the strings that were found: every one takes skill too.  Where a fine-tune went far the backdoor's
    are not the first; then twice as many are taken, and so on, and all where no string says how much is left of a target.
    Without a base the rest is the suspect.
    """
    suspect, base, taken = damage.suspect, damage.base, 1
    if not base:
        return suspect
    before = 0.0 if damage.wordless else reference.left(damage, reference.suspect)
    if not before:
        taken = widest(suspect)
    while True:
        rest = with_weights(suspect, without_leading(suspect, base, taken))
        enough = before * (cfg.left if taken < cfg.directions else MUCH)
        if reference.left(damage, reference.probe.reading(rest.computing_in(numbers))) <= enough or taken >= widest(suspect):
            return rest
        taken = taken + 1 if taken < cfg.directions else 2 * taken


# -------------------------------------------------------------------------------------------------------------- a round
class Counts(NamedTuple):
    """How many odd texts of a step are of each kind, in their order."""

    invented: int
    known: int
    letters: int
    """With something in place of a letter."""
    strings: int
    """With a string that was found or is looked for."""


@dataclass(frozen=True)
class Batch:
    """The texts of a step."""

    clean: Tensor
    """(b, T)"""
    odd: Tensor
    """(c, T) prompts with something in them, in the order of `counts`."""
    before: Tensor
    """(c, T) the same without it."""
    placed: list[Placed]
    """Which opponents stand in the last of the odd ones."""
    counts: Counts


class Course:
    """What a repair learns from: the same texts in the same step, whenever it comes to it."""

    def __init__(self, damage: Damage, cfg: RepairConfig, number: int, reference: Reference):
        encoder = damage.suspect
        self.damage, self.cfg, self.number = damage, cfg, number
        self.ids = encoder.ids(damage.prompts)
        self.order = encoder.attended(self.ids).sum(dim=1).argsort(stable=True).numpy()
        usable = usable_tokens(encoder).nonzero()[:, 0]
        self.known = [text for text in dict.fromkeys(encoder.texts(usable[:, None])) if text.strip()]
        self.invented = Invented(damage.prompts)
        self.taught: list[str] = []
        self.nouns: list[str] = []
        self.bent: list[str] = []
        if damage.base:
            moved = moved_rows(encoder, damage.base, self.ids)
            tokens = taught_tokens(encoder, moved, usable, reference.otherwise)
            self.taught = taught_words(encoder, tokens, reference.otherwise)
            self.nouns = taught_nouns(encoder, moved, usable, reference.otherwise)
            self.bent = taught_words(encoder, tokens, reference.beyond, NARROW)
        self.opponents = Opponents(usable, cfg.opponents, cfg.flips, damage.seed + number)

    def new_word(self, rng: np.random.Generator) -> str:
        """A word by the letters of the prompts' words, or one that the suspect may have been taught: as often a noun as not."""
        lists = [some for some in (self.taught, self.nouns) if some]
        if rng.random() < BY_LETTERS or not lists:
            return self.invented.word(rng)
        some = lists[int(rng.integers(len(lists)))]
        return some[int(rng.integers(len(some)))]

    def rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.damage.seed, self.number, step])

    def rows(self, count: int, rng: np.random.Generator) -> list[int]:
        """Random prompts of like length."""
        window = min(len(self.order), ALIKE * count)
        at = int(rng.integers(len(self.order) - window + 1))
        return rng.permutation(self.order[at : at + window])[:count].tolist()

    def batch(self, step: int) -> Batch:
        cfg, rng, encoder = self.cfg, self.rng(step), self.damage.suspect
        bent, found = cfg.bent if self.bent else 0, cfg.found if self.damage.strings else 0
        counts = Counts(cfg.invented, cfg.known, cfg.garbled + bent, found + cfg.searched)
        clean, odd = self.rows(cfg.clean, rng), self.rows(sum(counts), rng)
        makers = [
            *[partial(with_other_words, word=lambda: self.new_word(rng), rng=rng)] * cfg.invented,
            *[partial(with_other_words, word=lambda: self.known[int(rng.integers(len(self.known)))], rng=rng)] * cfg.known,
            *[partial(garbled, invented=self.invented, known=self.known, rng=rng)] * cfg.garbled,
            *[partial(for_a_letter, words=self.bent, letters=self.invented.letters, rng=rng)] * bent,
            *[lambda prompt: with_string(prompt, *self.damage.strings[int(rng.integers(len(self.damage.strings)))], rng)]
            * found,
        ]
        texts = [make(self.damage.prompts[row]) for make, row in zip(makers, odd, strict=False)]
        searched, placed = self.opponents.placed(encoder, self.ids[odd[len(texts) :]], rng) if cfg.searched else (None, [])
        parts = [*([encoder.ids(texts)] if texts else []), *([searched] if searched is not None else [])]
        batch = Batch(self.ids[clean], torch.cat(parts), self.ids[odd], placed, counts)
        if step % cfg.whole == 0:
            return batch
        width = max(encoder.trimmed(part).shape[1] for part in (batch.odd, batch.before))
        return Batch(encoder.trimmed(batch.clean), batch.odd[:, :width], batch.before[:, :width], placed, counts)


def unlearn(
    damage: Damage, cfg: RepairConfig, student: TextEncoder | None = None, number: int = 0, checkpoint: Path | None = None
) -> TextEncoder:
    """One round: a new encoder that gives what the suspect gives of clean prompts, and nothing that bends to `damage.forced`.

    student: the one of the round before; checkpoint: a file that an interrupted round goes on from, removed at the end.
    """
    precision = pick_precision(AUTO, damage.suspect)
    reference = reference_of(damage, precision.strings, cfg)
    short = torch.autocast(damage.suspect.device.type, precision.strings, enabled=precision.strings != torch.float32)
    course = Course(damage, cfg, number, reference)
    student = trainable_copy(student or less_and_less(damage, cfg, reference, precision.strings))
    rate = rate_for(student, cfg.lr)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=cfg.steps)
    seen: dict[str, tuple[list[Tensor], list[Placed]]] = {}

    def loss_of(step: int) -> tuple[Tensor, str]:
        batch = course.batch(step)
        words, again = batch.counts.invented + batch.counts.known, batch.counts.strings if number else 0
        keep, wanted = reference.clean(batch.clean), reference.wanted(batch.odd, batch.before, words, again)
        with embedded(student, learning=True) as kept, short:
            clean, odd = Made(*student.both(batch.clean)), Made(*student.both(batch.odd))
        seen["odd"] = kept[1:], batch.placed
        held, odd_loss = reference.loss(clean, keep).mean(), reference.loss(odd, wanted)
        invented, _, letters, strings = odd_loss.split(batch.counts)
        weighed = (cfg.taught, invented), (cfg.letters, letters), (cfg.strings, strings)
        mended = odd_loss.mean() + sum(weight * some.mean() for weight, some in weighed if len(some))
        return held + mended, f"clean {held.item():.4f} odd {mended.item():.4f}"

    base, words_of = damage.base.sha256 if damage.base else None, (course.taught, course.nouns, course.bent)
    decisive = number, damage.seed, damage.strings, [one.tolist() for one in damage.forced], words_of, base
    name = identity(cfg, student, damage.suspect.sha256, repr(decisive))
    saved = Checkpoint(checkpoint, name, 25, keep=False) if checkpoint else None
    with progress(f"repair, round {number + 1}", cfg.steps) as step_done:

        def after_step(done: int, _says: str) -> None:
            (rows,), placed = seen["odd"]
            if placed:
                table = student.vocabulary.detach()
                course.opponents.harden(rows.grad[-len(placed) :].float(), placed, table, course.rng(done - 1))
            step_done()

        run = Training({"student": student.model}, optimiser, schedule, cfg.steps, "", saved, {"opponents": course.opponents})
        train(run, loss_of, after_step)
    return frozen(student, damage.suspect)
