"""Which models of a split are scanned, in what order and how: configs/benchmark.yaml, checked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from pathlib import Path

from Backdoor_Attack.recipes import Job, drawn, jobs
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.making.zoo import Zoo
from Utils.scan.calibration import settings_hash
from Utils.scan.effort import EFFORTS, USUAL, config_of
from Utils.scan.settings import ScanConfig

OURS = "ours"
"""The way that every config has: the scan as it is shipped."""
STANDARD = "standard"
"""The size that the table counts what is missing by."""


@dataclass(frozen=True)
class Counts:
    """How many models of every cell of family and attack."""

    planted: int = 0
    """With a backdoor of the paper's."""
    benign: int = 0
    """Fine-tunes."""
    further: int = 0
    """Of every attack that the paper does not have."""
    families: tuple[str, ...] = ()
    """Of these alone; empty: of all."""


@dataclass(frozen=True)
class Way:
    """One way to scan."""

    config: str = "configs/scan.yaml"
    """The scan's settings, relative to the repository."""
    effort: str = USUAL
    """How much is searched."""
    changes: dict[str, int] = field(default_factory=dict)
    """Settings that differ from the config's, by the names of their flags."""
    sibling: bool = False
    """Whether a benign fine-tune of the same cell stands in for the base."""

    def __post_init__(self):
        if self.effort not in EFFORTS:
            raise ValueError(f"effort should be one of {', '.join(EFFORTS)}, not {self.effort!r}")

    def settings(self) -> ScanConfig:
        return config_of(ScanConfig, ROOT / self.config, self.effort, self.changes)


@dataclass(frozen=True)
class Evaluation:
    """What is scanned, and how."""

    split: str
    """Judges."""
    further: str
    """The split of the attacks that the paper does not have."""
    seed: int
    """Of every scan."""
    settings: dict[str, Way]
    """The ways, by their names."""
    sizes: dict[str, dict[str, Counts]]
    """Size -> way -> how many are scanned so, the first of those that the split has."""

    def __post_init__(self):
        if OURS not in self.settings:
            raise ValueError(f"settings should have {OURS}, which the others are compared with")
        if STANDARD not in self.sizes:
            raise ValueError(f"sizes should have {STANDARD}, which the table is complete by")
        for size, counts in self.sizes.items():
            if unknown := sorted(set(counts) - set(self.settings)):
                raise ValueError(f"sizes: {size}: {unknown[0]} is none of the settings {', '.join(self.settings)}")


@dataclass(frozen=True)
class Benchmark:
    """configs/benchmark.yaml."""

    evaluation: Evaluation


@dataclass(frozen=True)
class Turn:
    """One scan."""

    job: Job
    split: str
    settings: str
    way: Way
    seed: int
    device: str
    sibling: Job | None = None
    """The benign model that stands in for the base."""

    @property
    def row(self) -> Path:
        return ROOT / "Results" / "benchmark" / self.split / self.settings / f"{self.job.name}.json"

    def is_done(self, bars: dict[str, float]) -> bool:
        """Whether a whole row is there: of the model as it is drawn now, with these settings and this seed.

        bars: the zoo's.
        """
        row = read_row(self.row) or {}
        told = [row.get(name) for name in ("drawn", "config", "seed")]
        return told == [drawn(self.job, bars), settings_hash(asdict(self.way.settings())), self.seed]

    def folder(self, job: Job) -> Path:
        return ROOT / "Data" / "Zoo" / self.split / job.name

    @property
    def jobs(self) -> list[Job]:
        """The model, and what stands in for its base."""
        return [self.job, self.sibling] if self.sibling else [self.job]

    @property
    def models(self) -> list[Path]:
        return [self.folder(job) for job in self.jobs]

    @property
    def model(self) -> Path:
        return self.folder(self.job)

    @property
    def anchor(self) -> Path:
        return self.folder(self.sibling) if self.sibling else ROOT / self.job.family.base


def read_row(file: Path) -> dict | None:
    """A row, if it is there and whole."""
    try:
        row = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) else None


def cells_of(cfg: Evaluation, zoo: Zoo, split: str) -> dict[tuple[str, str, str, str], list[Job]]:
    """(family, attack, kind, split) -> models; kind: a field of `Counts`.  Further attacks go with the split that judges."""
    cells: dict[tuple[str, str, str, str], list[Job]] = {}
    for where in (split, cfg.further) if split == cfg.split else (split,):
        for job in jobs(zoo, where):
            kind = "planted" if hasattr(job.recipe, "trigger") else "benign"
            named = "further" if where == cfg.further else kind
            if "attack" in job.labels:
                cells.setdefault((job.labels["family"], job.labels["attack"], named, where), []).append(job)
    return {cell: in_turn(some) for cell, some in cells.items()}


def in_turn(some: list[Job]) -> list[Job]:
    """Planted models on the base and on fine-tunes by turns, so that few are not all of one kind."""
    on_base, on_a_fine_tune = ([job for job in some if (job.origin is not None) == on] for on in (False, True))
    return [job for pair in zip_longest(on_base, reversed_pairs(on_a_fine_tune)) for job in pair if job]


def reversed_pairs(some: list[Job]) -> list[Job]:
    """Every two the other way round: of the zoo's draws every second trigger stands for letters, on either ground."""
    return [job for start in range(0, len(some), 2) for job in reversed(some[start : start + 2])]


def turns(cfg: Evaluation, zoo: Zoo, split: str, size: str, device: str, ways: list[str] | None = None) -> Iterator[Turn]:
    """Every scan of a size, or those in some ways.

    First comes one model of each kind and cell, then the next of each, so that a part of the table is a fair one.

    Raises:
        InputError: no such split, size or way.
    """
    for what, name, known in (("sizes", size, cfg.sizes), ("splits", split, zoo.splits)):
        if name not in known:
            raise InputError(f"{name} is none of the {what} {', '.join(known)}.")
    counts = cfg.sizes[size]
    if unknown := sorted(set(ways or ()) - set(counts)):
        raise InputError(f"{unknown[0]} is none of the settings {', '.join(counts)} that the size {size} has.")
    cells = cells_of(cfg, zoo, split)
    for number in range(max(map(len, cells.values()), default=0)):
        for (family, attack, kind, where), some in cells.items():
            for settings in ways or counts:
                way, count = cfg.settings[settings], counts[settings]
                if number >= min(len(some), getattr(count, kind)) or family not in (count.families or (family,)):
                    continue
                others = cells.get((family, attack, "benign", where), [])[: counts[OURS].benign] if way.sibling else []
                sibling = others[(number + 1) % len(others)] if len(others) > 1 else None
                if sibling or not way.sibling:
                    yield Turn(some[number], where, settings, way, cfg.seed, device, sibling)
