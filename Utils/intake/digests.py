"""One hash of everything that an encoder is made of, to tell whether a report still speaks of these files."""

from __future__ import annotations

from Utils.basics.files import digest_of
from Utils.intake.files import TEXTS, check_files
from Utils.intake.folders import find_parts
from Utils.intake.tokenizer import POOLING
from Utils.intake.weights import weight_files


def files_digest(model: str) -> str:
    """SHA-256 of everything an encoder is made of: weights, config, tokenizer and pooling."""
    parts = find_parts(model)
    for folder in {parts.weights, parts.tokenizer}:
        check_files(folder, parts.root)
    there = {file for folder in (parts.weights, parts.tokenizer) for file in folder.iterdir()}
    there.add(parts.root / POOLING / "config.json")
    small = [file for file in there if file.suffix in TEXTS and file.is_file()]
    return digest_of(weight_files(parts.weights)[0] + sorted(small))
