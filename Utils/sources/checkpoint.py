"""Single files with text towers in them, as web UIs, trainers and OpenCLIP write them.

Of a file its header is read and the tensors of one tower, and nothing else; the hash in the report is of these bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from Utils.basics.errors import InputError
from Utils.intake.digests import NO_LIMIT, digest_of_files
from Utils.intake.files import check_files
from Utils.intake.folders import Parts
from Utils.intake.inventory import walk
from Utils.intake.reader import Reader
from Utils.intake.recipe import Recipe, made_headers
from Utils.intake.sentences import USUAL
from Utils.intake.tensors import Stored, read_header, read_tensors
from Utils.intake.tokenizer import load_tokenizer, read_tokenizer_files
from Utils.intake.weights import CheckedTower, FoundTower, check_tower, load_tower, weights_hash
from Utils.sources.conversion import ONE, recipe_of
from Utils.sources.layouts import OTHER, T5, Tower, grouped, towers_in
from Utils.sources.lenders import Given, Lender, Texts, could_lend, lender_for, tokenizer_for
from Utils.sources.shapes import guessed, layers_in, size_of, used_layers
from Utils.sources.source import ReadTower

SHOWN = 4
"""Groups of tensors that a refusal names."""


@dataclass(frozen=True)
class Chosen:
    """The tower that is read, and what it takes."""

    tower: Tower
    found: FoundTower
    texts: Texts
    ignored: list[str]
    notes: list[str]


class Checkpoint:
    """A file that holds text towers, or one part of it."""

    def __init__(self, model: str, file: Path, part: str, given: Given, alone: bool = True):
        """alone: the file was named; else the folder that it lies in."""
        self.model, self.file, self.part, self.given, self.alone = model, file, part, given, alone

    def encoders(self, only: str) -> list[str]:
        if only and only != self.file.name:
            raise InputError(f"--only {only}: {self.file} is the file that was named; leave --only out.")
        towers = self._towers(read_header(Reader(self.file.parent), self.file))
        named = self.model.rstrip("/\\")
        return [self.model] if self.part or len(towers) < 2 else [f"{named}/{tower.part}" for tower in towers]

    def checked(self, reader: Reader) -> CheckedTower:
        """Where the tensors of its tower lie; of weights headers are read only."""
        return check_tower(self._choose(reader).found, reader)

    def load(self) -> tuple[ReadTower, Reader]:
        reader = Reader(self.file.parent)
        chosen = self._choose(reader)
        tower, _ = load_tower(check_tower(chosen.found, reader), reader)
        check_files(chosen.texts.folder, chosen.texts.root)
        files, doubts = read_tokenizer_files(chosen.texts.folder, reader, tower.get_input_embeddings().num_embeddings)
        tokenizer = load_tokenizer(chosen.texts.folder, tower, files)
        parts = Parts(self.file.parent, self.file.parent, chosen.texts.folder, self.file if self.alone else None, self.alone)
        own = chosen.texts.root == self.file.parent  # of a lent tokenizer nobody doubts who reads it how
        read = ReadTower(
            tower, chosen.found.family, tokenizer, files, parts, weights_hash(chosen.found, reader), chosen.ignored, USUAL,
            doubts if own else [], (), chosen.notes,
        )  # fmt: skip
        return read, reader

    def digest(self) -> str:
        reader = Reader(self.file.parent)
        chosen = self._choose(reader)
        names = {name for pieces in (chosen.found.recipe or {}).values() for piece in pieces for name in piece.names}
        read_tensors(reader, self.file, names.__contains__, whole=False)
        read_tokenizer_files(chosen.texts.folder, reader, NO_LIMIT)
        beside = [] if self.alone else [(inside.as_posix(), path.lstat().st_size) for inside, path in walk(self.file.parent)]
        return digest_of_files(list(reader.read.values()), beside)

    def _choose(self, reader: Reader) -> Chosen:
        """The tower that is meant, laid out, with what is lent to it."""
        stored = read_header(reader, self.file)
        tower = self._meant(self._towers(stored))
        recipe, _ = recipe_of(tower, stored, None, self.file)
        lender, missing = self._lender(tower, recipe, stored)
        headers = made_headers(recipe, stored, self.file)
        there = layers_in(headers, self.file)
        used = used_layers(tower, there, lender)
        recipe, done = recipe_of(tower, stored, used, self.file)
        guess = guessed(tower, made_headers(recipe, stored, self.file), lender, self.file, reader)
        texts = tokenizer_for(self.model, self.file, self.given, lender, missing)
        notes = [
            f"{self.file.name} was read as {tower.layout}; config from the shapes of its tensors, {guess.source}; "
            f"tokenizer from {texts.whose}"
        ]
        if used < there:
            notes.append(f"the last of {there} layers was left out, as Stable Diffusion 2.x does")
        found = FoundTower(self.file, guess.config, [self.file], {}, recipe)
        return Chosen(tower, found, texts, grouped(stored.keys() - done), notes)

    def _lender(self, tower: Tower, recipe: Recipe, stored: dict[str, Stored]) -> tuple[Lender | None, list[dict]]:
        vocabulary, width = size_of(made_headers(recipe, stored, self.file), tower.form, self.file)
        asked = ("t5" if tower.form == T5 else "clip_text_model", width, vocabulary)
        lender = lender_for(self.model, self.given.anchor, *asked)
        return lender, [] if lender else could_lend(*asked)

    def _towers(self, stored: dict[str, Stored]) -> list[Tower]:
        """Every text tower in the file; of files in two layouts nobody can say what a loader takes."""
        towers = towers_in(stored)
        if not towers:
            groups = sorted({name.split(".")[0] for name in stored})[:SHOWN]
            raise InputError(
                f"{self.file} holds no text encoder, only {', '.join(one[:40] for one in groups)}; "
                "give the file or folder of the text encoder that is used with it."
            )
        if len(layouts := sorted({tower.layout for tower in towers})) > 1:
            raise InputError(f"{self.file} is {' and '.join(layouts)} at once; {ONE}.")
        return towers

    def _meant(self, towers: list[Tower]) -> Tower:
        there = {tower.part: tower for tower in towers}
        if self.part and self.part not in there:
            raise InputError(f"{self.file} has no {self.part}; it holds {', '.join(there)}.")
        if not self.part and len(towers) > 1:
            one = self.file / towers[1].part
            raise InputError(f"{self.file} holds {len(towers)} text encoders; name one of them, such as {one}.")
        tower = there[self.part] if self.part else towers[0]
        if tower.form == OTHER:
            what = f"{self.model} holds an encoder whose config its tensors do not tell ({tower.root[:80] or 'no CLIP, no T5'})"
            alone = "put its config.json and tokenizer beside it, call it model.safetensors, and give the folder"
            raise InputError(f"{what}; {alone if len(towers) == 1 else 'the scan reads CLIP and T5 out of such files'}.")
        return tower
