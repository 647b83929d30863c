"""One hash of everything that a verdict on an encoder rests on, to tell whether a report still speaks of these files."""

from __future__ import annotations

import json
from hashlib import sha256

from Utils.intake.files import check_files
from Utils.intake.folders import find_parts
from Utils.intake.inventory import walk
from Utils.intake.reader import Reader
from Utils.intake.sentences import read_pooling
from Utils.intake.tensors import read_tensors
from Utils.intake.tokenizer import read_tokenizer_files
from Utils.intake.weights import find_tower

NO_LIMIT = 1 << 40


def files_digest(model: str, own_tokenizer: bool = True) -> str:
    """SHA-256 of what is read for an encoder (weights, config, tokenizer, pooling), and of what lies beside it, by size.

    own_tokenizer: it reads with the tokenizer that lies there, and not with another one that was named.
    """
    parts = find_parts(model)
    for folder in {parts.weights, parts.tokenizer}:
        check_files(folder, parts.root)
    reader = Reader(parts.root)
    for file in find_tower(parts, reader).files:
        read_tensors(reader, file, lambda _: False)
    if own_tokenizer:
        read_tokenizer_files(parts.tokenizer, reader, NO_LIMIT)
    read_pooling(parts, reader)
    beside = [(inside.as_posix(), path.lstat().st_size) for inside, path in walk(parts.root)]
    return digest_of_files(list(reader.read.values()), beside)


def digest_of_files(read: list[dict], beside: list[tuple[str, int]]) -> str:
    """read: {path, bytes, sha256}; beside: path and size of everything there."""
    ordered = sorted(read, key=lambda file: file["path"])
    return sha256(json.dumps([ordered, sorted(beside)], sort_keys=True).encode()).hexdigest()
