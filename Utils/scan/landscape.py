"""How the loss lies around a point: a planted backdoor sits in a wide basin, says the paper, a natural one does not.

A surface is evaluated on a square grid in a plane and never differentiated: curvature comes from finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Landscape:
    """The loss around a vector, in one or more planes."""

    share: float
    """Share of Hessian eigenvalues that curve upwards, the median over planes: how much of a basin it is."""
    surface: Tensor
    """(points, points), the first plane."""
    eigenvalues: Tensor
    """(m, 2), all planes."""
    radius: float
    """Half side of the planes."""
    unit: str
    """What the radius is measured in."""


def plane(gradient: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Unit directions: the negative gradient, and a random one orthogonal to it.  (k, d) -> (k, d), (k, d)"""
    d1 = -gradient / gradient.norm().clamp_min(1e-12)
    noise = torch.randn(gradient.shape, generator=generator).to(gradient)
    d2 = noise - (noise * d1).sum() * d1
    return d1, d2 / d2.norm()


def surface(loss: Callable[[Tensor], Tensor], centre: Tensor, d1: Tensor, d2: Tensor, radius: float, points: int) -> Tensor:
    """The loss on a points x points grid over [-radius, radius]^2 around `centre`.

    `loss` takes many vectors at once: (n, k, d) -> (n,).  Row index runs along d1, column index along d2.
    """
    steps = torch.linspace(-radius, radius, points).to(centre)
    offsets = steps[:, None, None, None] * d1 + steps[None, :, None, None] * d2  # (points, points, k, d)
    return loss((centre + offsets).flatten(0, 1)).reshape(points, points)


def curvatures(values: Tensor, spacing: float) -> Tensor:
    """Eigenvalues of the 2x2 finite-difference Hessian at every inner point.  (n, n) -> ((n - 2)^2, 2), ascending"""
    centre = values[1:-1, 1:-1]
    xx = (values[2:, 1:-1] - 2 * centre + values[:-2, 1:-1]) / spacing**2
    yy = (values[1:-1, 2:] - 2 * centre + values[1:-1, :-2]) / spacing**2
    xy = (values[2:, 2:] - values[2:, :-2] - values[:-2, 2:] + values[:-2, :-2]) / (4 * spacing**2)
    hessian = torch.stack([torch.stack([xx, xy], dim=-1), torch.stack([xy, yy], dim=-1)], dim=-2)
    return torch.linalg.eigvalsh(hessian.double()).reshape(-1, 2)


def share_upwards(eigenvalues: Tensor, above: float = 1e-6) -> float:
    """Share of eigenvalues that curve upwards: a bowl 1.0, a saddle 0.5, a dome 0.0."""
    return (eigenvalues > above).double().mean().item()
