"""The figures of a result folder: what is measured for each of them, and the file it goes to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import visible
from Utils.encoder.attention import attention_maps, attention_received
from Utils.encoder.text_encoder import TextEncoder
from Utils.report import numbers, plots
from Utils.report.numbers import Table
from Utils.report.plots import ANCHOR, FOUND
from Utils.scan.landscape import Landscape


@dataclass(frozen=True)
class Subject:
    """Whom the figures are about."""

    suspect: TextEncoder
    anchor: TextEncoder | None
    v: Tensor
    """(k, d)"""
    ids: Tensor
    """(n, T) held-out prompts with room for v."""


@dataclass(frozen=True)
class Drawn:
    """A figure: its file, and the numbers in it."""

    file: str
    tables: list[Table]


def mean_and_spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """(n, L) -> (L,), (L,)"""
    return values.mean(dim=0), values.std(dim=0)


def draw_assimilation(by_layer: dict[str, Tensor], folder: Path) -> Drawn:
    """Assimilation by layer; name -> (n, L)."""
    file, curves = folder / "assimilation_by_layer.png", {name: mean_and_spread(values) for name, values in by_layer.items()}
    plots.by_layer(curves, "assimilation A", file)
    return Drawn(file.name, numbers.of_layers(curves))


def received_by_layer(subject: Subject) -> dict[str, Tensor]:
    """Attention that the splice receives in suspect and anchor; name -> (n, L)."""
    received = {FOUND: attention_received(subject.suspect, subject.ids, subject.v)}
    if subject.anchor:
        received[ANCHOR] = attention_received(subject.anchor, subject.ids, subject.v)
    return received


def draw_attention_received(subject: Subject, folder: Path) -> Drawn:
    file = folder / "attention_received.png"
    curves = {name: mean_and_spread(values) for name, values in received_by_layer(subject).items()}
    plots.by_layer(curves, "attention received by v", file)
    return Drawn(file.name, numbers.of_layers(curves))


def example(subject: Subject, tokens: int = 16) -> Tensor:
    """The prompt whose length is nearest to `tokens`, without padding.  -> (1, t) ids"""
    lengths = subject.suspect.attended(subject.ids).sum(dim=1)
    row = int((lengths - tokens).abs().argmin())
    return subject.ids[row : row + 1, : subject.suspect.begin + int(lengths[row])]


def padded(subject: Subject, ids: Tensor) -> Tensor:
    """Padding put back where every position sees it.  (b, t) -> (b, t) or (b, T)"""
    room = 0 if subject.suspect.causal else subject.suspect.context - ids.shape[1]
    return F.pad(ids, (0, room), value=subject.suspect.tokenizer.pad_token_id)


def token_texts(subject: Subject, ids: Tensor) -> list[str]:
    """Tokens as the axis of a map shows them; those under the splice are called v.  (t,) -> t strings"""
    first, k = subject.suspect.begin, len(subject.v)
    texts = [visible(t.replace("</w>", "")) for t in subject.suspect.tokenizer.convert_ids_to_tokens(ids.tolist())]
    return [*texts[:first], *(["v"] * k), *texts[first + k :]]


def draw_attention_map(subject: Subject, folder: Path) -> Drawn:
    """The last layer's attention map of one held-out prompt with v, in suspect and anchor."""
    file, ids = folder / "attention_map.png", example(subject)
    encoders = {"suspect": subject.suspect} | ({"anchor, same splice": subject.anchor} if subject.anchor else {})
    t = ids.shape[1]
    maps = {
        name: attention_maps(encoder, padded(subject, ids), subject.v)[0, -1, :t, :t].cpu()
        for name, encoder in encoders.items()
    }
    tokens = token_texts(subject, ids[0])
    plots.attention_map(maps, tokens, file)
    return Drawn(file.name, numbers.of_maps(maps, tokens))


def draw_search(curve: list[dict[str, float]], folder: Path) -> Drawn:
    """The search's loss and terms; a new search starts where the steps start again."""
    file, parts = folder / "search_curve.png", []
    for step in curve:
        if step["step"] == 0:
            parts.append([])
        parts[-1].append(step)
    plots.search_curve(parts, file)
    return Drawn(file.name, numbers.of_search(parts))


def draw_landscape(landscape: Landscape, folder: Path) -> Drawn:
    """The loss around v."""
    file, around = folder / "loss_landscape.png", (landscape.surface, landscape.radius, landscape.unit)
    plots.loss_landscape(*around, file)
    return Drawn(file.name, numbers.of_surface(*around))


def draw_spectrum(landscape: Landscape, folder: Path) -> Drawn:
    """Its curvatures."""
    file = folder / "hessian_spectrum.png"
    plots.hessian_spectrum(landscape.eigenvalues, landscape.share, file)
    return Drawn(file.name, numbers.of_spectrum(landscape.eigenvalues))
