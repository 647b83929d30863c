"""What an encoder makes of the prompt corpus: token ids, features, summaries, and the cache that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.basics.files import whole_file
from Utils.encoder.loading import weights_digest
from Utils.encoder.measures import assimilation
from Utils.encoder.text_encoder import TextEncoder, in_batches

FORMAT = 2
"""Version of the cache files; raise it when what they hold changes."""


@dataclass(frozen=True)
class Corpus:
    """The corpus under one encoder.  All rows are in the order of the prompts."""

    ids: Tensor
    """(n, T) token ids."""
    features: Tensor
    """(n, T, d) half precision: last hidden states (OriginalFeature)."""
    by_layer: Tensor
    """(n, L) assimilation of every prompt after every layer, attended positions (HiddenStates)."""
    pooled: Tensor
    """(n, d) the family's own summaries of the prompts (PooledFeature)."""


def read_prompts(file: Path, count: int | None = None) -> list[str]:
    """The first `count` prompts of a text file, one a line; all without a count.

    Raises:
        InputError: the file is missing, not UTF-8, or holds fewer different prompts.
    """
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the prompt file {file} cannot be read ({error}); give a UTF-8 text file.") from None
    prompts = list(dict.fromkeys(line for line in lines if line))
    if count and len(prompts) < count:
        raise InputError(f"{file} holds {len(prompts)} different prompts, {count} are asked for; lower `prompts`.")
    return prompts[:count]


def split(count: int, fit_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random disjoint row numbers: those the search sees and those the witnesses are measured on."""
    order = torch.randperm(count, generator=generator)
    cut = round(count * fit_fraction)
    return order[:cut].sort().values, order[cut:].sort().values


def batches(encoder: TextEncoder, ids: Tensor, rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless shuffled batches of row numbers, each of prompts of like length, so that little padding is computed."""
    lengths = encoder.attended(ids[rows]).sum(dim=1)
    while True:
        noise = torch.rand(len(rows), generator=generator) * 8
        chunks = rows[(lengths + noise).argsort()].split(size)
        for i in torch.randperm(len(chunks), generator=generator):
            yield chunks[i]


def embed_corpus(encoder: TextEncoder, prompts: list[str], cache: Path | None, batch: int = 64) -> Corpus:
    """Run the corpus through an encoder once, or read what an earlier run kept in `cache`."""
    ids = encoder.ids(prompts)
    file = cache / f"{_key(encoder, ids)}.safetensors" if cache else None
    if file and (found := _read(file, ids, encoder)):
        return Corpus(ids, *found)
    corpus = Corpus(ids, *in_batches(encoder, ids, _embed, size=batch, progress="corpus"))
    if not torch.isfinite(corpus.features).all():
        raise InputError(f"{encoder.path}: features of ordinary prompts overflow; the model cannot work, fetch it again.")
    if file:
        _write(file, corpus)
    return corpus


def _embed(encoder: TextEncoder, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (b, T, d), assimilation by layer (b, L) and summaries (b, d) of one batch, kept in ordinary memory."""
    layers, pooled = encoder.layers(ids)
    mask = encoder.attended(ids).to(encoder.device)
    by_layer = torch.stack([assimilation(h, mask) for h in layers], dim=1)
    return layers[-1].half().cpu(), by_layer.cpu(), pooled.cpu()


def _key(encoder: TextEncoder, ids: Tensor) -> str:
    """Everything the features depend on: weights, config, pooling, tokens of the corpus slice, dtype, device, format."""
    digest = hashlib.sha256(weights_digest(encoder.model).encode())  # not the file's hash: they may have moved since
    config = encoder.model.config.to_dict() | {"architectures": None}  # which saving writes into it
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(ids.numpy().tobytes())
    digest.update(f"{encoder.summary} {encoder.model.dtype} {encoder.device.type} {torch.__version__} {FORMAT}".encode())
    return digest.hexdigest()[:32]


def _read(file: Path, ids: Tensor, encoder: TextEncoder) -> tuple[Tensor, Tensor, Tensor] | None:
    """The cached tensors, or None for a missing, corrupt or foreign file, which is then rebuilt."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = tuple(opened.get_tensor(name) for name in ("OriginalFeature", "HiddenStates", "PooledFeature"))
    except (OSError, SafetensorError):
        return None
    features, by_layer, pooled = found
    fits = features.shape == (*ids.shape, encoder.width) and features.dtype == torch.float16
    fits = fits and by_layer.shape == (len(ids), encoder.model.config.num_hidden_layers)
    fits = fits and pooled.dim() == 2 and len(pooled) == len(ids)
    return found if fits and all(torch.isfinite(tensor).all() for tensor in found) else None


def _write(file: Path, corpus: Corpus) -> None:
    """Write whole or not at all; a cache that cannot be written costs time, not the scan."""
    kept = {"OriginalFeature": corpus.features, "HiddenStates": corpus.by_layer, "PooledFeature": corpus.pooled}
    with suppress(OSError, SafetensorError), whole_file(file) as partial:
        save_file(kept, partial)
