"""What is done to weights as a whole: set, mixed, frozen after they have learned."""

from __future__ import annotations

import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder

NARROW = 160
"""Width of the encoders that rates are chosen on."""


@torch.no_grad()
def set_weights(encoder: TextEncoder, weights: dict[str, Tensor]) -> None:
    for name, tensor in encoder.model.named_parameters():
        tensor.copy_(weights[name])


def interpolated(encoder: TextEncoder, base: TextEncoder, share: float) -> dict[str, Tensor]:
    """Weights on the line from the encoder (share 0) to the base (share 1)."""
    origin = dict(base.model.named_parameters())
    return {name: torch.lerp(tensor, origin[name], share) for name, tensor in encoder.model.named_parameters()}


def frozen(student: TextEncoder, like: TextEncoder) -> TextEncoder:
    """A student after its training, with the attention of the encoder it was copied from (`trainable_copy`)."""
    student.model.requires_grad_(False)
    student.model.set_attn_implementation(like.model.config._attn_implementation)
    return student


def rate_for(encoder: TextEncoder, lr: float) -> float:
    """Adam's rate for an encoder, from that for narrow ones: in proportion lower for wider ones (Yang et al., 2022)."""
    return lr * min(1.0, NARROW / encoder.width)
