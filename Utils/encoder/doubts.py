"""Could somebody load another encoder from the same place than the one that was judged?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import alike, other_weights
from Utils.intake.inventory import Beside, look_around
from Utils.intake.pickles import named_tensors
from Utils.intake.weights import plain_name

PICKLE = "a pickle"


@dataclass(frozen=True)
class Trust:
    """What the user says about the things that lie beside the judged ones."""

    only: str = ""
    """The weights that count, by name; there is no doubt about others then."""
    compare_pickles: bool = False
    """Read pickles, as plain tensors, to see whether they hold the same numbers."""


def doubts_about(encoder: TextEncoder, trust: Trust) -> tuple[list[Beside], list[str]]:
    """What lies beside the judged files, and one sentence for everything that a loader could make another encoder of."""
    files = encoder.files
    if files.parts.alone:  # other models
        return [], files.doubts
    named = bool(trust.only) or files.parts.file is not None
    whole = (files.parts.weights / "config.json").is_file()  # else nothing beside it could be read by it
    judged = set() if named or not whole else {file for one in other_weights(files.parts) for file in one.files}
    beside = look_around(files.parts, {file["path"] for file in files.read}, judged, named)
    if trust.compare_pickles:
        beside = [_compared(b, encoder) if b.doubt and b.kind == PICKLE else b for b in beside]
    doubts = [f"{b.path} ({b.kind}) lies there and was not judged" for b in beside if b.doubt]
    return beside, [*doubts, *files.doubts]


def _compared(pickle: Beside, encoder: TextEncoder) -> Beside:
    """A pickle that holds the judged numbers, as they are or rounded, is no doubt; nothing of it is executed."""
    try:
        own, same = encoder.model.state_dict(), 0
        content = torch.load(encoder.files.parts.root / pickle.path, map_location="cpu", weights_only=True)
        tensors, others = named_tensors(content)
        if any(plain_name(name, encoder.family.prefix) in own for name in others):
            return replace(pickle, kind="a pickle with other tensors")
        for name, tensor in tensors.items():
            mine = own.get(plain_name(name, encoder.family.prefix))
            if mine is None:
                continue
            if not alike(mine.cpu(), tensor):
                return replace(pickle, kind="a pickle with other numbers")
            same += 1
    except Exception as error:  # a pickle can be wrong in any way
        return replace(pickle, kind=f"a pickle that holds more than tensors ({type(error).__name__})")
    if same == 0:
        return replace(pickle, kind="a pickle with other tensors")
    return Beside(pickle.path, "a pickle with the same numbers")
