"""What a fine-tune has taught: words that the suspect reads otherwise than its base, looked for token by token.

Nobody has a list of them.  Tokens whose rows moved are put together, and what is read most otherwise goes on to the next one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder

TOKENS = 80
"""Tokens that words are made of."""
PIECES = 5
"""Most tokens of a word."""
BEAM = 40
"""Words of each length that are kept, and continued; a quarter of it where every text costs the whole context."""
TRIED = 1000
"""Tokens that are tried where no row moved."""


Otherwise = Callable[[list[str]], Tensor]
"""Texts -> how far what is wanted of each is from what the base makes of it, (b,)."""


def taught_tokens(suspect: TextEncoder, base: TextEncoder, ids: Tensor, usable: Tensor, otherwise: Otherwise) -> Tensor:
    """Tokens whose rows moved most for how seldom prompts have them: what a fine-tune was for, or a trigger.  -> (n,)

    Where no row moved, those that are read most otherwise.  ids (P, T): the prompts; usable (n,): tokens of texts.
    """
    shared = min(len(suspect.vocabulary), len(base.vocabulary))
    moved = (suspect.vocabulary[:shared] - base.vocabulary[:shared]).norm(dim=-1).cpu()
    count = torch.bincount(ids.flatten(), minlength=shared)[:shared]
    usable = usable[usable < shared]
    if not moved[usable].any():
        some = usable[:: max(1, len(usable) // TRIED)]
        return some[otherwise(suspect.texts(some[:, None])).argsort(descending=True, stable=True)[:TOKENS]]
    return usable[(moved / (1 + count))[usable].argsort(descending=True, stable=True)[:TOKENS]]


def taught_words(suspect: TextEncoder, tokens: Tensor, otherwise: Otherwise) -> list[str]:
    """Words of up to `PIECES` tokens that are read most otherwise, the best of each length; tokens (n,): of these."""
    found: dict[str, None] = {}
    words, beam = tokens[:, None], BEAM if suspect.family.padding_free else BEAM // 4
    for length in range(1, PIECES + 1):
        texts = [text.strip() for text in suspect.texts(words)]
        first = {text: row for row, text in reversed(list(enumerate(texts))) if text and text not in found}
        if not first:
            break
        unique = list(first)
        best = otherwise(unique).topk(min(beam, len(unique)))
        best = best.indices[best.values > 0].tolist()
        found |= dict.fromkeys(unique[at] for at in best)
        kept = words[[first[unique[at]] for at in best]]
        if length < PIECES:
            words = torch.cat([kept.repeat_interleave(len(tokens), dim=0), tokens.repeat(len(kept))[:, None]], dim=1)
    return list(found)
