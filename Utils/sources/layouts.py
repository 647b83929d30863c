"""Which text towers lie in a single file, by the names of its tensors, and who writes files like that.

A tower is found by its own names (a token table beside layers of a known form) wherever in the file it lies; what stands before
these names says what kind of file it is.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

CLIP, OPEN_CLIP, T5, OTHER = "clip", "open_clip", "t5", "other"
"""Forms of towers: Hugging Face's CLIP, OpenCLIP's (also OpenAI's own and LongCLIP's), T5, and those that are not read."""
SD1, SD2, SDXL = "a Stable Diffusion 1.x checkpoint", "a Stable Diffusion 2.x checkpoint", "an SDXL checkpoint"
BUNDLE, BARE, OWN = "an all-in-one file of SD 3 or Flux", "a text encoder in a file of its own", "a file of OpenCLIP"
LONG, OPENAI = "a file of LongCLIP", "a file of OpenAI's CLIP"
LAYOUTS = (
    (CLIP, r"cond_stage_model\.transformer\.", SD1, 1),
    (OPEN_CLIP, r"cond_stage_model\.model\.", SD2, 1),
    (CLIP, r"conditioner\.embedders\.0\.transformer\.", SDXL, 1),
    (OPEN_CLIP, r"conditioner\.embedders\.[01]\.model\.", SDXL, 2),
    (None, r"text_encoders\.clip_l\.(transformer\.)?", BUNDLE, 1),
    (None, r"text_encoders\.clip_[gh]\.(transformer\.)?", BUNDLE, 2),
    (None, r"text_encoders\..*", BUNDLE, 3),
    (OPEN_CLIP, r"(module\.)?(text\.)?", OWN, 1),
    (None, r"(_orig_mod\.|module\.|model\.)*((clip_[lgh]|t5\w*|text_encoder\w*)\.)?(transformer\.)?", BARE, 1),
)
"""Form (None: any), what stands before the names of its tensors, whose file it is, and where the tower stands among several."""
FORMS = (
    (CLIP, r"(text_model\.)?embeddings\.token_embedding\.weight"),
    (OPEN_CLIP, r"transformer\.resblocks\.0\.attn\.in_proj_weight"),
    (T5, r"encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight"),
    (OTHER, r"(embeddings\.word_embeddings|embed_tokens|wte|tok_embeddings|word_embedding|token_embedding)\.weight"),
)
"""Form of a tower -> a tensor that each has once."""
SIGLIP = ("text_model.head.weight", "head.weight")
"""What SigLIP has beside CLIP's names."""
OWN_TABLES = ("", "embeddings.", "text_model.embeddings.", "encoder.", "decoder.")
"""Where in a tower that is read its own token table lies, or that of its decoder."""
VISION = re.compile(r"(^|\.)(visual|vision_model|vision_tower|image_encoder)\.")
FEW_BITS = re.compile(r"\.(qweight|qzeros|absmax|quant_map|nested_absmax|quant_state\..*|SCB|weight_format|g_idx)$")
"""Tensors that bitsandbytes, GPTQ and AWQ put beside weights of four or eight bits."""


@dataclass(frozen=True)
class Tower:
    """A text tower in a file."""

    form: str
    root: str
    """What stands before the names of its tensors."""
    layout: str
    """What kind of file it is, in words."""
    place: int
    """Where it stands among several."""
    part: str = "text_encoder"
    """What it is called, as pipelines call theirs."""


def towers_in(names: Collection[str]) -> list[Tower]:
    """Every text tower among tensors of these names, in the order in which pipelines have them."""
    found: dict[str, Tower] = {}
    for form, sign in FORMS:
        for name in names:
            match = re.fullmatch(rf"(.*?){sign}", name)
            if not match or (match[1] and not match[1].endswith(".")) or VISION.search(name):
                continue
            root = match[1]
            if form == OTHER and any(root.startswith(other) and root.removeprefix(other) in OWN_TABLES for other in found):
                continue
            siglip = form == CLIP and any(f"{root}{head}" in names for head in SIGLIP)
            found.setdefault(root, Tower(OTHER if siglip else form, root, *_layout(form, root, names)))
    ordered = sorted(found.values(), key=lambda tower: (tower.place, tower.root))
    return [
        Tower(t.form, t.root, t.layout, t.place, "text_encoder" + (f"_{number}" if number > 1 else ""))
        for number, t in enumerate(ordered, 1)
    ]


def _layout(form: str, root: str, names: Collection[str]) -> tuple[str, int]:
    for wanted, pattern, layout, place in LAYOUTS:
        if wanted in (None, form) and re.fullmatch(pattern, root):
            if layout == OWN and f"{root}positional_embedding_res" in names:
                return LONG, place
            if layout == OWN and f"{root}input_resolution" in names:
                return OPENAI, place
            return layout, place
    return f"a file with a text encoder behind {root[:80]}", 1


def grouped(names: Collection[str]) -> list[str]:
    """Names of tensors that nobody reads one by one, as one line for each group."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        kohya = re.match(r"lora_[a-z]+\d?(?=_)", name)
        groups[kohya[0] if kohya else ".".join(name.split(".")[:2]) if name.count(".") > 1 else name].append(name)
    return sorted(some[0] if len(some) == 1 else f"{group}* ({len(some)} tensors)" for group, some in groups.items())
