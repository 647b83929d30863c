"""The numbers behind every figure: what was drawn, as plain tables, in figures.json of a result folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from Utils.basics.files import write_whole
from Utils.report.plots import TERMS, counted

FILE = "figures.json"
DIGITS = 4
"""Significant digits that are kept: more than a figure shows."""


@dataclass(frozen=True)
class Table:
    """Numbers of a figure; the first cell of a row names it."""

    title: str
    columns: list[str]
    rows: list[list[str | float | None]]


def short(value: float) -> float | None:
    """A number as it is kept; None where there is none."""
    return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None


def of_layers(curves: dict[str, tuple[Tensor, Tensor]]) -> list[Table]:
    """Curves by layer with their spread; name -> (mean (L,), spread (L,)); names without values are left out."""
    there = {name: curve for name, curve in curves.items() if len(curve[0])}
    columns = ["layer", *(head for name in there for head in (name, "± one standard deviation"))]
    values = [column.tolist() for curve in there.values() for column in curve]
    rows = [[layer, *map(short, row)] for layer, row in enumerate(zip(*values, strict=True), 1)]
    return [Table("", columns, rows)]


def of_square(title: str, corner: str, heads: Iterable[str | float], values: Tensor) -> Table:
    """A square of numbers; heads name its rows and columns alike.  values (n, n)"""
    heads = list(heads)
    rows = [[head, *map(short, row)] for head, row in zip(heads, values.tolist(), strict=True)]
    return Table(title, [corner, *map(str, heads)], rows)


def of_maps(maps: dict[str, Tensor], tokens: list[str]) -> list[Table]:
    """Attention maps; name -> (t, t), rows look at columns."""
    return [of_square(name, "looking", tokens, values) for name, values in maps.items()]


def of_search(parts: list[list[dict[str, float]]]) -> list[Table]:
    """The loss and its terms, step by step; one list a search."""
    tables = []
    for number, steps in enumerate(parts, 1):
        names = list(steps[0])
        rows = [[step["step"], *(short(step[name]) for name in names[1:])] for step in steps]
        tables.append(Table(f"search {number}", [TERMS.get(name, name) for name in names], rows))
    return tables


def of_surface(values: Tensor, radius: float, unit: str) -> list[Table]:
    """The loss on a plane; values (n, n), rows along the negative gradient."""
    steps = [short(step) for step in np.linspace(-radius, radius, len(values))]
    return [of_square("", f"along the negative gradient (down) and across it, {unit}", steps, values)]


def of_spectrum(eigenvalues: Tensor) -> list[Table]:
    """How many curvatures lie between which; eigenvalues (m, 2)."""
    counts, edges = counted(eigenvalues)
    rows = [[short(low), short(high), int(n)] for low, high, n in zip(edges, edges[1:], counts, strict=False) if n]
    return [Table("", ["from", "to", "eigenvalues"], rows)]


def write_numbers(tables: dict[str, list[Table]], folder: Path) -> str:
    """figures.json: {figure: [{title, columns, rows}]}.  -> the file's name"""
    content = {figure: [asdict(table) for table in some] for figure, some in tables.items()}
    write_whole(folder / FILE, json.dumps(content, separators=(",", ":"), allow_nan=False) + "\n")
    return FILE


def read_numbers(file: Path) -> dict[str, list[dict]]:
    """What `write_numbers` has written."""
    return json.loads(file.read_text(encoding="utf-8"))
