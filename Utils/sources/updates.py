"""What a LoRA changes, by the names of its tensors: in which text encoder, at which matrix, and in a form that is understood.

peft, diffusers and kohya's programs name the two factors of a change differently; what they mean is the same.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field

from Utils.basics.errors import InputError, OutOfScope

DOWN = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora_linear_layer.down.weight", "lora.down.weight")
UP = ("lora_up.weight", "lora_B.weight", "lora_B.default.weight", "lora_linear_layer.up.weight", "lora.up.weight")
ALPHA = ("alpha",)
ROLES = {ending: role for role, endings in (("down", DOWN), ("up", UP), ("alpha", ALPHA)) for ending in endings}
"""How a name ends -> what it is: the factors, and the number that their product is divided with their rank by."""
FOREIGN = (
    (r"\.hada_", "LoHa"), (r"\.lokr_", "LoKr"), (r"\.b?oft_", "OFT"), (r"\.dora_scale|lora_magnitude_vector", "DoRA"),
    (r"\.lora_mid\.", "a Tucker decomposition"), (r"lora_embedding_", "a change of the token table"), (r"\.on_input$", "IA3"),
    (r"\.(a1|a2|b1|b2|bm)\.weight$|glora", "GLoRA"), (r"\.(diff|diff_b|w_norm|b_norm)$|lora_B\.bias$", "a whole difference"),
    (r"^lycoris_", "LyCORIS"), (r"modules_to_save", "a whole layer"), (r"(vera|lora)_(lambda|vector)_", "VeRA"),
)  # fmt: skip
"""Names of other kinds of changes."""
BLOCKS = r"(unet|transformer|(down|up|double|single)_blocks|mid_block|(single_)?transformer_blocks|blocks|conv_in)\b"
KOHYA = r"(lora_)?(unet|transformer|prior|controlnet|vae|decoder|single|double)_"
ELSEWHERE = re.compile(rf"{KOHYA}|(base_model\.model\.|model\.)?(diffusion_model\b|{BLOCKS})")
"""What changes of other parts of a pipeline begin with."""
BUNDLED = re.compile(r"bundle_emb\.|(clip_[lg]|t5)$|emb_params$")
"""Textual inversions that a file holds as well."""
PLACES = (
    (r"lora_te(?:1|2|3|)_", r"lora_te(\d?)_"),
    (r"text_encoder(?:_\d)?\.", r"text_encoder(?:_(\d))?\."),
    (rf"base_model\.model\.(?!{BLOCKS}|diffusion_model\b)", r"base_model\.model\.()"),
)
"""What changes of text encoders begin with, and which encoder it is."""
CURE = "merge it into its base with the program that made it, and scan the text encoder of the result"


@dataclass(frozen=True)
class Change:
    """Stored names of one matrix's change."""

    down: str
    up: str
    alpha: str | None


@dataclass
class Changes:
    """What a file changes."""

    parts: dict[str, dict[str, Change]] = field(default_factory=dict)
    """Text encoder -> name of the matrix, as the file has it -> its change."""
    elsewhere: list[str] = field(default_factory=list)
    """Tensors of other parts of a pipeline."""
    bundled: list[str] = field(default_factory=list)
    """Textual inversions."""


def changes_in(names: Collection[str], file: object) -> Changes:
    """What tensors of these names change.

    Raises:
        InputError: a change of a text encoder is of a kind that is not understood, or not whole.
        OutOfScope: no text encoder is changed.
    """
    found = Changes()
    roles: dict[tuple[str, str], dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        place = _place(name)
        if place is None and BUNDLED.match(name):
            found.bundled.append(name)
        elif place is None and ELSEWHERE.match(name):
            found.elsewhere.append(name)
        elif place is None:
            raise InputError(f"{file} holds {name[:100]}, {_kind(name)}; {CURE}.")
        else:
            part, rest = place
            target, role = _role(rest)
            if role is None:
                raise InputError(f"{file} changes its text encoder by {name[:100]}, {_kind(name)}; {CURE}.")
            if role in roles[part, target]:
                raise InputError(f"{file} holds two changes of {target[:100]}; save it anew.")
            roles[part, target][role] = name
    for (part, target), named in roles.items():
        if not {"down", "up"} <= named.keys():
            raise InputError(f"{file} holds only a part of the change of {target[:100]}; fetch it again.")
        found.parts.setdefault(part, {})[target] = Change(named["down"], named["up"], named.get("alpha"))
    if not found.parts:
        besides = f"; textual inversions in it ({found.bundled[0][:80]}) are not judged" if found.bundled else ""
        raise OutOfScope(f"nothing in {file} touches a text encoder, and the rest of a pipeline is out of scope{besides}.")
    return found


def _kind(name: str) -> str:
    """What kind of change a name is of."""
    return next((f"which is {kind}" for pattern, kind in FOREIGN if re.search(pattern, name)), "which is no form that is known")


def _place(name: str) -> tuple[str, str] | None:
    """The text encoder that a tensor changes, and the rest of its name; None: none."""
    for begins, numbered in PLACES:
        if re.match(begins, name):
            match = re.match(numbered, name)
            number = match[1] or "1"
            return "text_encoder" + (f"_{number}" if number != "1" else ""), name[match.end() :]
    return None


def _role(rest: str) -> tuple[str, str | None]:
    """The matrix that a tensor belongs to, and what it is of its change; None: nothing that is known."""
    for ending, role in ROLES.items():
        if rest.endswith(f".{ending}"):
            return rest.removesuffix(f".{ending}"), role
    return rest, None
