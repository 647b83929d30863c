"""What a pseudo-trigger covers: the share of prompts it captures, by insertion place and by prompt length."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder, in_batches, splice_ids, spliced


def summaries(encoder: TextEncoder, ids: Tensor, v: Tensor | None = None, after: int = 0) -> Tensor:
    """Pooled summaries of prompts, with v (k, d) behind their first `after` tokens if given.  (n, T) -> (n, d)"""
    if v is None:
        return in_batches(encoder, ids, TextEncoder.summarised)
    with spliced(encoder, v, after):
        return summaries(encoder, splice_ids(encoder, ids, len(v), after))


def captured(triggered: Tensor, clean: Tensor, found: Tensor) -> Tensor:
    """Which prompts v captures: their summary is nearer to the found one than to their own.  (n, d) twice, (d,) -> (n,)"""
    return F.cosine_similarity(triggered, found, dim=-1) > F.cosine_similarity(triggered, clean, dim=-1)


def captures(encoder: TextEncoder, ids: Tensor, v: Tensor) -> Tensor:
    """Which of the prompts v captures; what it forces is the mean over the same prompts.  (n, T), (k, d) -> (n,) bool"""
    triggered = summaries(encoder, ids, v)
    return captured(triggered, summaries(encoder, ids), triggered.mean(dim=0))


def by_place(encoder: TextEncoder, ids: Tensor, v: Tensor, places: list[int]) -> Tensor:
    """Share captured with v behind the first p tokens, over the prompts that are longer than all places.  -> (places,)

    NaN at places that no prompt is longer than, and at those behind them.
    """
    length = encoder.attended(ids).sum(dim=1) - 1
    reached = [p for p in places if p <= length.max()]
    if len(reached) < len(places):
        return torch.cat([by_place(encoder, ids, v, reached), torch.full((len(places) - len(reached),), torch.nan)])
    some = ids[length >= max(places)]
    clean, found = summaries(encoder, some), summaries(encoder, some, v).mean(dim=0)
    return torch.stack([captured(summaries(encoder, some, v, p), clean, found).float().mean() for p in places]).cpu()


def by_length(encoder: TextEncoder, ids: Tensor, v: Tensor, edges: list[int]) -> Tensor:
    """Share captured among prompts of edges[i] to edges[i + 1] - 1 tokens; NaN where there is none.  -> (edges - 1,)"""
    length = encoder.attended(ids).sum(dim=1) - 1
    hit = captures(encoder, ids, v).float().cpu()
    return torch.stack([hit[(length >= low) & (length < high)].mean() for low, high in pairwise(edges)])
