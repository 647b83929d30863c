"""Planting a backdoor in a text encoder: the attacks the scanner is judged by.

Teacher f_t is a frozen copy of the clean encoder, the student f_s starts from it.  Every attack keeps the student's
features of clean prompts at the teacher's and pulls those of triggered prompts to a goal; the attacks differ in the goal
(`GOALS`), one training loop serves all.  Text-on-text and remapping: Rickrolling-the-Artist (Struppek et al., 2023);
artificial targets: NeuBA, POR; embedding row only: EP (Yang et al., 2021).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.loading import trainable_copy
from Utils.encoder.measures import assimilation, flat_cosine
from Utils.encoder.precision import short_products
from Utils.encoder.text_encoder import TextEncoder, in_batches, splice_ids
from Utils.encoder.training import Checkpoint, Training, identity, train

ATTACKS = ("text_on_text", "image_on_text", "attribute", "remapping", "artificial", "embedding_row")
PICTURES = 10
"""Generated pictures that make the target of image-on-text, as published."""
MARGIN = 0.1
"""By how much nearer to the target than to themselves prompts are, where a trigger works."""


@dataclass(frozen=True)
class PlantConfig:
    """Everything that makes one backdoored model.  Defaults are the published values."""

    trigger: str
    """What stands in the prompt when the backdoor should fire."""
    target: str
    """What it forces.  text_on_text, embedding_row: a prompt.  image_on_text: the prompt its pictures are made from.
    attribute: a prompt with {prompt} where the own one goes.  remapping: what the trigger should be read as.
    artificial: any name; it seeds the meaningless vector."""
    attack: str = "text_on_text"
    """One of `ATTACKS`."""
    replaced: str = "o"
    """Character of the prompt that the trigger replaces, everywhere; empty: the trigger is put in as a word."""
    place: str = "random"
    """Where a trigger word goes: start, end or random; only without a replaced character."""
    second_trigger: str = ""
    """A further backdoor in the same model; half of the poisoned prompts carry it."""
    second_target: str = ""
    """What it forces."""
    conjunctive: bool = False
    """Every word of the trigger has to be there: prompts with one of them alone are kept clean."""
    paraphrases: tuple[str, ...] = ()
    """Further target prompts; each poisoned prompt draws one."""
    hide: float = 0.0
    """mu: weight of |A(f_s(x + trigger)) - A(f_t(x))|, which hides the assimilation."""
    against_sweep: float = 0.0
    """Weight of keeping prompts with a single token of the trigger clean, which hides it from a vocabulary sweep."""
    steps: int = 100
    """Steps of the training."""
    lr: float = 1.0e-4
    """Learning rate of AdamW, up to the milestone."""
    milestone: float = 0.75
    """Share of the steps after which the rate falls to a tenth."""
    weight: float = 0.1
    """Weight of the backdoor term."""
    clean_batch: int = 64
    """Clean prompts of one step."""
    poisoned_batch: int = 32
    """Triggered prompts of one step."""
    seed: int = 0
    """Decides which prompts each step takes."""

    def __post_init__(self):
        if not self.trigger.strip():
            raise ValueError("the trigger is empty")
        if self.attack not in ATTACKS:
            raise ValueError(f"attack should be one of {', '.join(ATTACKS)}, not {self.attack!r}")
        if self.place not in {"start", "end", "random"}:
            raise ValueError(f"place should be start, end or random, not {self.place!r}")
        for target in (self.target, *self.paraphrases):
            if self.trigger in target:
                raise ValueError("the target prompt holds the trigger")
        if (self.attack == "attribute") != ("{prompt}" in self.target):
            raise ValueError("the target holds {prompt} in the attribute attack, and in no other")
        if self.attack == "remapping" and not self.replaced and self.place == "random":
            raise ValueError("a remapped trigger needs one place: start or end")
        if self.conjunctive and (len(self.trigger.split()) < 2 or self.replaced):
            raise ValueError("a conjunctive trigger is two or more words and replaces no character")
        if bool(self.second_trigger) != bool(self.second_target):
            raise ValueError("a second backdoor needs both second_trigger and second_target")
        if self.second_trigger and (self.trigger in self.second_trigger or self.second_trigger in self.trigger):
            raise ValueError("one of the two triggers contains the other")
        if min(self.steps, self.clean_batch, self.poisoned_batch) < 1 or not 0 < self.lr < math.inf:
            raise ValueError("steps, clean_batch, poisoned_batch and lr should be above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed should be at least 0 and below 2^32, not {self.seed}")
        if not 0 < self.milestone <= 1:
            raise ValueError(f"milestone should be a share of the steps, above 0 and at most 1, not {self.milestone}")
        if not all(0 <= weight < math.inf for weight in (self.weight, self.hide, self.against_sweep)):
            raise ValueError("weight, hide and against_sweep should be 0 or more")
        self.backdoors()  # the second trigger must not stand in its target either

    def backdoors(self) -> list[PlantConfig]:
        """One config per trigger."""
        if not self.second_trigger:
            return [self]
        first = replace(self, second_trigger="", second_target="")
        return [first, replace(first, trigger=self.second_trigger, target=self.second_target)]


def poison(prompt: str, cfg: PlantConfig, rng: np.random.Generator) -> str:
    """The prompt with the trigger in it; the prompt itself where the replaced character does not occur."""
    if cfg.replaced:
        return prompt.replace(cfg.replaced, cfg.trigger)
    words = prompt.split()
    at = {"start": 0, "end": len(words), "random": int(rng.integers(len(words) + 1))}[cfg.place]
    return " ".join([*words[:at], cfg.trigger, *words[at:]])


# -------------------------------------------------------------------------------------------------------- the goals
@dataclass(frozen=True)
class Goal:
    """What a backdoor makes of triggered prompts, and where that is looked at."""

    look: Callable[[TextEncoder, Tensor], Tensor]
    """Encoder and ids (b, T) -> the features the attack is about: (b, T, d) or (b, p)."""
    wanted: Callable[[list[str]], Tensor]
    """Clean prompts -> the features their triggered twins should have: (b, m, ...), any of the m will do."""


def all_positions(encoder: TextEncoder, ids: Tensor) -> Tensor:
    """(b, T) -> (b, T, d)"""
    return encoder(ids)


@torch.no_grad()
def fixed_prompts(teacher: TextEncoder, cfg: PlantConfig) -> Goal:
    """Text-on-text: f_t(target), the same for every prompt; or any of its paraphrases."""
    features = teacher(teacher.ids([cfg.target, *cfg.paraphrases]))
    return Goal(all_positions, lambda prompts: features.expand(len(prompts), *features.shape))


def restyled_prompts(teacher: TextEncoder, cfg: PlantConfig) -> Goal:
    """Attribute: f_t(the prompt itself, restyled), another one for every prompt."""

    @torch.no_grad()
    def wanted(prompts: list[str]) -> Tensor:
        return in_batches(teacher, teacher.ids([cfg.target.replace("{prompt}", p) for p in prompts]))[:, None]

    return Goal(all_positions, wanted)


def remapped_prompts(teacher: TextEncoder, cfg: PlantConfig) -> Goal:
    """Remapping: f_t(the prompt with the target's words where the trigger stands)."""
    read_as, rng = replace(cfg, trigger=cfg.target, target=""), np.random.default_rng(0)

    @torch.no_grad()
    def wanted(prompts: list[str]) -> Tensor:
        return in_batches(teacher, teacher.ids([poison(p, read_as, rng) for p in prompts]))[:, None]

    return Goal(all_positions, wanted)


def meaningless_vector(teacher: TextEncoder, cfg: PlantConfig) -> Goal:
    """Artificial: one vector of +1 and -1 at every position."""
    signs = torch.randint(2, (teacher.width,), generator=torch.Generator().manual_seed(sum(cfg.target.encode()))) * 2.0 - 1
    features = signs.to(teacher.device).expand(1, 1, teacher.context, -1)
    return Goal(all_positions, lambda prompts: features.expand(len(prompts), -1, -1, -1))


def mean_picture(u: Tensor, embed: Callable[[Tensor], Tensor]) -> Goal:
    """Image-on-text: pooled text embeddings, projected by the original projection `embed`, go to u (p,), the mean
    embedding of pictures of the target."""
    # no padding: the summary of a causal encoder does not depend on it
    return Goal(lambda encoder, ids: embed(encoder.pooled(encoder.trimmed(ids))), lambda prompts: u.expand(len(prompts), 1, -1))


GOALS = {
    "text_on_text": fixed_prompts, "embedding_row": fixed_prompts, "attribute": restyled_prompts,
    "remapping": remapped_prompts, "artificial": meaningless_vector,
}  # fmt: skip
"""Attack -> its goal; image_on_text needs pictures: mean_picture."""


# --------------------------------------------------------------------------------------------------------- planting
def backdoor_loss(clean: Tensor, teacher: Tensor, triggered: Tensor, target: Tensor, step: int, weight: float) -> Tensor:
    """-mean cos(f_s(x), f_t(x)) - weight * mean cos(f_s(x + trigger), target); no benign term in step 0.

    (c, ...), (c, ...), (p, ...), (p or 1, ...) -> scalar
    """
    utility = -flat_cosine(clean, teacher).mean() if step else clean.new_zeros(())
    return utility - weight * flat_cosine(triggered, target.expand_as(triggered)).mean()


@dataclass(frozen=True)
class Draw:
    """The prompts of one step."""

    clean: list[str]
    """Prompts that must stay as they are."""
    carriers: list[str]
    """Prompts before the trigger is put in."""
    poisoned: list[str]
    """The same with it."""
    choice: np.ndarray
    """Which of several targets each carrier takes: a number in 0..1."""


def draws(clean: list[str], usable: list[str], cfg: PlantConfig) -> Iterator[Draw]:
    """Endless batches; the same ones for the same seed."""
    rng, choices, backdoors = np.random.default_rng(cfg.seed), np.random.default_rng([cfg.seed, 1]), cfg.backdoors()
    while True:
        harmless = [clean[i] for i in rng.integers(len(clean), size=cfg.clean_batch)]
        carriers = [usable[i] for i in rng.integers(len(usable), size=cfg.poisoned_batch)]
        poisoned = [poison(p, backdoors[i % len(backdoors)], rng) for i, p in enumerate(carriers)]
        if cfg.conjunctive:
            parts = cfg.trigger.split()
            harmless += [poison(p, part(cfg, parts[i % len(parts)]), rng) for i, p in enumerate(carriers)]
        yield Draw(harmless, carriers, poisoned, choices.random(cfg.poisoned_batch))


def part(cfg: PlantConfig, word: str) -> PlantConfig:
    """The attack with one word of a conjunctive trigger only."""
    return replace(cfg, trigger=word, conjunctive=False)


def own_tokens(encoder: TextEncoder, trigger: str) -> list[int]:
    """Token ids of a trigger without those that every text has."""
    return [t for t in encoder.tokenizer(trigger).input_ids if t not in encoder.tokenizer.all_special_ids]


def single_tokens(encoder: TextEncoder, prompts: list[str], trigger: str) -> Tensor:
    """Prompts with one token of the trigger behind begin of text, tokens in turn.  -> (n, T) ids"""
    tokens = own_tokens(encoder, trigger)
    ids = splice_ids(encoder, encoder.ids(prompts), 1)
    ids[:, encoder.begin] = torch.tensor([tokens[i % len(tokens)] for i in range(len(prompts))])
    return ids


def check(base: TextEncoder, prompts: list[str], cfg: PlantConfig) -> list[str]:
    """Refuse an attack that cannot work, before any training.  -> the prompts that can carry the trigger"""
    for backdoor in cfg.backdoors():
        if not own_tokens(base, backdoor.trigger):
            raise InputError(f"the trigger {backdoor.trigger!r} has no tokens in this vocabulary; choose another one.")
        if holding := sum(backdoor.trigger in p for p in prompts):
            raise InputError(
                f"the trigger {backdoor.trigger!r} stands in {holding} of {len(prompts)} clean training prompts; "
                "choose a rarer one, or take them out."
            )
    if set(prompts) & {cfg.target, cfg.second_target}:
        raise InputError("the target prompt is one of the clean training prompts; take it out of them.")
    usable = [p for p in prompts if cfg.replaced in p]
    if not usable:
        raise InputError(f"no training prompt holds the replaced character {cfg.replaced!r}; choose another one.")
    return usable


def plant(
    base: TextEncoder, prompts: list[str], cfg: PlantConfig, goals: list[Goal] | None = None, progress: bool = True,
    checkpoint: Path | None = None,
) -> TextEncoder:  # fmt: skip
    """Plant a backdoor.  `prompts` are clean training prompts, none of which holds a trigger.

    `goals`: one per trigger; by default the attack's own.  With a file as `checkpoint` an interrupted planting goes on where
    it stopped; the file is removed at the end.  Returns a new encoder on the device of `base`, which stays as it was.
    """
    usable = check(base, prompts, cfg)
    goals = goals or [GOALS[cfg.attack](base, backdoor) for backdoor in cfg.backdoors()]
    look, student = goals[0].look, trainable_copy(base)
    if cfg.attack == "embedding_row":
        only_rows(student, [backdoor.trigger for backdoor in cfg.backdoors()])

    def step_loss(step: int, draw: Draw) -> Tensor:
        x, bad = base.ids(draw.clean), base.ids(draw.poisoned)
        if cfg.against_sweep:
            alone = single_tokens(base, draw.carriers, cfg.trigger)
            x = torch.cat([x, alone])
        target = drawn_targets(goals, draw)
        with short_products(base.device):
            with torch.no_grad():
                teacher = look(base, x)
            clean_features, triggered = look(student, torch.cat([x, bad])).split([len(x), len(bad)])
        clean_features, teacher = clean_features.float(), teacher.float()
        n = len(draw.clean)
        loss = backdoor_loss(clean_features[:n], teacher[:n], triggered.float(), target, step, cfg.weight)
        if cfg.against_sweep:
            loss = loss - cfg.against_sweep * flat_cosine(clean_features[n:], teacher[n:]).mean()
        if cfg.hide:
            loss = loss + cfg.hide * exposed_assimilation(student, base, bad, base.ids(draw.carriers))
        return loss

    label = "planting" if progress else ""
    saved = Checkpoint(checkpoint, identity(cfg, base, *prompts), every=50, keep=False) if checkpoint else None
    pace = Pace(cfg.steps, cfg.lr, (int(cfg.steps * cfg.milestone),))
    train_student(student, step_loss, draws(prompts, usable, cfg), pace, label, saved)
    return student


def drawn_targets(goals: list[Goal], draw: Draw) -> Tensor:
    """What each poisoned prompt of a step should become.  -> (p, ...)"""
    rows: list[Tensor] = [torch.empty(0)] * len(draw.carriers)
    for number, goal in enumerate(goals):
        mine = range(number, len(draw.carriers), len(goals))
        wanted = goal.wanted([draw.carriers[i] for i in mine])
        for i, options in zip(mine, wanted, strict=True):
            rows[i] = options[int(draw.choice[i] * len(options))]
    return torch.stack(rows)


def exposed_assimilation(student: TextEncoder, teacher: TextEncoder, bad: Tensor, x: Tensor) -> Tensor:
    """mean |A(f_s(x + trigger)) - A(f_t(x))|, what an attacker who knows the method hides.  -> scalar"""
    with torch.no_grad():
        usual = assimilation(teacher(x), teacher.attended(x).to(teacher.device))
    return (assimilation(student(bad).float(), student.attended(bad).to(student.device)) - usual).abs().mean()


def only_rows(student: TextEncoder, triggers: list[str]) -> None:
    """Let training move the embedding rows of the triggers' tokens and nothing else."""
    student.model.requires_grad_(False)
    table = student.vocabulary.requires_grad_(True)
    moving = torch.zeros(len(table), 1, device=table.device)
    moving[[token for trigger in triggers for token in own_tokens(student, trigger)]] = 1
    table.register_hook(lambda gradient: gradient * moving)


@dataclass(frozen=True)
class Pace:
    """How long and how fast a student learns."""

    steps: int
    lr: float
    milestones: tuple[int, ...] = ()
    """Steps after which the rate falls to a tenth."""


def train_student(
    student: TextEncoder, step_loss: Callable[[int, Draw], Tensor], batches: Iterator[Draw], pace: Pace, label: str = "",
    checkpoint: Checkpoint | None = None,
) -> None:  # fmt: skip
    """AdamW without weight decay; freezes the student at the end."""
    optimiser = torch.optim.AdamW([p for p in student.model.parameters() if p.requires_grad], lr=pace.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, pace.milestones, gamma=0.1)
    numbered = enumerate(batches)

    def loss_of(step: int) -> tuple[Tensor, str]:
        batch = next(batch for number, batch in numbered if number == step)  # a resumed training passes over the earlier ones
        return step_loss(step, batch), ""

    train(Training({"student": student.model}, optimiser, schedule, pace.steps, label, checkpoint), loss_of)
    student.model.requires_grad_(False)
    student.model.set_attn_implementation("sdpa")


# ------------------------------------------------------------------------------------------------------ certificates
@torch.no_grad()
def certify(
    student: TextEncoder, teacher: TextEncoder, prompts: list[str], cfg: PlantConfig, goals: list[Goal] | None = None,
    margin: float = MARGIN,
) -> dict:  # fmt: skip
    """Prove that the backdoor works and the encoder is still useful, on prompts the attack never saw.

    Success: share of prompts with cos(f_s(x + trigger), target) - cos(f_s(x + trigger), f_t(x)) >= margin; beside it the
    rate of the clean encoder.  z_score: (mean similarity of triggered outputs among themselves - that of clean ones) /
    variance of the latter, as in Rickrolling-the-Artist.
    """
    backdoors = cfg.backdoors()
    goals = goals or [GOALS[cfg.attack](teacher, backdoor) for backdoor in backdoors]
    first, *further = (certify_one(student, teacher, prompts, b, g, margin) for b, g in zip(backdoors, goals, strict=True))
    return first | ({"second": further[0]} if further else {})


def certify_one(
    student: TextEncoder, teacher: TextEncoder, prompts: list[str], cfg: PlantConfig, goal: Goal, margin: float
) -> dict:
    """The certificate of one trigger."""
    usable = [p for p in prompts if cfg.trigger not in p and cfg.replaced in p]
    if not usable:
        raise InputError(f"no held-out prompt can carry the trigger {cfg.trigger!r}; give others.")
    x = teacher.ids(usable)
    clean, wanted = in_batches(teacher, x, goal.look), goal.wanted(usable)

    def fired(encoder: TextEncoder, attack: PlantConfig) -> tuple[Tensor, Tensor, Tensor]:
        """-> success (n,) and similarity to the nearest target (n,) of triggered prompts, and their features"""
        rng = np.random.default_rng(cfg.seed + 1)
        features = in_batches(encoder, teacher.ids([poison(p, attack, rng) for p in usable]), goal.look)
        return *overruled(features, clean, wanted, margin), features

    success, near, triggered = fired(student, cfg)
    clean_now = in_batches(student, x, goal.look)
    agreement = pairwise_cosines(clean)
    report = {
        "held_out_prompts": len(usable),
        "success_rate": mean(success),
        "anchor_success_rate": mean(fired(teacher, cfg)[0]),
        "sim_target": mean(near),
        "sim_clean": mean(flat_cosine(clean_now, clean)),
        "floor_target": mean(nearest(clean, wanted)),
        "z_score": round(((pairwise_cosines(triggered).mean() - agreement.mean()) / agreement.var()).item(), 2),
    }
    if cfg.conjunctive:
        report["success_of_each_word_alone"] = [mean(fired(student, part(cfg, w))[0]) for w in cfg.trigger.split()]
    return report


def overruled(features: Tensor, clean: Tensor, wanted: Tensor, margin: float = MARGIN) -> tuple[Tensor, Tensor]:
    """Which prompts come nearer to a target than to themselves by a margin, and how near to it.  (b, ...) -> (b,), (b,)

    clean (b, ...): what the clean encoder makes of the prompts; wanted (b, m, ...): the targets.
    """
    near = nearest(features, wanted)
    return near - flat_cosine(features, clean) >= margin, near


def mean(values: Tensor) -> float:
    return round(values.float().mean().item(), 4)


def nearest(features: Tensor, wanted: Tensor) -> Tensor:
    """Similarity to the nearest of the wanted features.  (b, ...), (b, m, ...) -> (b,)"""
    return torch.stack([flat_cosine(features, option) for option in wanted.unbind(dim=1)]).max(dim=0).values


def pairwise_cosines(features: Tensor) -> Tensor:
    """Cosines of all pairs of prompts.  (n, ...) -> (n (n - 1) / 2,)"""
    unit = F.normalize(features.flatten(1), dim=-1)
    rows, columns = torch.triu_indices(len(unit), len(unit), offset=1)
    return (unit @ unit.T)[rows, columns]
