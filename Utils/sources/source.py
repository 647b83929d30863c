"""One interface for everything that a user can name: a source yields text towers by name, each with its tokenizer.

Folders and hub ids (`Folder`) and single files of many layouts (`Checkpoint`) stand side by side behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from Utils.intake.families import Family
from Utils.intake.folders import Parts
from Utils.intake.reader import Reader


@dataclass(frozen=True)
class ReadTower:
    """A text tower with its tokenizer, as a source yields it."""

    tower: PreTrainedModel
    family: Family
    tokenizer: PreTrainedTokenizerBase
    tokenizer_files: dict[str, bytes]
    parts: Parts
    sha256: str
    """Of the weights as they were read."""
    ignored: list[str]
    """Tensors of the same files that are no part of it."""
    pooling: tuple[str, ...]
    """How a text's features are made one, where the family has no way of its own."""
    doubts: list[str]
    """What another loader may make of the same files, one sentence each."""
    dtypes: tuple[str, ...]
    """Number formats that a config tells loaders to compute in."""
    notes: list[str]
    """What was recognised, and what was lent."""


class Source(Protocol):
    """What a user's word names."""

    def encoders(self, only: str) -> list[str]:
        """Its text towers, each as a word that names it alone; only: the weights that count, as --only gives them."""

    def load(self) -> tuple[ReadTower, Reader]:
        """The tower that the word names, and the files that were read for it.

        Raises:
            InputError: it names several, none, or one that cannot be judged; one sentence with the cure.
        """

    def digest(self) -> str:
        """A hash of everything that a verdict on the tower rests on."""
