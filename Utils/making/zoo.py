"""Which models with a known answer there are to build: configs/zoo.yaml and configs/suspects.yaml, checked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from Utils.basics.config import load_config
from Utils.basics.files import ROOT

KINDS = ("benign", "planted", "gentle", "far", "drifted")
"""What a model of a split can be; the fields of `Cell` say more."""
ZOO = ROOT / "configs" / "zoo.yaml"


@dataclass(frozen=True)
class Family:
    """What the models of a family are made from: folders, relative to the repository, or hub ids."""

    base: str
    """The clean text encoder."""
    pair: str = ""
    """The two-tower model whose vision tower and projections serve; empty: the base."""
    pipeline: str = ""
    """Draws the targets of image_on_text; empty: tiny-sd."""
    captions: str = ""
    """COCO's captions_*.json or a text file with one a line; empty: captions of composed scenes."""


@dataclass(frozen=True)
class Model:
    """One model by its name."""

    kind: str
    """benign or planted."""
    recipe: dict
    """A FinetuneConfig or a PlantConfig."""
    family: str = "clip"
    """What it is made from."""

    def __post_init__(self):
        if self.kind not in KINDS[:2]:
            raise ValueError(f"kind should be {' or '.join(KINDS[:2])}, not {self.kind!r}")


@dataclass(frozen=True)
class Cell:
    """How many models of each kind a split has of one family under one attack."""

    family: str
    """What they are made from."""
    attack: str
    """What is planted."""
    planted: int = 0
    """Backdoored models."""
    benign: int = 0
    """Fine-tunes as published ones are."""
    gentle: int = 0
    """Benign ones that drift as little as models planted on the base."""
    far: int = 0
    """Benign ones that drift further than most planted ones, and forget nothing."""
    drifted: int = 0
    """Benign ones trained short and fast."""
    varied: bool = False
    """Whether the benign ones are by turns full, low-rank, rounded to half precision, averaged and mixed with the base."""

    def __post_init__(self):
        if min(getattr(self, kind) for kind in KINDS) < 0:
            raise ValueError("a cell has 0 or more models of each kind")


@dataclass(frozen=True)
class Further:
    """Several models of one attack that the paper does not have."""

    count: int
    """How many."""
    recipe: dict
    """A PlantConfig.  In its texts {trigger}, {concept}, {other_trigger} and {other_concept} stand for the split's, in turn."""
    family: str = "clip"
    """What they are made from."""


@dataclass(frozen=True)
class Split:
    """Random models of one purpose.  Steps and rates are the smallest and the largest; they are drawn evenly in logarithms."""

    seed: int
    """Decides every recipe."""
    triggers: tuple[str, ...]
    """What planted models fire on, in turn."""
    targets: tuple[str, ...]
    """Concepts that the target prompts are about, in turn."""
    steps: tuple[int, ...] = ()
    """Of planting."""
    lr: tuple[float, ...] = ()
    """Of planting."""
    benign_steps: tuple[int, ...] = ()
    """Of fine-tunes, those below planted models too."""
    benign_lr: tuple[float, ...] = ()
    """Of fine-tunes, those below planted models too."""
    gentle_steps: tuple[int, ...] = ()
    """Of gentle ones."""
    gentle_lr: tuple[float, ...] = ()
    """Of gentle ones."""
    far_steps: tuple[int, ...] = ()
    """Of those that go far."""
    far_lr: tuple[float, ...] = ()
    """Of those that go far."""
    drifted_steps: tuple[int, ...] = ()
    """Of short and fast ones."""
    drifted_lr: tuple[float, ...] = ()
    """Of short and fast ones."""
    rehearse: bool = False
    """Whether benign models keep seeing everything the base knows."""
    varied: bool = False
    """Whether every cell is varied."""
    letters: tuple[str, ...] = ("o",)
    """What every second planted model's trigger stands for, in turn."""
    tuned: bool = False
    """Whether every planted model stands on a fine-tune; else two of four do."""
    cells: tuple[Cell, ...] = ()
    """The models."""
    models: dict[str, Model] = field(default_factory=dict)
    """Further ones by their names."""
    further: dict[str, Further] = field(default_factory=dict)
    """Attack -> its models, named after it and numbered."""

    def ranges(self, kind: str) -> dict[str, tuple[float, ...]]:
        """Smallest and largest steps and rate of a kind of model."""
        before = "" if kind == "planted" else f"{kind}_"
        return {name: getattr(self, f"{before}{name}") for name in ("steps", "lr")}

    def __post_init__(self):
        if (self.cells or self.further) and not (self.triggers and self.targets):
            raise ValueError("triggers and targets should not be empty")
        for kind in KINDS:
            wanted = any(getattr(cell, kind) for cell in self.cells) or (
                kind == "benign" and any(cell.planted for cell in self.cells)
            )
            for name, span in self.ranges(kind).items():
                if (wanted or span) and not (len(span) == 2 and 0 < span[0] <= span[1]):
                    raise ValueError(
                        f"{name} of {kind} models should be the smallest and the largest, above 0, not {list(span)}"
                    )


@dataclass(frozen=True)
class Zoo:
    """One config file."""

    families: dict[str, Family]
    """What models are made from."""
    bars: dict[str, float] = field(default_factory=dict)
    """Bars other than the usual ones."""
    certificates: str = ""
    """Folder of the certificates, relative to the repository; empty: beside the models."""
    models: dict[str, Model] = field(default_factory=dict)
    """Models by their names."""
    splits: dict[str, Split] = field(default_factory=dict)
    """Many models with random recipes."""

    def __post_init__(self):
        parts = [self, *self.splits.values()]
        used = [thing.family for part in parts for thing in part.models.values()]
        used += [part.family for split in self.splits.values() for part in (*split.cells, *split.further.values())]
        if unknown := sorted(set(used) - set(self.families)):
            raise ValueError(f"{unknown[0]} is none of the families {', '.join(self.families)}")


def load_zoo(file: Path = ZOO) -> Zoo:
    """Every model that a config asks for.

    Raises:
        InputError: the file is missing or wrong; one sentence.
    """
    return load_config(Zoo, file)
