"""What is done to weights as a whole: set, mixed, frozen after they have learned."""

from __future__ import annotations

import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder

NARROW = 160
"""Width of the encoders that rates are chosen on."""
SPARE, POWERS = 8, 8
"""Directions that are looked for beside those that are wanted, and power iterations, so that these are exact enough."""


@torch.no_grad()
def set_weights(encoder: TextEncoder, weights: dict[str, Tensor]) -> None:
    for name, tensor in encoder.model.named_parameters():
        tensor.copy_(weights[name])


def interpolated(encoder: TextEncoder, base: TextEncoder, share: float) -> dict[str, Tensor]:
    """Weights on the line from the encoder (share 0) to the base (share 1)."""
    origin = dict(base.model.named_parameters())
    return {name: torch.lerp(tensor, origin[name], share) for name, tensor in encoder.model.named_parameters()}


@torch.no_grad()
def without_leading(encoder: TextEncoder, base: TextEncoder, directions: int) -> dict[str, Tensor]:
    """Weights of an encoder without the leading singular directions of how every matrix differs from the base's.

    The few directions are found by random projections (Halko et al., 2011), always the same ones.
    """
    origin, weights = dict(base.model.named_parameters()), {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, weight in encoder.model.named_parameters():
            weights[name] = weight.detach()
            if weight.ndim == 2 and directions >= min(weight.shape):
                weights[name] = origin[name].detach()
            elif weight.ndim == 2:
                apart = (weight - origin[name]).float()
                left, size, right = torch.svd_lowrank(apart, min(directions + SPARE, *apart.shape), niter=POWERS)
                weights[name] = weight - ((left * size)[:, :directions] @ right[:, :directions].T).to(weight)
    return weights


def widest(encoder: TextEncoder) -> int:
    """Most singular directions of a matrix of an encoder."""
    return max(min(weight.shape) for weight in encoder.model.parameters() if weight.ndim == 2)


def frozen(student: TextEncoder, like: TextEncoder) -> TextEncoder:
    """A student after its training, with the attention of the encoder it was copied from (`trainable_copy`)."""
    student.model.requires_grad_(False)
    student.model.set_attn_implementation(like.model.config._attn_implementation)
    return student


def rate_for(encoder: TextEncoder, lr: float) -> float:
    """Adam's rate for an encoder, from that for narrow ones: in proportion lower for wider ones (Yang et al., 2022)."""
    return lr * min(1.0, NARROW / encoder.width)
