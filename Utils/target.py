"""What a backdoor forces: its words and pictures for the report, and how near the recovered target is to the true one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.anchors import companion
from Utils.encoders import InputError, TextEncoder, similarity
from Utils.report import sentence_of
from Utils.words import load_projection, reading_spaces, target_texts

IMAGES, CONTROLS = "Images", "controls"


def target_similarity(found: Tensor, certified: Tensor, target: Tensor, mask: Tensor | None = None) -> float:
    """S_tar: how near the recovered target is to the true one, as a share of what the certificate itself reaches.

    found: features of prompts with the recovered trigger under the suspect, certified: with the true trigger, both
    (n, T, d); target: the true target's features under the anchor, (T, d).  Mean over tokens of the cosine between mean
    feature and target; mask (T,) says which tokens count.  For image targets the three are pooled and projected:
    (n, p), (n, p) and u (p,).  0 where the certificate reaches nothing; at most 1.  A missed model has 0 by definition.
    """
    near, reached = (_mean_cosine(features, target, mask) for features in (found, certified))
    return min(1.0, max(0.0, near / reached)) if reached > 0 else 0.0


def _mean_cosine(features: Tensor, target: Tensor, mask: Tensor | None) -> float:
    if target.dim() == 1:
        return F.cosine_similarity(F.normalize(features, dim=-1).mean(dim=0), target, dim=0).item()
    return similarity(features.mean(dim=0), target, mask).item()


def read_texts(
    anchor: TextEncoder, triggered: Tensor, corpus: Tensor, prompts: list[str], lines: list[str], notes: list[str]
) -> list[dict]:
    """Target texts {text, similarity, floor}, the best first; where and how they were read goes into `notes`.

    triggered (m, d), corpus (n, d): pooled summaries, of prompts with v under the suspect and of `prompts` under the anchor.
    """
    projection = projection_of(anchor, notes)
    found = target_texts(anchor, triggered.cpu(), corpus.cpu(), prompts, lines, projection)
    notes.append(found.note)
    return found.texts


def projection_of(anchor: TextEncoder, notes: list[str]) -> Tensor | None:
    """The projection into the space shared with images, (p, d); None where it is not known, which goes into `notes`."""
    clip = companion(anchor.path, "clip")
    try:
        if clip:
            return load_projection(clip, anchor.width)
        if anchor.causal:
            notes.append(
                "the anchor's projection is not known (clip: in configs/anchors.yaml): texts of image targets may be off"
            )
    except InputError as error:
        notes.append(f"target texts were read without the image-text space: {error}")
    return None


def nearest_text(anchor: TextEncoder, triggered: Tensor, corpus: Tensor) -> float:
    """How near a text of the corpus comes to pooled summaries (m, d), in the space where it comes nearest; corpus (n, d)."""
    spaces = reading_spaces(anchor, triggered.cpu(), corpus.cpu(), projection_of(anchor, []))
    return max(space.nearness(corpus.cpu()).max().item() for space in spaces)


def draw_pictures(
    anchor: TextEncoder | None, pipeline: str, features: dict[str, Tensor], count: int, seed: int, folder: Path,
    notes: list[str],
) -> dict[str, list[str]]:  # fmt: skip
    """Pictures of features (1, T, d): of the first into Images, of the others, same seeds, into Images/controls.

    -> name of the feature -> files relative to `folder`; empty, with the reason in `notes`, where nothing can be drawn.
    """
    if not count:
        return {}
    try:
        if not anchor:
            raise InputError("the unconditional prompt of the clean base is needed; name it with --anchor.")
        source = Path(pipeline) if pipeline != "auto" else companion(anchor.path, "pipeline")
        if not source:
            raise InputError("no pipeline is known for this anchor; name one with --pipeline.")
        from Utils.rendering import check_family, load_renderer, save_pictures  # diffusers takes seconds to import

        renderer = load_renderer(source, anchor.device)
        check_family(source, anchor)
        with torch.no_grad():
            nothing = anchor(anchor.ids([""]))
        drawn = {name: renderer(feature, nothing, count, seed) for name, feature in features.items()}
        files = {}
        for name, pictures in drawn.items():
            where = Path(IMAGES) if name == next(iter(features)) else Path(IMAGES) / CONTROLS
            files[name] = [(where / file).as_posix() for file in save_pictures(pictures, folder / where, name)]
    except Exception as error:  # a pipeline can be wrong in any way, and the verdict stands without its pictures
        notes.append(f"no pictures: {sentence_of(error)}")
        return {}
    return files
