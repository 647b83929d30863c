"""What an encoder makes of the prompt corpus: token ids, features, summaries, and the cache that keeps them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.basics.files import CACHE_BYTES, whole_file
from Utils.encoder.loading import weights_digest
from Utils.encoder.measures import assimilation
from Utils.encoder.text_encoder import TextEncoder, in_batches, texts_of_one

FORMAT = 3
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


def embed_corpus(
    encoder: TextEncoder, prompts: list[str], cache: Path | None, batch: int = 64, beyond: int | None = None
) -> Corpus:
    """Run the corpus through an encoder once, or read what an earlier run kept in `cache`.

    beyond: features are wanted up to so many positions behind a text's end, and may be zero there after; None: all of them.
    """
    ids = encoder.ids(prompts)
    file = cache / f"{_key(encoder, ids, beyond)}.safetensors" if cache else None
    if file and (found := _read(file, ids, encoder)):
        return Corpus(ids, *found)
    order = encoder.attended(ids).sum(dim=1).argsort(stable=True)  # texts of like length together: little padding is computed
    read = in_batches(encoder, ids[order], partial(_embed, beyond=beyond), size=batch, progress="corpus")
    back = order.argsort()
    corpus = Corpus(ids, *(part[back] for part in read))
    if not torch.isfinite(corpus.features).all():
        raise InputError(f"{encoder.path}: features of ordinary prompts overflow; the model cannot work, fetch it again.")
    if file:
        kept = {"OriginalFeature": corpus.features, "HiddenStates": corpus.by_layer, "PooledFeature": corpus.pooled}
        _write(file, kept)
    return corpus


def _embed(encoder: TextEncoder, ids: Tensor, beyond: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """Features (b, T, d), assimilation by layer (b, L) and summaries (b, d) of one batch, kept in ordinary memory."""
    whole = ids.shape[1]
    if beyond is not None:
        ids = ids[:, : encoder.trimmed(ids).shape[1] + beyond]
    layers, pooled = encoder.layers(ids)
    mask = encoder.attended(ids).to(encoder.device)
    by_layer = torch.stack([assimilation(h, mask) for h in layers], dim=1)
    features = F.pad(layers[-1].half().cpu(), (0, 0, 0, whole - ids.shape[1]))
    return features, by_layer.cpu(), pooled.cpu()


def token_summaries(encoder: TextEncoder, tokens: Tensor, cache: Path | None) -> Tensor:
    """`texts_of_one`, or what an earlier run kept of it in `cache`; in half precision either way.  (n,) -> (n, d)"""
    file = cache / f"{_key(encoder, tokens)}.safetensors" if cache else None
    found = _opened(file, "TokenSummaries") if file else None
    if not found or found[0].shape[0] != len(tokens):
        found = (texts_of_one(encoder, tokens, progress="sweep").half().cpu(),)
        if file:
            _write(file, {"TokenSummaries": found[0]})
    return found[0].float()


def _key(encoder: TextEncoder, ids: Tensor, beyond: int | None = None) -> str:
    """Everything the features depend on: weights, config, pooling, tokens of the corpus slice, dtype, device, format."""
    digest = hashlib.sha256(weights_digest(encoder.model).encode())  # not the file's hash: they may have moved since
    config = encoder.model.config.to_dict() | {"architectures": None}  # which saving writes into it
    digest.update(json.dumps(config, sort_keys=True, default=str).encode())
    digest.update(ids.numpy().tobytes())
    about = encoder.summary, encoder.model.dtype, encoder.device.type, torch.__version__, tuple(ids.shape), beyond, FORMAT
    digest.update(" ".join(map(str, about)).encode())
    return digest.hexdigest()[:32]


def _opened(file: Path, *names: str) -> tuple[Tensor, ...] | None:
    """The cached tensors, or None for a missing, corrupt or foreign file, which is then rebuilt."""
    try:
        with safe_open(file, framework="pt") as opened:
            found = tuple(opened.get_tensor(name) for name in names)
    except (OSError, SafetensorError):
        return None
    return found if all(torch.isfinite(tensor).all() for tensor in found) else None


def _read(file: Path, ids: Tensor, encoder: TextEncoder) -> tuple[Tensor, ...] | None:
    """Features, assimilation and summaries of an earlier run, where they are of these texts."""
    found = _opened(file, "OriginalFeature", "HiddenStates", "PooledFeature")
    if not found:
        return None
    features, by_layer, pooled = found
    fits = features.shape == (*ids.shape, encoder.width) and features.dtype == torch.float16
    fits = fits and by_layer.shape == (len(ids), encoder.model.config.num_hidden_layers)
    fits = fits and pooled.dim() == 2 and len(pooled) == len(ids)
    return found if fits else None


def _write(file: Path, kept: dict[str, Tensor]) -> None:
    """Write whole or not at all; a cache that cannot be written costs time, not the scan.  The oldest files make room."""
    with suppress(OSError, SafetensorError), whole_file(file) as partial:
        save_file(kept, partial)
    with suppress(OSError):
        files = sorted(file.parent.glob("*.safetensors"), key=lambda one: one.stat().st_mtime)
        while sum(one.stat().st_size for one in files) > CACHE_BYTES and len(files) > 1:
            files.pop(0).unlink()
