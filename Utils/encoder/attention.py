"""Where attention goes: the map of a prompt, and how much of it the splice receives from layer to layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder, in_batches, spliced


@contextmanager
def eager(encoder: TextEncoder) -> Iterator[None]:
    """While open, the encoder computes attention maps: under sdpa the tuple of maps comes back empty without a word."""
    usual = encoder.model.config._attn_implementation
    encoder.model.set_attn_implementation("eager")
    try:
        yield
    finally:
        encoder.model.set_attn_implementation(usual)


@torch.no_grad()
def attention_maps(encoder: TextEncoder, ids: Tensor, v: Tensor | None = None) -> Tensor:
    """Attention of every layer, averaged over heads: row i says where position i looks.  (b, T) -> (b, L, T, T)

    With v (k, d), `ids` come from `splice_ids`.
    """
    with eager(encoder), spliced(encoder, v) if v is not None else nullcontext():
        maps = encoder.run(ids, output_attentions=True).attentions
    if len(maps) != encoder.model.config.num_hidden_layers:
        raise RuntimeError(f"{len(maps)} attention maps for {encoder.model.config.num_hidden_layers} layers")
    return torch.stack([layer.float().mean(dim=1) for layer in maps], dim=1)


def attention_received(encoder: TextEncoder, ids: Tensor, v: Tensor, batch: int = 32) -> Tensor:
    """Share of their attention that later tokens of a prompt give the splice, mean over them.  (n, T), (k, d) -> (n, L)

    `ids` come from `splice_ids`; later tokens are those behind the splice up to end of text.
    """
    first, behind = encoder.begin, encoder.begin + len(v)

    def received(_: TextEncoder, part: Tensor) -> Tensor:
        part = encoder.trimmed(part)
        maps = attention_maps(encoder, part, v)
        later = encoder.attended(part).to(maps)
        later[:, :behind] = 0
        given = maps[..., first:behind].sum(dim=-1)  # (b, L, T)
        return (given * later[:, None]).sum(dim=-1) / later.sum(dim=-1)[:, None]

    return in_batches(encoder, ids, received, size=batch).cpu()
