"""Textual inversions: new words of a base, put into its token table and its tokenizer as diffusers does.

The weights of the result are the base's; what the words do to prompts is measured like that of every added token
(Utils/scan/added.py).
"""

from __future__ import annotations

import tempfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from Utils.basics.errors import InputError, named, visible
from Utils.intake.digests import digest_of_files
from Utils.intake.files import TOKENIZER
from Utils.intake.reader import Reader
from Utils.intake.tensors import FLOAT_KINDS, Stored, read_header, read_tensors
from Utils.sources.onbase import OF_BASE, OnBase
from Utils.sources.source import ReadTower

if TYPE_CHECKING:
    from collections.abc import Collection

PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2", "t5xxl": "text_encoder_3"}
"""Tensors of a word that several encoders learned -> the encoder."""
NAMELESS = ("emb_params", *PARTS)
"""Tensors that do not say their word: programs take the file's name."""
MOST = 128
"""Vectors of a file; the usual encoders have 75 places for a text."""
LONGEST = 100
"""Characters of a word."""
OF_WORDS = "save those of one word in a file of their own"


class Inversion(OnBase):
    """A file of new words, or those of one text encoder in it."""

    def parts_in(self, stored: dict[str, Stored]) -> Collection[str]:
        return _parts(stored)

    def load(self) -> tuple[ReadTower, Reader]:
        if self.given.anchor in ("auto", "none"):
            raise InputError(f"{self.file} is a textual inversion, words of a base and no encoder; {OF_BASE}.")
        reader = Reader(self.file.parent)
        stored = read_header(reader, self.file)
        part = self._meant(_parts(stored))
        mine = _parts(stored)[part]
        words = {name: self._word(name) for name in mine}
        self._check({name: stored[name] for name in mine})
        tensors = read_tensors(reader, self.file, mine.__contains__, whole=False)
        rows = {name: torch.atleast_2d(tensors[name].float()) for name in mine}
        base, its_files = self.base_of(part)
        self._check_rows(rows, base.tower)
        numbers = [n for name in mine for n in self._add_word(base.tokenizer, name, words[name], len(rows[name]))]
        _add_rows(base.tower, numbers, torch.cat(list(rows.values())))
        own = sha256(f"{reader.read[self.file]['sha256']} {base.sha256}".encode()).hexdigest()
        ignored = [name for name in stored if name not in mine]
        new = {"sha256": own, "ignored": ignored, "doubts": [], "notes": [self._note(words, rows), *base.notes]}
        return self.changed(base, its_files, reader, tokenizer_files=_files_of(base.tokenizer), **new)

    def digest(self) -> str:
        """Of the file; the base is a setting, on which a report depends anyway."""
        reader = Reader(self.file.parent)
        read_tensors(reader, self.file, lambda _: False)
        return digest_of_files(list(reader.read.values()), [])

    def _meant(self, parts: dict[str, list[str]]) -> str:
        if self.part and self.part not in parts:
            raise InputError(f"{self.file} has no words of {self.part}; it has those of {', '.join(sorted(parts))}.")
        if not self.part and len(parts) > 1:
            one = self.file / max(parts)
            raise InputError(f"{self.file} has words of {len(parts)} text encoders; name one of them, such as {one}.")
        return self.part or next(iter(parts))

    def _note(self, words: dict[str, str], rows: dict[str, Tensor]) -> str:
        """What the report says that it is."""
        said = [f"{named(word)} of {len(rows[name])} vector{'s' * (len(rows[name]) > 1)}" for name, word in words.items()]
        return f"{self.file.name} is a textual inversion, added to the tokens of {self.given.anchor}: {', '.join(said)}"

    # ----------------------------------------------------------------------------------------------------------- words
    def _word(self, name: str) -> str:
        """What is typed for a tensor: its name, or that of the file in brackets, in which no ordinary word stands."""
        word = f"<{self.file.stem}>" if name in NAMELESS else name
        if not word.strip() or len(word) > LONGEST or visible(word) != word:
            raise InputError(f"{self.file} has a word that nobody can type, {named(word[:LONGEST])}; {_another(name)}.")
        return word

    def _add_word(self, tokenizer: PreTrainedTokenizerBase, name: str, word: str, vectors: int) -> list[int]:
        """Make a tokenizer read a word as tokens of its own: word, word_1, word_2 ...  -> their numbers"""
        tokens, known = [word, *(f"{word}_{i}" for i in range(1, vectors))], tokenizer.get_vocab()
        if taken := [token for token in tokens if token in known]:
            raise InputError(f"{self.file}: {self.given.anchor} has the token {named(taken[0])} already; {_another(name)}.")
        tokenizer.add_tokens(tokens)
        numbers = tokenizer.convert_tokens_to_ids(tokens)
        if tokenizer(" ".join(tokens), add_special_tokens=False).input_ids != numbers:
            reads = f"the tokenizer of {self.given.anchor} does not read {named(word)} as tokens of its own"
            raise InputError(f"{self.file}: {reads}; {_another(name)}.")
        return numbers

    # ------------------------------------------------------------------------------------------------------------ rows
    def _check(self, stored: dict[str, Stored]) -> None:
        """Refuse what is no rows of a token table, by the header."""
        for name, tensor in stored.items():
            shape = " x ".join(str(side) for side in tensor.shape) or "no side"
            if tensor.kind not in FLOAT_KINDS or len(tensor.shape) not in (1, 2) or 0 in tensor.shape:
                said = f"{named(name[:LONGEST])} ({shape}, {tensor.kind})"
                raise InputError(f"{self.file} holds no vectors of a word in {said}; fetch it again.")
        vectors = sum(tensor.shape[0] if len(tensor.shape) == 2 else 1 for tensor in stored.values())
        if vectors > MOST:
            raise InputError(f"{self.file} holds {vectors} vectors, and no text has places for more than {MOST}; {OF_WORDS}.")

    def _check_rows(self, rows: dict[str, Tensor], tower: PreTrainedModel) -> None:
        """Refuse rows that the base has no place for, or that are no numbers."""
        width = tower.get_input_embeddings().embedding_dim
        for name, some in rows.items():
            if some.shape[1] != width:
                columns = f"vectors of {some.shape[1]} columns, and {self.given.anchor} has {width}"
                raise InputError(f"{self.file} holds {columns}; {OF_BASE}.")
            if not some.isfinite().all():
                raise InputError(f"{self.file}: {named(name[:LONGEST])} holds NaN or infinite values; fetch it again.")


def _parts(names: Collection[str]) -> dict[str, list[str]]:
    """Text encoder -> the tensors that are words of it."""
    found: dict[str, list[str]] = {}
    for name in sorted(names):
        found.setdefault(PARTS.get(name, "text_encoder"), []).append(name)
    return found


def _another(name: str) -> str:
    """How a word gets another name."""
    return "rename the file" if name in NAMELESS else "save it under another word, such as `<new-word>`"


def _add_rows(tower: PreTrainedModel, numbers: list[int], rows: Tensor) -> None:
    """Put rows where their numbers are, behind those that the table has; nothing else is changed."""
    table = tower.get_input_embeddings()
    more = max(0, max(numbers) + 1 - table.num_embeddings)
    weight = torch.cat([table.weight.detach(), table.weight.new_zeros(more, table.embedding_dim)])
    weight[numbers] = rows.to(weight)
    tower.set_input_embeddings(nn.Embedding.from_pretrained(weight, padding_idx=table.padding_idx))
    tower.config.vocab_size = len(weight)


def _files_of(tokenizer: PreTrainedTokenizerBase) -> dict[str, bytes]:
    """The files that a tokenizer is saved as: what a user's loader finds beside such an encoder."""
    with tempfile.TemporaryDirectory(prefix="amber_") as place:
        tokenizer.save_pretrained(place)
        return {name: (Path(place) / name).read_bytes() for name in TOKENIZER if (Path(place) / name).is_file()}
