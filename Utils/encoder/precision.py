"""Number formats to compute in: what is fast depends on the machine, and verdicts must not depend on what is fast."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from Utils.basics.errors import InputError
from Utils.basics.formats import AUTO, NAMES
from Utils.basics.hardware import has_bfloat16
from Utils.encoder.text_encoder import TextEncoder

WIDE = 512
"""Encoders from this width on spend their time in matrix products; narrow ones gain nothing, and the score of vectors is
calibrated on searches in single precision."""


@dataclass(frozen=True)
class Precision:
    """What the two searches compute in; strings are judged in single precision whatever they were found in."""

    vectors: torch.dtype = torch.float32
    """The search for vectors, its witnesses, the landscape."""
    strings: torch.dtype = torch.float32
    """The search for strings."""


def pick_precision(name: str, encoder: TextEncoder) -> Precision:
    """`auto`: bfloat16 where the hardware multiplies in it; vectors of narrow encoders stay in single precision.

    Decided by what the machine says of itself and not by timing, so that the same machine decides the same twice.
    """
    if name not in NAMES:
        raise InputError(f"--precision {name} is no number format; give one of {', '.join(NAMES)}.")
    if name != AUTO:
        return Precision(getattr(torch, name), getattr(torch, name))
    if not has_bfloat16(encoder.device):
        return Precision()
    return Precision(torch.bfloat16 if encoder.width >= WIDE else torch.float32, torch.bfloat16)


def learning_in_short(encoder: TextEncoder) -> torch.autocast:
    """While open, a wide encoder learns in bfloat16 where the machine multiplies in it; its weights stay as they are."""
    numbers = pick_precision(AUTO, encoder).vectors
    return torch.autocast(encoder.device.type, numbers, enabled=numbers != torch.float32)


def short_products(device: torch.device) -> torch.autocast:
    """While open, products are made in bfloat16 where the machine multiplies in it.

    Elsewhere each would be put together from products of single precision, and a step of training takes ten times as long.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device))
