"""A tower's weights put back where they lie in files: no shape and no number format changes, so every byte keeps its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from Utils.intake.reader import Reader
from Utils.intake.recipe import FP8, Piece
from Utils.intake.tensors import DTYPES, Stored, read_header, read_tensors
from Utils.intake.weights import CheckedTower, plain_name


@dataclass(frozen=True)
class Spot:
    """Rows of a tower's tensor, and where they lie in a file."""

    file: Path
    tensor: str
    """Name in the tower."""
    rows: slice
    """Of this tensor; a scalar is one row."""
    shape: tuple[int, ...]
    """Of these rows."""
    kind: str
    begin: int
    """Where their bytes begin behind the header."""
    scale: Tensor | None
    """What the stored numbers are multiplied with, one for all or one for each row."""

    def of(self, weights: dict[str, Tensor]) -> Tensor:
        """The rows of a tower with these weights."""
        tensor = weights[self.tensor]
        return tensor[self.rows] if tensor.dim() else tensor

    def stored(self, rows: Tensor) -> Tensor:
        """Rows as the file keeps them: divided by their scale, at the edge of the format where they lie beyond, rounded."""
        numbers, by = rows.detach().cpu(), self._by()
        if by is not None:
            numbers = torch.where(by == 0, 0, numbers.float() / by)  # times 0 nothing else than 0 is read
        ends = torch.finfo(DTYPES[self.kind])
        return numbers.clamp(ends.min, ends.max).to(DTYPES[self.kind])

    def read(self, rows: Tensor) -> Tensor:
        """What is loaded of rows that are kept like this, in single precision."""
        numbers, by = self.stored(rows).float(), self._by()
        return numbers if by is None else numbers * by

    def _by(self) -> Tensor | None:
        return None if self.scale is None else self.scale.float().reshape(-1, *[1] * (len(self.shape) - 1))


def spots_of(checked: CheckedTower, reader: Reader) -> Iterator[Spot]:
    """Where every tensor of a tower lies; of weights only headers and scales are read."""
    recipe = checked.found.recipe or {name: (Piece(name),) for name in checked.wanted}
    for file in checked.found.files:
        stored = read_header(reader, file)
        scales = {piece.scale for name in checked.wanted for piece in recipe[name] if piece.scale}
        numbers = read_tensors(reader, file, scales.__contains__, whole=False) if scales else {}
        for name in sorted(checked.wanted):
            at, tensor = 0, plain_name(name, checked.found.family.prefix)
            for piece in recipe[name]:
                if piece.name in stored:  # else it is in another file of the same weights
                    spot = _spot(file, tensor, at, piece, stored[piece.name], numbers.get(piece.scale))
                    at = spot.rows.stop
                    yield spot


def _spot(file: Path, tensor: str, at: int, piece: Piece, stored: Stored, scale: Tensor | None) -> Spot:
    height = stored.shape[0] if stored.shape else 1
    rows = piece.rows or slice(0, height)
    count = rows.stop - rows.start
    row = (stored.end - stored.begin) // height if height else 0
    shape = (count, *stored.shape[1:]) if stored.shape else ()
    return Spot(file, tensor, slice(at, at + count), shape, stored.kind, stored.begin + rows.start * row, scale)


def patch(checked: CheckedTower, weights: dict[str, Tensor], reader: Reader) -> None:
    """Overwrite the tensors of a tower in its files with others, each in the number format in which it is stored.

    weights: by their names in the tower.

    Raises:
        ValueError: one has another shape.
    """
    for spot in list(spots_of(checked, reader)):
        rows = spot.of(weights)
        if tuple(rows.shape) != spot.shape:
            raise ValueError(f"{spot.tensor} has another shape than the one that is stored")
        with spot.file.open("r+b") as stream:
            header = int.from_bytes(stream.read(8), "little")
            stream.seek(8 + header + spot.begin)
            stream.write(spot.stored(rows).contiguous().flatten().view(torch.uint8).numpy())


def misread(checked: CheckedTower, loaded: dict[str, Tensor], weights: dict[str, Tensor], reader: Reader) -> list[str]:
    """Names of the tensors that were loaded from a tower's files and are not these weights as the files' formats round them."""
    spots = spots_of(checked, reader)
    return sorted({spot.tensor for spot in spots if not torch.equal(spot.of(loaded).cpu(), spot.read(spot.of(weights)))})


def coarse(checked: CheckedTower, reader: Reader) -> bool:
    """Whether a part of a tower is stored in FP8, of which features lose a part that can be seen."""
    return any(spot.kind in FP8 for spot in spots_of(checked, reader))
