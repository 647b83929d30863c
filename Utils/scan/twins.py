"""Benign twins: the clean base, moved as far as a suspect by learning that nobody could call a backdoor.

Any fine-tune makes some strings do more than they did.  How much more a search finds in twins is what it may find in a clean
suspect: a null distribution of this pair of encoders, made without a zoo.
"""

from __future__ import annotations

import random
from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from Utils.basics.bounded import progress
from Utils.encoder.loading import trainable_copy
from Utils.encoder.precision import WIDE
from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.weights import frozen
from Utils.scan.replay import summaries

BATCH, STEPS, LOOK = 16, 240, 4
"""Prompts of a step, most steps, and after how many of them the drift is looked at."""
LR, GROWTH = 1e-4, 1.04
"""AdamW's rate, and by how much it grows with every step: far drifts are reached in few steps."""
WORDS, OFTEN = 60, (0.005, 0.15)
"""Words that get another meaning, and in what shares of prompts they occur."""
BEYOND = 1.5
"""The meanings that are learned lie so much further off than the drift that is wanted."""
LAST = 1 / 4
"""Share of a wide encoder's weights, from its end, that learns."""
LOOKED_AT = 40
"""Prompts the drift is measured on."""


def benign_twin(
    base: TextEncoder, drift: float, prompts: list[str], seed: int, numbers: torch.dtype = torch.float32
) -> TextEncoder:
    """The base with other meanings for some words, as fine-tunes on new captions teach them, at a drift as wanted.

    Prompts are drawn towards their own summary, moved by a direction for every such word in them.  At the largest drift that
    so many steps lead to where `drift`, 1 - cos of summaries, is out of reach.  numbers: format that wide encoders learn in.
    """
    rng = random.Random(seed)
    prompts = rng.sample(prompts, len(prompts))
    cut = min(LOOKED_AT, len(prompts) // 2)
    seen, train = prompts[:cut], prompts[cut:]
    there, wanted = summaries(base, seen), new_meanings(base, train, drift, rng)
    twin = trainable_copy(base, taught(base))
    learning = {name: weight for name, weight in twin.model.named_parameters() if weight.requires_grad}
    optimiser = torch.optim.AdamW(learning.values(), lr=LR)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimiser, GROWTH)
    before, was = copied(learning), 0.0
    with progress("benign twin", 1.0) as gone:
        for step in range(STEPS):
            rows = rng.sample(range(len(train)), min(BATCH, len(train)))
            with torch.autocast(base.device.type, numbers, enabled=numbers != torch.float32 and base.width >= WIDE):
                found = twin.summarised(twin.ids([train[i] for i in rows]))
            loss = (1 - F.cosine_similarity(found, wanted[rows].to(found), dim=-1)).mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            schedule.step()
            if step % LOOK < LOOK - 1:
                continue
            now = (1 - F.cosine_similarity(summaries(twin, seen), there, dim=-1)).mean().item()
            if now >= drift:
                set_between(learning, before, (drift - was) / (now - was))
                break
            gone((now - was) / drift)
            before, was = copied(learning), now
    return frozen(twin, base)


def new_meanings(base: TextEncoder, prompts: list[str], drift: float, rng: random.Random) -> Tensor:
    """Summaries of prompts, each moved by the directions of its words with another meaning, `BEYOND` drifts far.  -> (n, d)"""
    clean = summaries(base, prompts)
    spoken = [{word.strip(".,").lower() for word in prompt.split()} for prompt in prompts]
    count = Counter(word for words in spoken for word in words)
    common = sorted(word for word, times in count.items() if OFTEN[0] <= times / len(prompts) <= OFTEN[1])
    chosen = rng.sample(common, min(WORDS, len(common)))
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    directions = torch.randn(len(chosen), clean.shape[1], generator=generator) * clean.std(dim=0, correction=0)
    moved = torch.tensor([[float(word in words) for word in chosen] for words in spoken]) @ directions
    low, high = 0.0, 32.0
    for _ in range(24):  # bisection: how far off grows with the factor
        factor = (low + high) / 2
        apart = (1 - F.cosine_similarity(clean, clean + factor * moved, dim=-1)).mean().item()
        low, high = (factor, high) if apart < min(BEYOND * drift, 0.9) else (low, factor)
    return clean + low * moved


def taught(base: TextEncoder) -> set[str]:
    """Names of the weights that learn: all, or of wide encoders the last ones, as what learns is held five times over."""
    weights = dict(base.model.named_parameters())
    most, names = (LAST if base.width >= WIDE else 1.0) * sum(w.numel() for w in weights.values()), set()
    for name, weight in reversed(weights.items()):
        most -= weight.numel()
        if most < 0:
            break
        names.add(name)
    return names


def copied(weights: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in weights.items()}


@torch.no_grad()
def set_between(weights: dict[str, nn.Parameter], before: dict[str, Tensor], share: float) -> None:
    """Weights between earlier ones (share 0) and their own."""
    for name, weight in weights.items():
        weight.copy_(torch.lerp(before[name], weight, share))
