"""What a single file does not hold is lent: its tokenizer, and of its config what no shape tells.

By the user (--tokenizer), by the folder that the file lies in, by the base that the user names, or by a known base of the same
width and vocabulary that is at hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedConfig

from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.intake.config import read_config
from Utils.intake.files import TOKENIZER
from Utils.intake.folders import Parts, find_parts, matching_part
from Utils.intake.hub import file_and_part, is_path, located
from Utils.sources.registry import at_hand, fetching, known_anchors

OWN_TOKENIZER = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model")
"""One of these is in every folder of a tokenizer."""


@dataclass(frozen=True)
class Given:
    """What the user says beside the name of a model."""

    tokenizer: str = ""
    """A folder or hub id; empty: the model's own, or a lent one."""
    anchor: str = "auto"
    lora_scale: float = 1.0


@dataclass(frozen=True)
class Lender:
    """A base that lends."""

    name: str
    parts: Parts
    config: PreTrainedConfig
    chosen: bool
    """By the user, so that it may also say what files of this kind usually say otherwise."""


def is_file_name(model: str) -> bool:
    """Whether a word names a single file, or a part of one, and no folder."""
    file, _ = file_and_part(model)
    return is_path(file) and Path(file).is_file()


def lender_for(model: str, anchor: str, kind: str, width: int, vocabulary: int) -> Lender | None:
    """The base that lends to an encoder of this kind, width and vocabulary; None: there is none at hand.

    Raises:
        InputError: the base that the user names is another one.
    """
    if anchor not in ("auto", "none") and not is_file_name(anchor):
        base = _lender(matching_part(anchor, model), anchor, chosen=True)
        if _shape(base.config) != (kind, width, vocabulary):
            raise InputError(
                f"the anchor {anchor} has {_words(base.config)}, the text encoder of {model} {width} and {vocabulary}; "
                "give its own base."
            )
        return base
    for entry in _alike(kind, width, vocabulary):
        if place := at_hand(entry):
            try:
                return _lender(str(place), entry["name"], chosen=False)
            except InputError:
                continue
    return None


def _alike(kind: str, width: int, vocabulary: int) -> list[dict]:
    """Known bases of a kind, width and vocabulary."""
    wanted = (kind, width, vocabulary)
    return [e for e in known_anchors() if tuple(e["dimensions"][n] for n in ("model_type", "width", "vocabulary")) == wanted]


def _lender(model: str, name: str, chosen: bool) -> Lender:
    parts = find_parts(ROOT / model if (ROOT / model).exists() else model)
    config = read_config(parts.weights)
    try:
        parsed = config.family.config.from_dict(config.values)
    except Exception:  # a config can be wrong in any way
        raise InputError(f"the anchor {name} has a config.json of no use; fetch it again.") from None
    return Lender(name, parts, getattr(parsed, "text_config", parsed), chosen)


def _shape(config: PreTrainedConfig) -> tuple[str, int, int]:
    kind = config.model_type.removesuffix("_text_model")
    return (f"{kind}_text_model" if kind == "clip" else kind), config.hidden_size, config.vocab_size


def _words(config: PreTrainedConfig) -> str:
    return f"width {config.hidden_size} and {config.vocab_size} tokens"


@dataclass(frozen=True)
class Texts:
    """Where a tokenizer lies, and whose it is."""

    folder: Path
    root: Path
    """Nothing outside is followed."""
    whose: str


def tokenizer_for(model: str, file: Path, given: Given, lender: Lender | None, missing: list[dict]) -> Texts:
    """The tokenizer for an encoder in a single file.

    missing: known bases that would lend theirs.

    Raises:
        InputError: there is none; one sentence with the cure.
    """
    if given.tokenizer:
        return named_tokenizer(given.tokenizer)
    if any((file.parent / name).is_file() for name in OWN_TOKENIZER):
        return Texts(file.parent, file.parent, "its own folder")
    if lender:
        return Texts(lender.parts.tokenizer, lender.parts.root, lender.name)
    fetch = f", or fetch a base that has it with {fetching(missing[:1])}" if missing else ""
    raise InputError(f"{model} holds no tokenizer: name the folder of one with --tokenizer, or its base with --anchor{fetch}.")


def named_tokenizer(named: str) -> Texts:
    """The tokenizer that --tokenizer names: a folder of one, or of a model that has one."""
    folder = located(named)
    for place in (folder, folder / "tokenizer"):
        if place.is_dir() and any((place / name).is_file() for name in TOKENIZER):
            return Texts(place, folder, named)
    raise InputError(f"--tokenizer {named}: no tokenizer lies there; give a folder with tokenizer.json or vocab.json.")


def could_lend(kind: str, width: int, vocabulary: int) -> list[dict]:
    """Known bases that are not at hand and would lend."""
    return [entry for entry in _alike(kind, width, vocabulary) if at_hand(entry) is None]
