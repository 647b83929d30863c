"""How fast does an old trigger come back?  A repair that only hides a backdoor is undone by a handful of poisoned prompts."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.bounded import progress
from Utils.basics.errors import InputError
from Utils.encoder.loading import trainable_copy
from Utils.encoder.precision import learning_in_short
from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.weights import rate_for
from Utils.scan.replay import FIRES, nearer, summaries

MARGIN = 0.1
"""A trigger succeeds in a prompt whose summary it brings nearer to what is wanted than to its own by this cosine."""


@dataclass(frozen=True)
class RelearningConfig:
    """How a trigger is taught anew."""

    steps: int = 60
    """Most steps."""
    every: int = 2
    """Steps between two looks at the success."""
    batch: int = 8
    """Poisoned prompts of a step, and as many clean ones."""
    lr: float = 1.0e-4
    """AdamW's rate, the same in every step; wider encoders learn more slowly (`rate_for`)."""
    pool: int = 100
    """Prompts that are learned from: the shortest."""
    looked_at: int = 40
    """Held-out prompts that the success is measured on: the shortest."""
    seed: int = 0
    """Decides what every step sees."""

    def __post_init__(self):
        if min(self.steps, self.every, self.batch, self.pool, self.looked_at) < 1 or not 0 < self.lr < math.inf:
            raise ValueError("steps, every, batch, pool, looked_at and lr should be above 0")


def relearned(
    encoder: TextEncoder, poison: Callable[[str], str], wanted: Tensor, prompts: list[str], held_out: list[str],
    cfg: RelearningConfig,
) -> int | None:  # fmt: skip
    """Teach an encoder, which stays as it is, a trigger until it works in prompts that were not learned from.

    -> steps after which it succeeds in `FIRES` of them; None: in none of the steps there were.

    poison: a prompt -> the same with the trigger; wanted: the summary (d,) that it should force.

    Raises:
        InputError: no prompt can carry the trigger.
    """
    train, seen = (shortest(encoder, poison, *some) for some in ((prompts, cfg.pool), (held_out, cfg.looked_at)))
    own, goal = summaries(encoder, seen), wanted.float().cpu()
    ids = torch.stack([encoder.ids(train), encoder.ids([poison(prompt) for prompt in train])])
    goals = torch.stack([summaries(encoder, train), goal.expand(len(train), -1)]).to(encoder.device)
    student, rng = trainable_copy(encoder), random.Random(cfg.seed)
    optimiser = torch.optim.AdamW(student.model.parameters(), lr=rate_for(student, cfg.lr), weight_decay=0.0)
    poisoned = [poison(prompt) for prompt in seen]
    with progress("relearning", cfg.steps) as step_done:
        for step in range(cfg.steps + 1):
            looked = step % cfg.every == 0 or step == cfg.steps
            if looked and nearer(summaries(student, poisoned), goal, own, MARGIN) >= FIRES:
                return step
            if step < cfg.steps:
                rows = [rng.sample(range(len(train)), min(cfg.batch, len(train))) for _ in range(2)]
                with learning_in_short(student):
                    found = student.summarised(torch.cat([some[mine] for some, mine in zip(ids, rows, strict=True)]))
                aims = torch.cat([some[mine] for some, mine in zip(goals, rows, strict=True)])
                loss = (1 - F.cosine_similarity(found, aims, dim=-1)).mean()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                step_done()
    return None


def shortest(encoder: TextEncoder, poison: Callable[[str], str], prompts: list[str], number: int) -> list[str]:
    """The shortest prompts that can carry a trigger."""
    able = [prompt for prompt in prompts if poison(prompt) != prompt]
    if not able:
        raise InputError("no prompt can carry the trigger; give others.")
    return sorted(able, key=lambda prompt: len(encoder.tokens([prompt])[0]))[:number]
