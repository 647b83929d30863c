"""Files that are no encoder of their own: they change a base, or one text encoder of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.folders import Parts, matching_part
from Utils.intake.reader import Reader
from Utils.intake.tensors import Stored, read_header
from Utils.sources.lenders import Given
from Utils.sources.source import ReadTower, Source

OF_BASE = "name the base that it was made for with --anchor"


class OnBase(ABC):
    """A change of a base in a file, or the part of it that one text encoder gets."""

    def __init__(self, model: str, file: Path, part: str, given: Given, find: Callable[[str, Given], Source]):
        """find: what finds the source of the base."""
        self.model, self.file, self.part, self.given, self.find = model, file, part, given, find

    @abstractmethod
    def parts_in(self, stored: dict[str, Stored]) -> Collection[str]:
        """The text encoders that it changes."""

    def encoders(self, only: str) -> list[str]:
        if only and only != self.file.name:
            raise InputError(f"--only {only}: {self.file} is the file that was named; leave --only out.")
        parts = self.parts_in(read_header(Reader(self.file.parent), self.file))
        named = self.model.rstrip("/\\")
        return [self.model] if self.part else [f"{named}/{part}" for part in sorted(parts)]

    def base_of(self, part: str) -> tuple[ReadTower, Reader]:
        """The encoder of the base that a part changes, and the files that were read for it."""
        return self.find(matching_part(self.given.anchor, f"{self.file}/{part}"), Given(self.given.tokenizer)).load()

    def changed(self, base: ReadTower, its_files: Reader, reader: Reader, **new: object) -> tuple[ReadTower, Reader]:
        """The base as it is now, with what is new of it, and all files that were judged: the base's too."""
        parts = Parts(self.file.parent, self.file.parent, base.parts.tokenizer, self.file, alone=True)
        for file, entry in its_files.read.items():
            reader.read[file] = entry | {"path": file.as_posix()}
        return replace(base, parts=parts, **new), reader
