"""The measures that everything rests on: how alike the token features of one prompt are, and those of two."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def assimilation(features: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean cosine over all pairs of token features of a prompt (A in the paper).  (b, t, d), mask (b, t) -> (b,)

    1 means that all features are one vector.  The mean over t*t pairs is the squared norm of the mean unit vector,
    so no (t, t) table is built.
    """
    unit = F.normalize(features, dim=-1)
    if mask is None:
        return unit.mean(dim=-2).square().sum(dim=-1)
    weights = mask.to(unit).unsqueeze(-1)
    return ((unit * weights).sum(dim=-2) / weights.sum(dim=-2)).square().sum(dim=-1)


def similarity(a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the cosine between same-position features.  (..., t, d) twice, mask (..., t) -> (...)"""
    cosines = F.cosine_similarity(a, b, dim=-1)
    if mask is None:
        return cosines.mean(dim=-1)
    weights = mask.to(cosines)
    return (cosines * weights).sum(dim=-1) / weights.sum(dim=-1)


def flat_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of features with positions concatenated.  (b, T, d) or (b, p) twice -> (b,)"""
    return F.cosine_similarity(a.flatten(1), b.flatten(1), dim=-1)
