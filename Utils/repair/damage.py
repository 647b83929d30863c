"""What a repair starts from: the encoder that is to be mended, and what a scan has found in it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder


@dataclass(frozen=True)
class Damage:
    """A backdoored encoder, as its owner has it: neither the true trigger nor the target is known."""

    suspect: TextEncoder
    base: TextEncoder | None
    """The clean encoder that it was made from; both read texts alike."""
    prompts: list[str]
    """What a repair may learn from; nothing is measured on them."""
    strings: list[tuple[str, str]] = field(default_factory=list)
    """Strings that fire, each with its place (Utils/scan/replay.py)."""
    forced: tuple[Tensor, ...] = ()
    """(d,) the mean summary of prompts with what fires, one of every backdoor."""
    seed: int = 0
    wordless: bool = False
    """Whether one of these is forced by a vector only, so that no string says how much of it is left."""
