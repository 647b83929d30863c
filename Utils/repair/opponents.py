"""Strings that are looked for while an encoder learns to ignore them: the gradient of its own step says which token is worse.

A search of its own for every step would cost many steps.  Here the gradient that teaches the weights also says, to first
order, by which token the loss would grow most (HotFlip, Ebrahimi et al. 2018, with the free gradients of Shafahi et al. 2019).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder

LONGEST = 6
"""Tokens of a string."""
COPIES = 5
"""Most copies of it in a prompt: what stands for a letter comes again and again."""
IN_FRONT, BEHIND = 0.5, 0.65
"""Where a single copy stands: so often in front, so often there or at the end, else anywhere."""
TOP = 8
"""Tokens by which the loss would grow most, of which one is taken."""


@dataclass(frozen=True)
class Placed:
    """A string of the pool in a prompt."""

    number: int
    starts: list[int]
    """Where its copies begin."""


class Opponents:
    """A pool of strings of tokens; `state_dict` keeps it over an interruption."""

    def __init__(self, usable: Tensor, count: int, flips: int, seed: int):
        """usable (n,): tokens that texts are made of; flips: after so many a string makes room for a new one."""
        self.usable, self.flips = usable, flips
        rng = np.random.default_rng([seed, 1])
        self.tokens = [self._fresh(rng) for _ in range(count)]
        self.ages = [0] * count

    def _fresh(self, rng: np.random.Generator) -> list[int]:
        return self.usable[torch.from_numpy(rng.integers(len(self.usable), size=rng.integers(1, LONGEST + 1)))].tolist()

    def state_dict(self) -> dict:
        return {"tokens": self.tokens, "ages": self.ages}

    def load_state_dict(self, state: dict) -> None:
        self.tokens, self.ages = state["tokens"], state["ages"]

    def placed(self, encoder: TextEncoder, ids: Tensor, rng: np.random.Generator) -> tuple[Tensor, list[Placed]]:
        """A string of the pool in every prompt, once or more.  (b, T) -> (b, T); what does not fit is cut."""
        rows, where = [], []
        for row in ids:
            end = int((row == encoder.eos).int().argmax())
            prompt, number = row[encoder.begin : end].tolist(), int(rng.integers(len(self.tokens)))
            built, starts, last = row[: encoder.begin].tolist(), [], 0
            for at in _places(len(prompt), rng):
                built += prompt[last:at]
                starts.append(len(built))
                built += self.tokens[number]
                last = at
            built = (built + prompt[last:])[: encoder.context - 1]
            full = torch.full_like(row, int(row[-1]))  # padding, or the end where the prompt fills the context
            full[: len(built) + 1] = torch.tensor([*built, encoder.eos])
            rows.append(full)
            where.append(Placed(number, [s for s in starts if s + len(self.tokens[number]) <= len(built)]))
        return torch.stack(rows), where

    def harden(self, gradient: Tensor, where: list[Placed], table: Tensor, rng: np.random.Generator) -> None:
        """Replace a token of every string by one that makes the loss larger, to first order.

        gradient (b, T, d): of the loss, in the embeddings of the prompts; table (V, d): the token embeddings.
        """
        rows = table[self.usable.to(table.device)]
        for prompt, one in zip(gradient, where, strict=True):
            if not one.starts:
                continue
            tokens = self.tokens[one.number]
            at = int(rng.integers(len(tokens)))
            grows = rows @ sum(prompt[start + at] for start in one.starts)
            best = grows.topk(min(TOP, len(rows))).indices
            tokens[at] = int(self.usable[int(best[int(rng.integers(len(best)))])])
            self.ages[one.number] += 1
            if self.ages[one.number] >= self.flips:
                self.tokens[one.number], self.ages[one.number] = self._fresh(rng), 0


def _places(length: int, rng: np.random.Generator) -> list[int]:
    """Before which words of a prompt copies stand."""
    copies = 1 if rng.random() < 0.5 else int(rng.integers(2, COPIES + 1))
    chance = rng.random()
    if copies == 1 and chance < BEHIND:
        return [0] if chance < IN_FRONT else [length]
    return sorted(rng.integers(0, length + 1, size=copies).tolist())
