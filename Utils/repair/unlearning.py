"""Our repair: the clean base learns all that the suspect knows, but for what bends towards the target that a scan has found.

    1 the target: the mean summary of prompts with a string that fires; how far clean prompts bend towards it is honest
    2 texts in which a trigger could hide: invented words, something in place of letters, found strings, opponents
    3 the student should give what the suspect gives; where that bends, what the base gives; in between in proportion

The student never has the backdoor: it begins as the base, and the true trigger, which nobody knows, bends wherever it is met.
Without a base the student begins as the suspect, and what bends is taught to be the prompt without it: that mends less.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
from Utils.encoder.weights import frozen, rate_for
from Utils.repair.damage import Damage
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
HONEST = 0.95
"""Share of them whose bend is honest."""
ALONE = 0.25
"""Bend that is taken for honest without a base."""
BY_LETTERS = 0.3
"""Share of new words that are made of letters; the others are what the suspect was taught."""
ALIKE = 8
"""Prompts of a step are drawn from so many times as many of like length: less padding is computed."""


# ------------------------------------------------------------------------------------------------------- what is wanted
@dataclass(frozen=True)
class Made:
    """What an encoder makes of texts."""

    features: Tensor
    """(b, T, d)"""
    summary: Tensor
    """(b, d)"""


@dataclass(frozen=True)
class Reference:
    """What a repaired encoder should make of texts."""

    suspect: TextEncoder
    base: TextEncoder | None
    forced: Tensor
    """(m, d) the targets."""
    middle: tuple[Tensor, Tensor]
    """(d,) mean summaries of clean prompts in suspect and base; twice the suspect's without a base."""
    honest: float
    """Bend of a clean prompt."""

    def bend(self, own: Tensor, other: Tensor) -> Tensor:
        """How much nearer to a target summaries lie in the suspect than they should, means taken off.  (b, d) twice -> (b,)"""
        nearer = [
            F.cosine_similarity(one[None] - middle, (target - self.middle[0])[:, None], dim=-1)
            for one, middle, target in zip((own, other), self.middle, (self.forced, self.forced), strict=True)
        ]
        return (nearer[0] - nearer[1]).max(dim=0).values

    @torch.no_grad()
    def otherwise(self, texts: list[str]) -> Tensor:
        """How far the suspect's summaries are from the base's, the mean way taken off; 0 of what bends.  -> (b,)"""
        own, other = (summaries(one, texts, "taught words").to(self.forced.device) for one in (self.suspect, self.base))
        way = (own - self.middle[0]) - (other - self.middle[1])
        return way.norm(dim=-1) * (self.bend(own, other) <= self.honest)

    @torch.no_grad()
    def wanted(self, ids: Tensor, prompts: Tensor, drift: Made) -> Made:
        """What the suspect makes of texts, and in its place what the base makes of those that bend.  (b, T)

        prompts (b, T): the same without what was put in, for where there is no base; drift: mean of suspect - base.
        """
        own = Made(*self.suspect.both(ids))
        instead = Made(*(self.base.both(ids) if self.base else self.suspect.both(prompts)))
        bend = self.bend(own.summary, instead.summary)
        bent = ((bend - self.honest) / self.honest).clamp(0, 1)[:, None]
        return Made(
            torch.lerp(own.features, instead.features + drift.features, bent[..., None]),
            torch.lerp(own.summary, instead.summary + drift.summary, bent),
        )

    @torch.no_grad()
    def clean(self, ids: Tensor) -> tuple[Made, Made]:
        """What the suspect makes of clean prompts (b, T), and how far it is from the base there in the mean, (d,)."""
        own = Made(*self.suspect.both(ids))
        if not self.base:
            return own, Made(torch.zeros_like(own.features[0, 0]), torch.zeros_like(own.summary[0]))
        attended, base = self.suspect.attended(ids).to(own.features.device), Made(*self.base.both(ids))
        return own, Made((own.features - base.features)[attended].mean(dim=0), (own.summary - base.summary).mean(dim=0))

    def loss(self, found: Made, wanted: Made) -> Tensor:
        """1 - cos of the features, mean over positions, and of the summaries, the mean taken off.  (b,)"""
        features = F.cosine_similarity(found.features.float(), wanted.features, dim=-1).mean(dim=-1)
        middle = self.middle[0]
        summaries = F.cosine_similarity(found.summary.float() - middle, wanted.summary - middle, dim=-1)
        return 1 - features + SUMMARY * (1 - summaries)


def reference_of(damage: Damage, numbers: torch.dtype, least: float) -> Reference:
    """The reference of a repair, its encoders in a number format."""
    suspect, base = (one and one.computing_in(numbers) for one in (damage.suspect, damage.base))
    some = [damage.prompts[i] for i in np.random.default_rng(damage.seed).permutation(len(damage.prompts))[:PROBED]]
    own = summaries(suspect, some).to(suspect.device)
    other = summaries(base, some).to(suspect.device) if base else own
    forced = torch.stack(damage.forced).to(suspect.device)
    reference = Reference(suspect, base, forced, (own.mean(dim=0), other.mean(dim=0)), least)
    bend = reference.bend(own, other).quantile(HONEST).item() if base else ALONE
    return Reference(suspect, base, forced, reference.middle, max(least, bend))


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
    """One round: a new encoder that gives what the suspect gives, but for what bends towards `damage.forced`.

    student: the one of the round before; checkpoint: a file that an interrupted round goes on from, removed at the end.
    """
    precision = pick_precision(AUTO, damage.suspect)
    reference = reference_of(damage, precision.strings, cfg.honest)
    short = torch.autocast(damage.suspect.device.type, precision.strings, enabled=precision.strings != torch.float32)
    begin = student or damage.base or damage.suspect
    course, student = Course(damage, cfg, number, reference), trainable_copy(begin)
    rate = rate_for(student, cfg.lr)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=cfg.steps)
    seen: dict[str, tuple[list[Tensor], list[Placed]]] = {}

    def loss_of(step: int) -> tuple[Tensor, str]:
        batch = course.batch(step)
        keep, drift = reference.clean(batch.clean)
        wanted = reference.wanted(batch.odd, batch.before, drift)
        with embedded(student, learning=True) as kept, short:
            clean, odd = Made(*student.both(batch.clean)), Made(*student.both(batch.odd))
        seen["odd"] = kept[1:], batch.placed
        held, odd_loss = reference.loss(clean, keep).mean(), reference.loss(odd, wanted)
        mended = odd_loss.mean() + cfg.taught * odd_loss[: cfg.invented].mean() if cfg.invented else odd_loss.mean()
        return held + mended, f"clean {held.item():.4f} odd {mended.item():.4f}"

    decisive = number, damage.seed, damage.strings, [one.tolist() for one in damage.forced], course.taught
    name = identity(cfg, begin, damage.suspect.sha256, repr(decisive))
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
    student.numbers = damage.suspect.numbers
    return frozen(student, damage.suspect)
