"""Does an encoder say the same in every number format that it is run in?

People run in half precision what was judged in single precision.  Weights can be chosen so that rounding makes another encoder
of them, so a few prompts are run in each format as they would be.
"""

from __future__ import annotations

import copy

import torch

from Utils.encoder.measures import similarity
from Utils.encoder.text_encoder import TextEncoder

USUAL = ("float16", "bfloat16")
"""What users of diffusion pipelines run encoders in."""
AGREE = {"float16": 0.995, "bfloat16": 0.98}
"""Least mean cosine to single precision; honest encoders reach 0.9999 and 0.999."""
PROMPTS, TOKENS = 8, 256
"""Prompts that are run, the shortest first, as many as fit into this many tokens; at least two."""


@torch.no_grad()
def agreement(encoder: TextEncoder, prompts: list[str], formats: tuple[str, ...]) -> dict[str, float]:
    """Mean cosine of features in a number format to those in single precision; 0 where they are no numbers.

    formats: beside the usual ones, as torch names them; such that are none are left out.
    """
    ids = encoder.ids(prompts)
    lengths = encoder.attended(ids).sum(dim=1)
    order = lengths.argsort(stable=True)[:: max(1, len(ids) // PROMPTS)][:PROMPTS]
    fitting = max(2, int((lengths[order].cumsum(dim=0) <= TOKENS).sum()))
    rows = encoder.trimmed(ids[order[:fitting]])
    mask, exact = encoder.attended(rows).to(encoder.device), encoder(rows)
    found = {}
    for name in dict.fromkeys((*formats, *USUAL)):
        kind = getattr(torch, name, None)
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point or kind in (torch.float32, torch.float64):
            continue
        rounded = in_format(encoder, kind)(rows).float()
        near = similarity(rounded, exact, mask).mean().item() if torch.isfinite(rounded).all() else 0.0
        found[name] = near
    return found


def in_format(encoder: TextEncoder, kind: torch.dtype) -> TextEncoder:
    """A copy that computes in a number format, but for what its family always keeps in single precision."""
    other = copy.copy(encoder)
    other.model = copy.deepcopy(encoder.model).to(kind)
    kept = tuple(getattr(other.model, "_keep_in_fp32_modules", None) or ())
    for name, module in other.model.named_modules():
        if kept and name.rsplit(".", 1)[-1] in kept:
            module.float()
    return other


def disagreements(encoder: TextEncoder, prompts: list[str], formats: tuple[str, ...]) -> list[str]:
    """One sentence for every number format in which the encoder is another one."""
    near = agreement(encoder, prompts, formats)
    return [
        f"in {name} the encoder says something else than in float32, which it was judged in (cos {value:.2f})"
        for name, value in near.items()
        if value < AGREE.get(name, min(AGREE.values()))
    ]
