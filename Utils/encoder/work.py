"""How much arithmetic encoders do, counted from what they are given, and how fast a machine multiplies matrices.

Counted are the products of linear layers and of attention, a multiplication and an addition each; the rest is small.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import torch

SIDES, REPEATS = {"cpu": 1024, "cuda": 4096}, 5
"""Of the matrices that are multiplied to see how fast a device is, and how often."""
PATIENCE = 10.0
"""Seconds after which they are not multiplied again."""


@dataclass
class Work:
    """Arithmetic of this process so far."""

    flop: float = 0.0
    """Floating-point operations."""

    def count(self, texts: int, length: int, weights: int, wide: int, trained: bool) -> None:
        """Add a forward pass over texts of a length, through so many weights and `wide` features of all layers together.

        Where it is derived after, the way back costs as much, and as much again where weights are trained.
        """
        times = 1 + torch.is_grad_enabled() * (1 + trained)
        self.flop += times * 2.0 * texts * length * (weights + 2 * length * wide)


WORK = Work()


def matrix_rate(numbers: torch.dtype, device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, the median of some.

    Where hardware does not multiply in a format, one product takes many seconds: then it is the only one.
    """
    side = SIDES.get(device.type, SIDES["cpu"])
    one, other = (torch.randn(side, side, device=device).to(numbers) for _ in range(2))
    seconds = []
    for _ in range(REPEATS + 1):  # the first one warms up
        began = time.perf_counter()
        (one @ other)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - began)
        if sum(seconds) > PATIENCE:
            break
    return 2 * side**3 / statistics.median(seconds[1:] or seconds)
