"""From a tower as a file has it to the tower's own names: which stored tensors make which of transformers' tensors."""

from __future__ import annotations

import re
from collections.abc import Collection

from Utils.basics.errors import InputError
from Utils.intake.files import PRECISE
from Utils.intake.recipe import FP8, Piece, Recipe
from Utils.intake.tensors import Stored
from Utils.sources.layouts import CLIP, FEW_BITS, T5, Tower

SCALES = ("scale_weight", "weight_scale")
"""What belongs to FP8 weights, as web UIs write it now and wrote it before."""
SETTINGS = (".scale_input", ".input_scale", ".comfy_quant")
"""What says how a computation in FP8 is done; here it is done in single precision."""
ONE = "save the one that you use in a file of its own"
"""The cure where nobody can say which tensors a loader takes."""
KEPT = 20
"""Positions of the trained table that LongCLIP keeps; the others come from its second one."""
TOP = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
"""OpenCLIP's names outside of the layers -> transformers'."""
INNER = {
    "ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}  # fmt: skip
"""The same in a layer."""


def recipe_of(tower: Tower, stored: dict[str, Stored], layers: int | None, file: object) -> tuple[Recipe, set[str]]:
    """How a tower's tensors are made, and the stored names that are thereby accounted for.

    layers: so many are taken; None: all.  What lies in the tower and is not known keeps its name, and the loader refuses it.
    """
    if packed := sorted(name for name in stored if name.startswith(tower.root) and FEW_BITS.search(name)):
        raise InputError(f"{file} holds weights in four or eight bits ({packed[0][:80]}); {PRECISE}.")
    if tower.form in (CLIP, T5):
        return _as_named(tower, stored, layers, file)
    return _of_open_clip(tower, stored, layers)


def _inner(tower: Tower, stored: Collection[str], file: object) -> dict[str, str]:
    """Stored name -> name in the tower, of a tower that has Hugging Face's names."""
    if tower.form == T5:
        ours = {name: name.removeprefix(tower.root) for name in stored if name.startswith(tower.root)}
        return {name: short for name, short in ours.items() if short.startswith("encoder.") or short == "shared.weight"}
    inside, own = f"{tower.root}text_model.", ("embeddings.", "encoder.", "final_layer_norm.")
    within = {name: name.removeprefix(inside) for name in stored if name.startswith(inside)}
    bare = {n: n.removeprefix(tower.root) for n in stored if n.startswith(tuple(tower.root + part for part in own))}
    if within and bare:
        raise InputError(f"{file} holds its text encoder under two names ({min(within)[:80]}, {min(bare)[:80]}); {ONE}.")
    return within or bare


def _as_named(tower: Tower, stored: dict[str, Stored], layers: int | None, file: object) -> tuple[Recipe, set[str]]:
    names = _inner(tower, stored, file)
    recipe, done = {}, set()
    for name, short in names.items():
        stem, _, last = name.rpartition(".")
        number = re.match(r"encoder\.(?:layers|block)\.(\d+)\.", short)
        beyond = number is not None and layers is not None and int(number[1]) >= layers
        if beyond or (short.endswith(SETTINGS) and f"{stem}.weight" in names):
            continue
        if last in SCALES and f"{stem}.weight" in names and stored[f"{stem}.weight"].kind in FP8:
            done.add(name)
            continue
        recipe[short] = (Piece(name, scale=_scale(name, stored)),)
        done.add(name)
    return recipe, done


def _scale(name: str, stored: dict[str, Stored]) -> str | None:
    """The scale that lies beside an FP8 weight."""
    stem, _, last = name.rpartition(".")
    beside = [f"{stem}.{scale}" for scale in SCALES if f"{stem}.{scale}" in stored]
    return beside[0] if last == "weight" and stored[name].kind in FP8 and beside else None


def _of_open_clip(tower: Tower, stored: dict[str, Stored], layers: int | None) -> tuple[Recipe, set[str]]:
    recipe, done = {}, set()
    for name in (name for name in stored if name.startswith(tower.root)):
        short = name.removeprefix(tower.root)
        layer = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.*)", short)
        if layer and (layers is None or int(layer[1]) < layers):
            recipe |= _of_layer(name, f"encoder.layers.{int(layer[1])}", layer[2], stored)
        elif short in TOP:
            recipe[TOP[short]] = (Piece(name),)
        elif short.startswith(("transformer.", "token_embedding.", "ln_final.")) and not layer:
            recipe[short] = (Piece(name),)
        else:
            continue
        done.add(name)
    first, second = (f"{tower.root}positional_embedding{end}" for end in ("", "_res"))
    if first in stored and second in stored and stored[second].shape:  # LongCLIP's two tables
        table = Piece(first, slice(0, KEPT)), Piece(second, slice(KEPT, stored[second].shape[0]))
        recipe[TOP["positional_embedding"]] = table
        done.add(second)
    return recipe, done


def _of_layer(name: str, layer: str, inner: str, stored: dict[str, Stored]) -> Recipe:
    """What a tensor of an OpenCLIP layer becomes; query, key and value lie below each other in one."""
    stem, _, last = inner.rpartition(".")
    if inner in ("attn.in_proj_weight", "attn.in_proj_bias"):
        third, shape = inner.rpartition("_")[2], stored[name].shape
        rows = shape[0] // 3 if shape else 0
        return {
            f"{layer}.self_attn.{one}_proj.{third}": (Piece(name, slice(begin, end)),)
            for one, begin, end in zip("qkv", (0, rows, 2 * rows), (rows, 2 * rows, sum(shape[:1])), strict=True)
        }
    if stem in INNER and last in ("weight", "bias"):
        return {f"{layer}.{INNER[stem]}.{last}": (Piece(name),)}
    return {f"{layer}.{inner}": (Piece(name),)}
