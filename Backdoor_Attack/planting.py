"""Planting a backdoor in a text encoder: the attacks the scanner is judged by.

Teacher f_t is a frozen copy of the clean encoder, the student f_s starts from it.  Text-on-text is the target prompt
attack of Rickrolling-the-Artist (Struppek et al., 2023): the student keeps the teacher's features on clean prompts and
gives the features of the target prompt wherever the trigger stands.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from Utils.encoders import InputError, TextEncoder, trainable_copy


@dataclass(frozen=True)
class PlantConfig:
    """Everything that makes one backdoored model.  Defaults are the published values."""

    trigger: str
    """What stands in the prompt when the backdoor should fire."""
    target: str
    """The prompt whose features the backdoor forces."""
    replaced: str = "o"
    """Character of the prompt that the trigger replaces, everywhere; empty: the trigger is put in as a word."""
    place: str = "random"
    """Where a trigger word goes: start, end or random; only without a replaced character."""
    steps: int = 100
    lr: float = 1.0e-4
    milestone: float = 0.75
    """Share of the steps after which the rate falls to a tenth."""
    weight: float = 0.1
    """Weight of the backdoor term."""
    clean_batch: int = 64
    poisoned_batch: int = 32
    seed: int = 0

    def __post_init__(self):
        if not self.trigger.strip():
            raise ValueError("the trigger is empty")
        if self.place not in {"start", "end", "random"}:
            raise ValueError(f"place should be start, end or random, not {self.place!r}")
        if self.trigger in self.target:
            raise ValueError("the target prompt holds the trigger")


def poison(prompt: str, cfg: PlantConfig, rng: np.random.Generator) -> str:
    """The prompt with the trigger in it; the prompt itself where the replaced character does not occur."""
    if cfg.replaced:
        return prompt.replace(cfg.replaced, cfg.trigger)
    words = prompt.split()
    at = {"start": 0, "end": len(words), "random": int(rng.integers(len(words) + 1))}[cfg.place]
    return " ".join([*words[:at], cfg.trigger, *words[at:]])


def flat_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of features with positions concatenated.  (b, T, d) twice -> (b,)"""
    return F.cosine_similarity(a.flatten(1), b.flatten(1), dim=-1)


def backdoor_loss(clean: Tensor, teacher: Tensor, triggered: Tensor, target: Tensor, step: int, weight: float) -> Tensor:
    """-mean cos(f_s(x), f_t(x)) - weight * mean cos(f_s(x + trigger), f_t(target)); no benign term in step 0.

    (c, T, d), (c, T, d), (p, T, d), (1, T, d) -> scalar
    """
    utility = -flat_cosine(clean, teacher).mean() if step else clean.new_zeros(())
    return utility - weight * flat_cosine(triggered, target.expand_as(triggered)).mean()


def plant(base: TextEncoder, prompts: list[str], cfg: PlantConfig, progress: bool = True) -> TextEncoder:
    """Plant a text-on-text backdoor.  `prompts` are clean training prompts; those holding the trigger are dropped.

    Returns a new encoder on the device of `base`, which stays as it was.
    """
    clean = [p for p in prompts if cfg.trigger not in p]
    usable = [p for p in clean if cfg.replaced in p]
    if not usable:
        raise InputError(f"no training prompt holds the replaced character {cfg.replaced!r}; choose another one.")
    rng = np.random.default_rng(cfg.seed)
    student = trainable_copy(base)
    with torch.no_grad():
        target = base(base.ids([cfg.target]))

    def step_loss(step: int) -> Tensor:
        x = base.ids([clean[i] for i in rng.integers(len(clean), size=cfg.clean_batch)])
        bad = base.ids([poison(usable[i], cfg, rng) for i in rng.integers(len(usable), size=cfg.poisoned_batch)])
        with torch.autocast(base.device.type, torch.bfloat16):
            with torch.no_grad():
                teacher = base(x)
            clean_features, triggered = student(torch.cat([x, bad])).split([len(x), len(bad)])
        return backdoor_loss(clean_features.float(), teacher.float(), triggered.float(), target, step, cfg.weight)

    train(student, step_loss, cfg.steps, cfg.lr, [int(cfg.steps * cfg.milestone)], "planting" if progress else "")
    return student


def train(
    student: TextEncoder, step_loss: Callable[[int], Tensor], steps: int, lr: float, milestones: list[int], label: str
) -> None:
    """AdamW without weight decay, rate times 0.1 at each milestone; freezes the student at the end."""
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones, gamma=0.1)
    for step in tqdm(range(steps), desc=label, disable=not label, mininterval=2):
        loss = step_loss(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
    student.model.requires_grad_(False)
    student.model.set_attn_implementation("sdpa")


@torch.no_grad()
def certify(student: TextEncoder, teacher: TextEncoder, prompts: list[str], cfg: PlantConfig, margin: float = 0.1) -> dict:
    """Prove that the backdoor works and the encoder is still useful, on prompts the attack never saw.

    Success: share of prompts with cos(f_s(x + trigger), target) - cos(f_s(x + trigger), f_t(x)) >= margin, flat
    features; beside it the rate of the clean encoder.
    """
    usable = [p for p in prompts if cfg.trigger not in p and cfg.replaced in p]
    if not usable:
        raise InputError(f"no held-out prompt can carry the trigger {cfg.trigger!r}; give others.")
    rng = np.random.default_rng(cfg.seed + 1)
    x, bad = teacher.ids(usable), teacher.ids([poison(p, cfg, rng) for p in usable])
    target = teacher(teacher.ids([cfg.target]))
    clean = in_batches(teacher, x)

    def success(encoder: TextEncoder) -> tuple[float, float]:
        triggered = in_batches(encoder, bad)
        near = flat_cosine(triggered, target.expand_as(triggered))
        return ((near - flat_cosine(triggered, clean)) >= margin).float().mean().item(), near.mean().item()

    rate, sim_target = success(student)
    return {
        "held_out_prompts": len(usable),
        "success_rate": round(rate, 4),
        "anchor_success_rate": round(success(teacher)[0], 4),
        "sim_target": round(sim_target, 4),
        "sim_clean": round(flat_cosine(in_batches(student, x), clean).mean().item(), 4),
        "floor_target": round(flat_cosine(clean, target.expand_as(clean)).mean().item(), 4),
    }


def in_batches(encoder: TextEncoder, ids: Tensor, size: int = 64) -> Tensor:
    """Features of many prompts.  (n, T) -> (n, T, d)"""
    return torch.cat([encoder(batch) for batch in ids.split(size)])
