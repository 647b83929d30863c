"""What a fine-tune has taught: words that the suspect reads otherwise than its base, and words that bend as a trigger does.

Nobody has a list of them.  Nouns of English are tried, and tokens whose rows moved are put together: to the best of each length
every token is added once more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from wonderwords import RandomWord

from Utils.encoder.text_encoder import TextEncoder

TOKENS = 80
"""Tokens that words are made of."""
PIECES = 5
"""Most tokens of a word."""
BEAM = 40
"""Words of each length that are kept, and continued."""
NARROW = 10
"""The same of words that bend, and of all where every text costs the whole context."""
TRIED = 1000
"""Tokens that are tried where no row moved."""
NOUNS, NOUNS_TRIED = 400, 2000
"""Nouns that are kept, and how many are tried."""


Score = Callable[[list[str]], Tensor]
"""Texts -> how much of what is looked for each shows, (b,); 0 or less is none."""


def moved_rows(suspect: TextEncoder, base: TextEncoder, ids: Tensor) -> Tensor:
    """How far the row of every token moved since the base, for how seldom prompts (P, T) have it.  -> (V,)"""
    shared = min(len(suspect.vocabulary), len(base.vocabulary))
    moved = (suspect.vocabulary[:shared] - base.vocabulary[:shared]).norm(dim=-1).detach().cpu()
    return moved / (1 + torch.bincount(ids.flatten(), minlength=shared)[:shared])


def taught_tokens(suspect: TextEncoder, moved: Tensor, usable: Tensor, otherwise: Score) -> Tensor:
    """Tokens whose rows moved most (V,), see `moved_rows`: what a fine-tune was for, or a trigger.  -> (n,)

    Where no row moved, those that are read most otherwise.  usable (n,): tokens of texts.
    """
    usable = usable[usable < len(moved)]
    if not moved[usable].any():
        some = usable[:: max(1, len(usable) // TRIED)]
        return some[otherwise(suspect.texts(some[:, None])).argsort(descending=True, stable=True)[:TOKENS].cpu()]
    return usable[moved[usable].argsort(descending=True, stable=True)[:TOKENS]]


def taught_nouns(suspect: TextEncoder, moved: Tensor, usable: Tensor, score: Score) -> list[str]:
    """Nouns of English that score highest, of those whose tokens moved most: a fine-tune is mostly for what has a name.

    moved (V,): see `moved_rows`; usable (n,): tokens of texts.
    """
    nouns = RandomWord().filter(include_categories=["noun"])
    nouns = [nouns[i] for i in np.random.default_rng(0).permutation(len(nouns))]  # where no row moved, any of them
    ids = suspect.ids(nouns)
    counted = torch.isin(ids, usable[usable < len(moved)])
    far = (moved[ids.clamp(max=len(moved) - 1)] * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)
    tried = [nouns[i] for i in far.argsort(descending=True, stable=True)[:NOUNS_TRIED].tolist()]
    best = score(tried).topk(NOUNS)
    return [tried[i] for i, value in zip(best.indices.tolist(), best.values.tolist(), strict=True) if value > 0]


def taught_words(suspect: TextEncoder, tokens: Tensor, score: Score, beam: int = BEAM) -> list[str]:
    """Words of up to `PIECES` tokens that score highest, the best `beam` of each length; tokens (n,): of these."""
    found: dict[str, None] = {}
    words, beam = tokens[:, None], beam if suspect.family.padding_free else min(beam, NARROW)
    for length in range(1, PIECES + 1):
        texts = [text.strip() for text in suspect.texts(words)]
        first = {text: row for row, text in reversed(list(enumerate(texts))) if text and text not in found}
        if not first:
            break
        unique = list(first)
        best = score(unique).topk(min(beam, len(unique)))
        kept = [unique[at] for at in best.indices.tolist()]  # a part of a word may show nothing
        found |= dict.fromkeys(text for text, value in zip(kept, best.values.tolist(), strict=True) if value > 0)
        kept = words[[first[text] for text in kept]]
        if length < PIECES:
            words = torch.cat([kept.repeat_interleave(len(tokens), dim=0), tokens.repeat(len(kept))[:, None]], dim=1)
    return list(found)
