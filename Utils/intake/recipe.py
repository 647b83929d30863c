"""Tensors made of stored ones: a file may call them otherwise, keep three in one, one in two, or in FP8 with a scale."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.intake.tensors import Stored

FP8 = ("F8_E4M3", "F8_E5M2")
"""Number formats that are only stored; a scale may belong to them."""


@dataclass(frozen=True)
class Piece:
    """Rows of a stored tensor, times its scale."""

    name: str
    rows: slice | None = None
    scale: str | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Stored tensors that are read for it."""
        return (self.name, self.scale) if self.scale else (self.name,)


Recipe = dict[str, tuple[Piece, ...]]
"""Name in the tower -> the pieces that it is made of, one below the other."""


def made_headers(recipe: Recipe, stored: dict[str, Stored], file: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name in the tower -> shape and number format of what will be made, by the header of the file."""
    found = {}
    for target, pieces in recipe.items():
        shapes = [_shape(piece, stored, file) for piece in pieces]
        if len({shape[1:] for shape in shapes}) > 1:
            raise InputError(f"{file}: {target} is made of tensors that do not fit together; fetch the model again.")
        kinds = {stored[piece.name].kind for piece in pieces}
        rows = (sum(shape[0] for shape in shapes),) if shapes[0] else ()
        plain = sorted(kinds - {*FP8}, key=lambda kind: kind.startswith(("F", "BF")))  # what is no float is for the caller
        found[target] = (*rows, *shapes[0][1:]), plain[0] if plain else "F16"
    return found


def _shape(piece: Piece, stored: dict[str, Stored], file: Path) -> tuple[int, ...]:
    shape = stored[piece.name].shape
    if piece.rows is not None:
        if not shape or shape[0] < piece.rows.stop:
            raise InputError(f"{file}: {piece.name} has too few rows; fetch the model again.")
        shape = (piece.rows.stop - piece.rows.start, *shape[1:])
    if piece.scale is not None and _numbers(stored[piece.scale].shape) not in (1, shape[0] if shape else 1):
        raise InputError(f"{file}: {piece.scale} is no scale of a tensor or of its rows; take the file in half precision.")
    return shape


def _numbers(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def made(pieces: tuple[Piece, ...], tensors: dict[str, Tensor]) -> Tensor:
    """A tensor of the tower."""
    parts = [_part(piece, tensors) for piece in pieces]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _part(piece: Piece, tensors: dict[str, Tensor]) -> Tensor:
    tensor = tensors[piece.name]
    tensor = tensor if piece.rows is None else tensor[piece.rows]
    if tensor.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        tensor = tensor.float()
    if piece.scale is not None:
        scale = tensors[piece.scale].float().flatten()
        tensor = tensor * scale.reshape(-1, *[1] * (tensor.dim() - 1))
    return tensor
