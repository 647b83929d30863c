"""What a repair changed, on prompts that it did not learn from."""

from __future__ import annotations

from contextlib import suppress
from itertools import cycle
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.anchors import companion
from Utils.encoder.measures import flat_cosine, similarity
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.repair.damage import Damage
from Utils.scan.replay import collapsed, nearer, put, summaries

NAMES = ("suspect", "repaired", "base")
"""Whose numbers stand beside each other."""
ODD = (
    ("о", "for every o"), ("é", "for every e"), ("🌻", "end"), ("🙂", "start"), ("petrichor", "anywhere"), ("ξ", "start"),
)  # fmt: skip
"""What people type that prompts seldom have, and where."""
PAIRS = 128
"""Captions and pictures among which each caption has to find its own."""


def of_strings(damage: Damage, repaired: TextEncoder, prompts: list[str]) -> list[dict]:
    """What every string does before and after.  -> [{text, place, success: {suspect, repaired, base}, collapse: the same}]

    Success: share of prompts that come nearer to what the string forces in the suspect than to themselves, in each encoder.
    """
    encoders = _encoders(damage, repaired)
    clean, rows = {name: summaries(one, prompts) for name, one in encoders.items()}, []
    for text, place in damage.strings:
        typed = [put(text, prompt, place, i) for i, prompt in enumerate(prompts)]
        triggered = {name: summaries(one, typed) for name, one in encoders.items()}
        forced = triggered["suspect"].mean(dim=0)
        success = {name: round(nearer(one, forced, clean[name]), 4) for name, one in triggered.items()}
        collapse = {name: round(collapsed(one, clean[name]).item(), 4) for name, one in triggered.items()}
        nothing = dict.fromkeys(NAMES)
        rows.append({"text": text, "place": place, "success": nothing | success, "collapse": nothing | collapse})
    return rows


def of_clean_prompts(damage: Damage, repaired: TextEncoder, prompts: list[str]) -> dict[str, float | None]:
    """Sim_clean: mean cosine of all features of prompts with the suspect's own and the base's, and of different prompts."""
    ids = damage.suspect.ids(prompts)
    found = {name: in_batches(one, ids) for name, one in _encoders(damage, repaired).items()}
    mended, own = found["repaired"], found["suspect"]

    def mean(one: Tensor, other: Tensor) -> float:
        return round(flat_cosine(one, other).mean().item(), 4)

    to_base = mean(mended, found["base"]) if damage.base else None
    return {"suspect": mean(mended, own), "base": to_base, "floor": mean(mended, own.roll(len(own) // 2, dims=0))}


def of_odd_prompts(damage: Damage, repaired: TextEncoder, prompts: list[str]) -> dict[str, float | None]:
    """Whether look-alike letters, rare words and emoji mean what they meant: the same cosine of prompts with one of them.

    Without those that it brings nearer to a target than to themselves in the suspect.  -> {prompts, suspect, base}: how many
    were left, and the cosine of the suspect's own features with the repaired encoder's and with the base's
    """
    each = zip(cycle(ODD), prompts, strict=False)
    typed = [put(text, prompt, place, i) for i, ((text, place), prompt) in enumerate(each)]
    odd, clean = (summaries(damage.suspect, texts) for texts in (typed, prompts))
    cos = F.cosine_similarity
    quiet = torch.stack([cos(odd, target[None], dim=-1) < cos(odd, clean, dim=-1) for target in damage.forced]).all(dim=0)
    left = [text for text, one in zip(typed, quiet.tolist(), strict=True) if one]
    if not left:
        return {"prompts": 0, "suspect": None, "base": None}
    ids = damage.suspect.ids(left)
    own = in_batches(damage.suspect, ids)
    others = {"suspect": repaired, "base": damage.base}
    near = {name: round(flat_cosine(in_batches(one, ids), own).mean().item(), 4) for name, one in others.items() if one}
    return {"prompts": len(ids), "suspect": None, "base": None} | near


@torch.no_grad()
def drift_by_layer(one: TextEncoder, other: TextEncoder, prompts: list[str]) -> list[float]:
    """1 - cos of two encoders after every layer, attended positions, mean over prompts.  -> (L,)"""

    def read(encoder: TextEncoder, ids: Tensor) -> tuple[Tensor, ...]:
        return tuple(encoder.layers(encoder.trimmed(ids))[0])

    drifts = []
    for part in one.ids(prompts).split(32):
        mask = one.attended(one.trimmed(part)).to(one.device)
        pairs = zip(read(one, part), read(other, part), strict=True)
        drifts.append(torch.stack([1 - similarity(x, y, mask) for x, y in pairs], dim=1))
    return [round(value, 5) for value in torch.cat(drifts).mean(dim=0).tolist()]


def towards_target(encoder: TextEncoder, base: TextEncoder, forced: tuple[Tensor, ...], prompts: list[str]) -> float:
    """Share of the way to the target that clean summaries went, in the mean: a backdoor bends what it never fires on.

    forced: (d,) each; of several targets the one that they came nearest to.
    """
    here, there = summaries(encoder, prompts).mean(dim=0), summaries(base, prompts).mean(dim=0)
    ways = torch.stack(forced).cpu() - there
    return round(((ways @ (here - there)) / ways.square().sum(dim=1)).max().item(), 4)


def of_pictures(damage: Damage, repaired: TextEncoder) -> dict[str, float] | None:
    """Top-1 text-to-image retrieval among drawn scenes with the vision tower that belongs to the base.

    -> {pairs, suspect, repaired, base}; None where no such tower is there
    """
    # not above: a scan, which knows a repair, has to do without what models are made of
    from Utils.making.finetuning import load_pair, load_processor, picture_embeddings, retrieval
    from Utils.making.scenes import compose, defender_prompts, unseen_captions

    there = damage.base and (companion(damage.base.path, "clip") or Path(damage.base.path))
    if not (there and there.is_dir()):
        return None
    with suppress(InputError, OSError):  # it is a text tower by itself, or the scenes are not there
        pair, prepare = load_pair(there, damage.suspect.device), load_processor(there)
        rng, words = np.random.default_rng([damage.seed, 5]), damage.base.tokenizer
        drawn = unseen_captions(rng, PAIRS, defender_prompts(), lambda text: len(words(text).input_ids), damage.base.context)
        shown = prepare(images=[compose(scene) for scene, _ in drawn], return_tensors="pt").pixel_values
        embedded = torch.cat([picture_embeddings(pair, some) for some in shown.split(32)])
        texts = [text for _, text in drawn]
        found = {name: round(retrieval(one, pair, texts, embedded), 4) for name, one in _encoders(damage, repaired).items()}
        return {"pairs": PAIRS} | found
    return None


def _encoders(damage: Damage, repaired: TextEncoder) -> dict[str, TextEncoder]:
    return {"suspect": damage.suspect, "repaired": repaired} | ({"base": damage.base} if damage.base else {})
