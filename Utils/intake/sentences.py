"""Sentence encoders: the modules that are written around an encoder, and how its features are made one for a text.

The library writes modules.json into the model's root: the encoder lies there or in a folder of its own, the pooling in another.
What stands behind the pooling (a projection, a norm) comes after the features that are judged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.files import check_files
from Utils.intake.folders import Parts, sentence_modules
from Utils.intake.reader import Reader

POOLING = "1_Pooling"
"""Where the pooling lies if modules.json does not say it."""
MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
"""How the library makes one vector of a text's features; several stand side by side."""
USUAL = ("mean",)
OLD_KEYS = (
    "pooling_mode_cls_token", "pooling_mode_max_tokens", "pooling_mode_mean_tokens", "pooling_mode_mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens", "pooling_mode_lasttoken",
)  # fmt: skip
"""The same as older versions write it, each true or false."""
BEHIND = ("Transformer", "Pooling", "Normalize", "Dense", "Dropout", "LayerNorm")
"""Modules that are judged, or see nothing of a text but its features; any other may make other features."""


@dataclass(frozen=True)
class Pooling:
    """How a sentence encoder makes one vector of a text's features."""

    modes: tuple[str, ...] = USUAL
    doubts: list[str] = field(default_factory=list)
    """Modules that were not run."""


def read_pooling(parts: Parts, reader: Reader) -> Pooling:
    """How an encoder without a summary of its own is pooled: as the files beside it say, or else by the mean.

    Raises:
        InputError: it is pooled in a way that nobody knows.
    """
    modules = sentence_modules(parts.root, reader)
    kinds = [(name.rpartition(".")[2], place) for name, place in modules]
    folder = parts.root / next((place for kind, place in kinds if kind == "Pooling" and place), POOLING)
    check_files(folder, parts.root)
    file = folder / "config.json"
    modes = modes_of(reader.json(file), file) if file.exists() else USUAL
    own = [name for (name, _), (kind, _) in zip(modules, kinds, strict=True) if kind not in BEHIND or not _of_library(name)]
    return Pooling(modes, [f"modules.json: the module {name[:80]} was not run" for name in own])


def modes_of(config: object, file: Path) -> tuple[str, ...]:
    """What the config of a pooling says, by its one newer key or by the older ones."""
    if not isinstance(config, dict):
        return USUAL
    named = config.get("pooling_mode")
    if named is None:
        asked = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        said = [MODES[OLD_KEYS.index(key)] if key in OLD_KEYS else key.removeprefix("pooling_mode_") for key in asked]
    else:
        said = named if isinstance(named, list) else [named]
    if unknown := [str(mode) for mode in said if mode not in MODES]:
        known = ", ".join(MODES)
        raise InputError(f"{file} asks for the pooling {unknown[0][:80]!r}; set pooling_mode to what the scan knows: {known}.")
    return tuple(dict.fromkeys(said)) or USUAL


def _of_library(name: str) -> bool:
    return name.startswith("sentence_transformers.")
