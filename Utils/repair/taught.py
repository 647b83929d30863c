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
"""Words of each length that are kept, and continued."""


def taught_tokens(suspect: TextEncoder, base: TextEncoder, ids: Tensor, usable: Tensor) -> Tensor:
    """Tokens whose rows moved most for how seldom prompts have them: what a fine-tune was for, or a trigger.  -> (n,)

    ids (P, T): the prompts; usable (n,): tokens that texts are made of.
    """
    shared = min(len(suspect.vocabulary), len(base.vocabulary))
    moved = (suspect.vocabulary[:shared] - base.vocabulary[:shared]).norm(dim=-1).cpu()
    count = torch.bincount(ids.flatten(), minlength=shared)[:shared]
    usable = usable[usable < shared]
    return usable[(moved / (1 + count))[usable].argsort(descending=True)[:TOKENS]]


def taught_words(suspect: TextEncoder, tokens: Tensor, otherwise: Callable[[list[str]], Tensor]) -> list[str]:
    """Words of up to `PIECES` tokens that are read most otherwise, the best of each length.

    tokens (n,): what they are made of; otherwise: texts -> how much otherwise the suspect reads each, (b,).
    """
    found: dict[str, None] = {}
    words = tokens[:, None]
    for length in range(1, PIECES + 1):
        texts = [text.strip() for text in suspect.texts(words)]
        first = {text: row for row, text in reversed(list(enumerate(texts))) if text and text not in found}
        if not first:
            break
        unique = list(first)
        best = otherwise(unique).topk(min(BEAM, len(unique))).indices.tolist()
        found |= dict.fromkeys(unique[at] for at in best)
        kept = words[[first[unique[at]] for at in best]]
        if length < PIECES:
            words = torch.cat([kept.repeat_interleave(len(tokens), dim=0), tokens.repeat(len(kept))[:, None]], dim=1)
    return list(found)
