"""Folders as libraries write them: a text encoder, a model with one in it, a pipeline with several; also from the hub."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from Utils.intake.candidates import encoders_of
from Utils.intake.digests import NO_LIMIT, digest_of_files, files_digest
from Utils.intake.files import check_files
from Utils.intake.folders import Parts, find_parts
from Utils.intake.reader import Reader
from Utils.intake.sentences import Pooling, read_pooling
from Utils.intake.tokenizer import load_tokenizer, read_tokenizer_files
from Utils.intake.weights import CheckedTower, check_tower, find_tower, load_tower, weights_hash
from Utils.sources.lenders import Given, named_tokenizer
from Utils.sources.source import ReadTower


class Folder:
    """A model in a folder, with its config."""

    def __init__(self, model: str, given: Given):
        self.model, self.given = model, given

    def encoders(self, only: str) -> list[str]:
        return encoders_of(self.model, only)

    @cached_property
    def parts(self) -> Parts:
        return find_parts(self.model)

    def checked(self, reader: Reader) -> CheckedTower:
        """Where the tensors of its tower lie; of weights headers are read only."""
        check_files(self.parts.weights, self.parts.root)
        return check_tower(find_tower(self.parts, reader), reader)

    def load(self) -> tuple[ReadTower, Reader]:
        parts, notes = self.parts, []
        root = parts.root
        if self.given.tokenizer:
            texts = named_tokenizer(self.given.tokenizer)
            parts, root = replace(parts, tokenizer=texts.folder), texts.root
            notes = [f"its tokenizer is that of {texts.whose}, as --tokenizer says"]
        check_files(parts.tokenizer, root)
        reader = Reader(parts.root)
        checked = self.checked(reader)
        found = checked.found
        tower, ignored = load_tower(checked, reader)
        files, doubts = read_tokenizer_files(parts.tokenizer, reader, tower.get_input_embeddings().num_embeddings)
        tokenizer = load_tokenizer(parts.tokenizer, tower, files)
        pooling = Pooling() if found.family.head else read_pooling(parts, reader)
        read = ReadTower(
            tower, found.family, tokenizer, files, parts, weights_hash(found, reader), ignored, pooling.modes,
            [*found.config.doubts, *checked.doubts, *doubts, *pooling.doubts], found.config.dtypes, [*checked.notes, *notes],
        )  # fmt: skip
        return read, reader

    def digest(self) -> str:
        own = files_digest(self.model, own_tokenizer=not self.given.tokenizer)
        if not self.given.tokenizer:
            return own
        texts = named_tokenizer(self.given.tokenizer)
        reader = Reader(texts.root)
        read_tokenizer_files(texts.folder, reader, NO_LIMIT)
        return digest_of_files([*reader.read.values(), {"path": "", "sha256": own}], [])
