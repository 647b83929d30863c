"""Does an encoder say the same in every number format that it is run in?

People run in half precision what was judged in single precision.  Weights can be chosen so that rounding makes another encoder
of them, so a few prompts are run in each format as they would be, and what is another encoder there is judged as well.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from Utils.encoder.measures import similarity
from Utils.encoder.text_encoder import TextEncoder

USUAL = ("float16", "bfloat16")
"""What users of diffusion pipelines run encoders in."""
AGREE = {"float16": 0.995, "bfloat16": 0.98}
"""Least mean cosine to single precision; honest encoders reach 0.9999 and 0.999."""
PROMPTS, TOKENS = 8, 256
"""Prompts that are run, the shortest first, as many as fit into this many tokens; at least two."""


@dataclass(frozen=True)
class Format:
    """How an encoder runs in a number format."""

    name: str
    near: float
    """Mean cosine of its features to those in single precision; 0 where they are no numbers."""
    rounded: TextEncoder | None = None
    """Where these are others: the encoder that it is there, computed in single precision; None where that is not known."""

    @property
    def differs(self) -> bool:
        return self.near < _least(self.name)


def _least(name: str) -> float:
    return AGREE.get(name, min(AGREE.values()))


@torch.no_grad()
def formats_of(encoder: TextEncoder, prompts: list[str]) -> list[Format]:
    """How an encoder runs in the usual number formats and in those that its config names, single precision left out.

    Weights that are rounded to a format and computed in single precision are a stand-in for the encoder in this format where
    they give the features that are computed in it, within rounding.
    """
    ids = encoder.ids(prompts)
    lengths = encoder.attended(ids).sum(dim=1)
    order = lengths.argsort(stable=True)[:: max(1, len(ids) // PROMPTS)][:PROMPTS]
    fitting = max(2, int((lengths[order].cumsum(dim=0) <= TOKENS).sum()))
    rows = encoder.trimmed(ids[order[:fitting]])
    mask, exact = encoder.attended(rows).to(encoder.device), encoder(rows)

    def near(a: Tensor, b: Tensor) -> float:
        return similarity(a, b, mask).mean().item() if torch.isfinite(a).all() and torch.isfinite(b).all() else 0.0

    found = []
    for name in dict.fromkeys((*(encoder.files.dtypes if encoder.files else ()), *USUAL)):
        kind = getattr(torch, name, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind in (torch.float32, torch.float64):
            continue
        other = encoder.computing_in(kind)
        features = other(rows)
        one = Format(name, near(features, exact))
        if one.differs:
            other.model.float()
            other.numbers = name
            one = replace(one, rounded=other if near(other(rows), features) >= _least(name) else None)
        found.append(one)
    return found


def formats_in_doubt(formats: list[Format]) -> list[str]:
    """One sentence for every number format in which the encoder is another one that cannot be judged."""
    return [
        f"in {one.name} the encoder says something else than in float32, which it was judged in (cos {one.near:.2f})"
        for one in formats
        if one.differs and one.rounded is None
    ]
