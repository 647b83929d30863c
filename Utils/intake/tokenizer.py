"""The tokenizer of a stranger's encoder, and what else says how texts are read and summarised."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from Utils.basics.errors import InputError, first_line
from Utils.intake.families import LEGACY_EOS
from Utils.intake.files import TEXTS, check_files, read_json

MAX_TOKENIZER = 256 << 20
"""Bytes; the largest public tokenizers have some tens of megabytes."""
MAX_GROWTH = 4096
"""How much longer the replacements of a tokenizer may make a text; public ones make it no longer than four times."""
POOLING = "1_Pooling"
"""Where sentence encoders say how they summarise."""
PROBES = ["a", "A photo of a dog.", "two words, 3 signs: zzzz é"]
"""Texts that two tokenizers have to read alike before their encoders are compared."""
ENGLISH = ["a", "the quick brown fox jumps over the lazy dog", "A photo of 3 dogs, and two cats."]
"""Texts in which nothing may pass for the end of text, or the scan would read no further than that."""


def ending(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text: end of text, or the separator of BERT-like tokenizers."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


def load_tokenizer(folder: Path, tower: PreTrainedModel) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder, checked against the encoder; code of its own is refused."""
    _check_tokenizer_files(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=tower.config, local_files_only=True, trust_remote_code=False
        )  # its own config.json is not read
        highest = max(tokenizer.get_vocab().values())
        eos, pad = ending(tokenizer), tokenizer.pad_token_id
        plain = tokenizer(ENGLISH, verbose=False).input_ids  # longer than the context of a tiny model, and may be
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for malformed files, and Rust panics past it
        raise InputError(f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there.") from None
    rows = tower.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise InputError(
            f"{folder}: the tokenizer has token ids up to {highest}, the encoder {rows} rows; they do not belong together."
        )
    # a false end of text would hide most of every prompt from the scan while the model itself works as before
    if eos is None or pad is None or any(ids.count(eos) != 1 or ids[-1] != eos for ids in plain):
        raise InputError(f"{folder}: the tokenizer does not end texts with its end-of-text token; restore its files.")
    expected = getattr(tower.config, "eos_token_id", None)
    if isinstance(tower, CLIPTextModel) and expected not in (eos, LEGACY_EOS):  # the others do not pool there
        raise InputError(f"{folder}: end of text is {eos} to the tokenizer and {expected} to the encoder; restore its files.")
    return tokenizer


def summary_position(root: Path) -> int | None:
    """Which position summarises a text where a sentence encoder's pooling says the first; None: the mean of all."""
    folder = root / POOLING
    check_files(folder, root)
    pooling = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    return 0 if isinstance(pooling, dict) and pooling.get("pooling_mode_cls_token") is True else None


def _check_tokenizer_files(folder: Path) -> None:
    """Refuse tokenizer files that are larger than any, or whose replacements let a short text grow without end."""
    for file in folder.glob("*") if folder.is_dir() else ():
        if file.suffix in TEXTS and file.is_file() and file.stat().st_size > MAX_TOKENIZER:
            raise InputError(f"{file} is larger than any tokenizer; fetch the model again.")
    file = folder / "tokenizer.json"
    if file.is_file():
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(
                f"{folder} holds no usable tokenizer ({first_line(error)}); put the tokenizer files there."
            ) from None
        growth = 1
        for text in _contents(content):
            growth *= max(1, len(text))
        if growth > MAX_GROWTH:
            raise InputError(f"{file}: the tokenizer's replacements would let texts grow without end; fetch the model again.")


def _contents(tokenizer: object, depth: int = 16) -> Iterator[str]:
    """What the steps of a tokenizer.json put into a text (Replace, Prepend and the like)."""
    steps = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer")] if isinstance(tokenizer, dict) else []
    for _ in range(depth):
        nested = []
        for step in steps:
            if isinstance(step, dict):
                yield from (step[key] for key in ("content", "prepend", "replacement") if isinstance(step.get(key), str))
                nested += [part for value in step.values() if isinstance(value, list) for part in value]
        steps = nested
