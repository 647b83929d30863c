"""How much memory and time one encoder may take: what it is made of says so, and the command line may."""

from __future__ import annotations

import os
from contextlib import suppress
from itertools import islice
from pathlib import Path

import psutil

from Utils.basics.bounds import BASE_MB, READING_SECONDS, SECONDS, TIMES, Limits, Wanted
from Utils.basics.errors import InputError
from Utils.intake.files import TENSORS, TOKENIZER
from Utils.intake.folders import find_folder, find_parts
from Utils.intake.hub import file_and_part
from Utils.intake.inventory import MOST, walk
from Utils.intake.tokenizer import MAX_TOKENIZER
from Utils.sources.lenders import is_file_name

WEIGHTS_RATE, TEXTS_RATE = 20 << 20, 512 << 10
"""Processor time to read files and texts: READING_SECONDS, and a second for so many bytes of weights
and of tokenizers (suspect and base of 250,000 tokens, 17 MB each, take 35 s in all forms that loaders make of them)."""
PIECES, PIECES_SECONDS = ".model", 20
"""More of it where a tokenizer is a SentencePiece model: Python reads with some of them and makes faster ones of the others."""
READING_MB, WEIGHTS_TIMES, TEXTS_TIMES = 400, 6, 64
"""Memory that reading adds: so much at least (a tiny scan takes 70 MB, 140 where tokenizers differ), and the bytes of weights
(half precision that becomes single takes 4 times as much) and of tokenizers (44 times) so many times over."""
TEXTS_SHARE = 8
"""Of tokenizers so much counts as this part of the weights: public ones are smaller, for the row of a token takes more than its
name.  A file that is long for nothing buys nothing."""


def limits_of(model: str, anchor: str, wanted: Wanted, machine_mb: int | None = None) -> Limits:
    """What the scan of a model may take; never more memory than the machine has, this one unless `machine_mb` is given."""
    weights, texts = sizes(model)
    more = sizes(anchor) if anchor not in ("auto", "none") else (0, 0)
    weights, texts = weights + (more[0] or weights), texts + (more[1] or texts)  # a base is as large as what is made of it
    memory = min(BASE_MB + TIMES * (weights >> 20), machine_mb or psutil.virtual_memory().total >> 20)
    reading = READING_SECONDS + weights // WEIGHTS_RATE + texts // TEXTS_RATE + PIECES_SECONDS * has_pieces(model, anchor)
    reading_mb = None if wanted.memory_mb else READING_MB + (WEIGHTS_TIMES * weights + TEXTS_TIMES * texts >> 20)
    return Limits(wanted.memory_mb or memory, wanted.seconds or SECONDS, wanted.reading_seconds or reading, reading_mb)


def sizes(model: str) -> tuple[int, int]:
    """Bytes on disk of an encoder's weights, and of its tokenizer's files; nothing where there is no encoder."""
    weights = texts = 0
    with suppress(Exception):  # that it cannot be read is for the scan to say
        for file in _files(model):
            if file.is_file():
                size = _on_disk(file.stat())
                weights += size if file.suffix in TENSORS else 0
                texts += min(size, MAX_TOKENIZER) if file.name in TOKENIZER else 0
    return weights, min(texts, weights // TEXTS_SHARE)


def has_pieces(*models: str) -> bool:
    """Whether the tokenizer of one of these encoders lies there as a SentencePiece model."""
    found = False
    for model in models:
        with suppress(Exception):  # that it cannot be read is for the scan to say
            found = found or any(file.name in TOKENIZER and file.suffix == PIECES for file in _files(model))
    return found


def _files(model: str) -> list[Path]:
    """An encoder's files; of a model with several encoders all of its weights."""
    if is_file_name(model):
        return [Path(file_and_part(model)[0])]
    try:
        parts = find_parts(model)
    except InputError:
        return [path for _, path in islice(walk(find_folder(model)), MOST) if path.suffix == ".safetensors"]
    return [file for folder in {parts.weights, parts.tokenizer} for file in folder.iterdir()]


def _on_disk(file: os.stat_result) -> int:
    """What a file really holds: a name may promise terabytes that were never written."""
    return min(file.st_size, getattr(file, "st_blocks", file.st_size) * 512)
