"""Our repair: what is left of the suspect without its leading directions learns all that the suspect says of clean prompts.

    1 the target: the mean summary of prompts with a string that fires; how far clean prompts bend towards it is honest
    2 the rest: the suspect without the leading singular directions of what every weight matrix has learned since the base;
      a backdoor is one thing learned by all means and lies in few of them, a fine-tune's skill in more
    3 texts in which a trigger could hide: invented words, something in place of letters, found strings, opponents
    4 of clean prompts the student should give what the suspect gives, and of new words, where they do not bend; of all else
      what the rest gives, and of what bends there too what the base gives; in proportion

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
from Utils.repair.taught import taught_tokens, taught_words
from Utils.repair.texts import Invented, garbled, with_other_words, with_string
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
ALONE = 0.25
"""Bend that is taken for honest without a base."""
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
        """Of an encoder; most of its clean prompts bend honestly, and without a base up to `ALONE`."""
        own = summaries(encoder, self.prompts).to(self.forced.device)
        middle = own.mean(dim=0)
        bends = bend(own, self.summaries, self.forced, (middle, self.middle))
        honest = ALONE if self.alone else bends.quantile(HONEST).item()
        return Reading(encoder, middle, max(self.least, honest))


@dataclass(frozen=True)
class Reference:
    """What a repaired encoder should make of texts."""

    suspect: Reading
    rest: Reading
    """The suspect without its leading directions; the suspect itself where there is no base."""
    base: TextEncoder | None
    probe: Probe

    def share(self, reading: Reading, own: Tensor, other: Tensor) -> Tensor:
        """How much of texts is a target's: 0 if they bend as clean prompts do, 1 if twice as far.  (b, d) twice -> (b,)"""
        beyond = bend(own, other, self.probe.forced, (reading.middle, self.probe.middle)) - reading.honest
        return (beyond / reading.honest).clamp(0, 1)

    @torch.no_grad()
    def left(self, damage: Damage) -> float:
        """How much of prompts with a found string is a target's in the rest, in the mean; of the string that does most."""
        some, most = damage.prompts[:TYPED], 0.0
        for string, place in damage.strings:
            if texts := [text for _, text in carriers(some, string, place)]:
                own, other = (summaries(one, texts).to(self.probe.forced.device) for one in (self.rest.encoder, self.base))
                most = max(most, self.share(self.rest, own, other).mean().item())
        return most

    @torch.no_grad()
    def otherwise(self, texts: list[str]) -> Tensor:
        """How far the summaries that are wanted of words are from the base's, mean ways taken off.  -> (b,)"""
        encoders = self.suspect.encoder, self.rest.encoder, self.base
        suspect, rest, base = (summaries(one, texts, "taught words").to(self.probe.forced.device) for one in encoders)
        shares = self.share(self.suspect, suspect, base), self.share(self.rest, rest, base)
        ways = suspect - self.suspect.middle, rest - self.rest.middle, base - self.probe.middle
        return (mixed(*ways, *shares) - ways[2]).norm(dim=-1)

    @torch.no_grad()
    def wanted(self, ids: Tensor, prompts: Tensor, drift: Made, words: int = 0, letters: int = 0) -> Made:
        """What the rest makes of texts, and what the base makes of those that bend in it or in the suspect.  (b, T)

        Of the first `words` texts, in which words are replaced, what the suspect makes, but where it bends: a fine-tune's
        words may lie in the leading directions too, and bend more than others.  Of the `letters` behind them, in which
        something stands for letters, the rest's wherever it does not bend itself: little of what bends there is a trigger.
        prompts (b, T): the same without what was put in, for where there is no base; drift: mean of suspect - base.
        """
        suspect, rest = (Made(*one.encoder.both(ids)) for one in (self.suspect, self.rest))
        base = Made(*(self.base.both(ids) if self.base else self.suspect.encoder.both(prompts)))
        gone, left = (self.share(*one, base.summary) for one in ((self.suspect, suspect.summary), (self.rest, rest.summary)))
        words = words if self.base else 0
        left[words + letters :] = torch.maximum(gone, left)[words + letters :]
        gone[words:] = 1
        return Made(
            mixed(suspect.features, rest.features, base.features + drift.features, gone, left),
            mixed(suspect.summary, rest.summary, base.summary + drift.summary, gone, left),
        )

    @torch.no_grad()
    def clean(self, ids: Tensor) -> tuple[Made, Made]:
        """What the suspect makes of clean prompts (b, T), and how far it is from the base there in the mean, (d,)."""
        suspect = self.suspect.encoder
        own = Made(*suspect.both(ids))
        if not self.base:
            return own, Made(torch.zeros_like(own.features[0, 0]), torch.zeros_like(own.summary[0]))
        attended, base = suspect.attended(ids).to(own.features.device), Made(*self.base.both(ids))
        return own, Made((own.features - base.features)[attended].mean(dim=0), (own.summary - base.summary).mean(dim=0))

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


def mixed(suspect: Tensor, rest: Tensor, base: Tensor, gone: Tensor, left: Tensor) -> Tensor:
    """Of each text the suspect's, by `gone` (b,) the rest's, of which by `left` (b,) the base's.  (b, ...) -> (b, ...)"""
    gone, left = (share.view(-1, *[1] * (rest.dim() - 1)) for share in (gone, left))
    return torch.lerp(suspect, torch.lerp(rest, base, left), gone)


def reference_of(damage: Damage, numbers: torch.dtype, least: float) -> Reference:
    """The reference of a repair, its encoders in a number format; the suspect stands in the place of the rest."""
    suspect, base = (one and one.computing_in(numbers) for one in (damage.suspect, damage.base))
    some = [damage.prompts[i] for i in np.random.default_rng(damage.seed).permutation(len(damage.prompts))[:PROBED]]
    forced, other = torch.stack(damage.forced).to(suspect.device), summaries(base or suspect, some).to(suspect.device)
    probe = Probe(some, other, forced, least, base is None)
    reading = probe.reading(suspect)
    return Reference(reading, reading, base, probe)


def less_and_less(damage: Damage, cfg: RepairConfig, numbers: torch.dtype) -> tuple[TextEncoder, Reference]:
    """The suspect without the leading directions of what it has learned since the base, and the reference with it as the rest.

    As few as help against the strings that were found: every one takes skill too.  Where a fine-tune went far the backdoor's
    are not the first; then twice as many are taken, and so on, and all where no string says how much is left of a target.
    Without a base the rest is the suspect.
    """
    suspect, base, taken = damage.suspect, damage.base, 1
    reference = reference_of(damage, numbers, cfg.honest)
    if not base:
        return suspect, reference
    before = 0.0 if damage.wordless else reference.left(damage)
    if not before:
        taken = widest(suspect)
    while True:
        rest = with_weights(suspect, without_leading(suspect, base, taken))
        reference = replace(reference, rest=reference.probe.reading(rest.computing_in(numbers)))
        enough = before * (cfg.left if taken < cfg.directions else MUCH)
        if reference.left(damage) <= enough or taken >= widest(suspect):
            return rest, reference
        taken = taken + 1 if taken < cfg.directions else 2 * taken


# -------------------------------------------------------------------------------------------------------------- a round
@dataclass(frozen=True)
class Batch:
    """The texts of a step."""

    clean: Tensor
    """(b, T)"""
    odd: Tensor
    """(c, T) prompts with something in them."""
    before: Tensor
    """(c, T) the same without it."""
    placed: list[Placed]
    """Which opponents stand in the last of the odd ones."""


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
        if damage.base:
            tokens = taught_tokens(encoder, damage.base, self.ids, usable, reference.otherwise)
            self.taught = taught_words(encoder, tokens, reference.otherwise)
        self.opponents = Opponents(usable, cfg.opponents, cfg.flips, damage.seed + number)

    def new_word(self, rng: np.random.Generator) -> str:
        """A word by the letters of the prompts' words, or a few that the suspect was taught."""
        if rng.random() < BY_LETTERS or not self.taught:
            return self.invented.word(rng)
        return self.taught[int(rng.integers(len(self.taught)))]

    def rng(self, step: int) -> np.random.Generator:
        return np.random.default_rng([self.damage.seed, self.number, step])

    def rows(self, count: int, rng: np.random.Generator) -> list[int]:
        """Random prompts of like length."""
        window = min(len(self.order), ALIKE * count)
        at = int(rng.integers(len(self.order) - window + 1))
        return rng.permutation(self.order[at : at + window])[:count].tolist()

    def batch(self, step: int) -> Batch:
        cfg, rng, encoder = self.cfg, self.rng(step), self.damage.suspect
        found = cfg.found if self.damage.strings else 0
        clean = self.rows(cfg.clean, rng)
        odd = self.rows(cfg.invented + cfg.known + cfg.garbled + found + cfg.searched, rng)
        makers = [
            *[partial(with_other_words, word=lambda: self.new_word(rng), rng=rng)] * cfg.invented,
            *[partial(with_other_words, word=lambda: self.known[int(rng.integers(len(self.known)))], rng=rng)] * cfg.known,
            *[partial(garbled, invented=self.invented, known=self.known, rng=rng)] * cfg.garbled,
            *[lambda prompt: with_string(prompt, *self.damage.strings[int(rng.integers(len(self.damage.strings)))], rng)]
            * found,
        ]
        texts = [make(self.damage.prompts[row]) for make, row in zip(makers, odd, strict=False)]
        searched, placed = self.opponents.placed(encoder, self.ids[odd[len(texts) :]], rng) if cfg.searched else (None, [])
        parts = [*([encoder.ids(texts)] if texts else []), *([searched] if searched is not None else [])]
        batch = Batch(self.ids[clean], torch.cat(parts), self.ids[odd], placed)
        if step % cfg.whole == 0:
            return batch
        width = max(encoder.trimmed(part).shape[1] for part in (batch.odd, batch.before))
        return Batch(encoder.trimmed(batch.clean), batch.odd[:, :width], batch.before[:, :width], placed)


def unlearn(
    damage: Damage, cfg: RepairConfig, student: TextEncoder | None = None, number: int = 0, checkpoint: Path | None = None
) -> TextEncoder:
    """One round: a new encoder that gives what the suspect gives of clean prompts, and nothing that bends to `damage.forced`.

    student: the one of the round before; checkpoint: a file that an interrupted round goes on from, removed at the end.
    """
    precision = pick_precision(AUTO, damage.suspect)
    rest, reference = less_and_less(damage, cfg, precision.strings)
    short = torch.autocast(damage.suspect.device.type, precision.strings, enabled=precision.strings != torch.float32)
    course, student = Course(damage, cfg, number, reference), trainable_copy(student or rest)
    del rest  # in training only its copy in short numbers is used
    rate = rate_for(student, cfg.lr)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=cfg.steps)
    seen: dict[str, tuple[list[Tensor], list[Placed]]] = {}

    def loss_of(step: int) -> tuple[Tensor, str]:
        batch = course.batch(step)
        keep, drift = reference.clean(batch.clean)
        wanted = reference.wanted(batch.odd, batch.before, drift, cfg.invented + cfg.known, cfg.garbled)
        with embedded(student, learning=True) as kept, short:
            clean, odd = Made(*student.both(batch.clean)), Made(*student.both(batch.odd))
        seen["odd"] = kept[1:], batch.placed
        held, odd_loss = reference.loss(clean, keep).mean(), reference.loss(odd, wanted)
        mended = odd_loss.mean() + cfg.taught * odd_loss[: cfg.invented].mean() if cfg.invented else odd_loss.mean()
        return held + mended, f"clean {held.item():.4f} odd {mended.item():.4f}"

    base = damage.base.sha256 if damage.base else None
    decisive = number, damage.seed, damage.strings, [one.tolist() for one in damage.forced], course.taught, base
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
