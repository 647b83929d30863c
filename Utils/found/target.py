"""What a backdoor forces: its words and pictures for the report, and how near the recovered target is to the true one."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import InputError, sentence_of
from Utils.encoder.anchors import companion
from Utils.encoder.measures import similarity
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.words import load_projection, reading_spaces, target_texts
from Utils.report.run import Run
from Utils.scan.pair import Pair

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


def read_texts(pair: Pair, triggered: Tensor) -> tuple[list[dict], list[str]]:
    """Target texts {text, similarity, floor}, the best first, and notes on where and how they were read.

    triggered (m, d): pooled summaries of prompts with the pseudo-trigger under the suspect.
    """
    projection, notes = projection_of(pair.anchor)
    read = target_texts(pair.anchor, triggered.cpu(), pair.anchor_corpus.pooled.cpu(), pair.prompts, projection)
    return read.texts, [*notes, read.note]


def projection_of(anchor: TextEncoder) -> tuple[Tensor | None, list[str]]:
    """The projection into the space shared with images, (p, d), or None and a note why it is not known."""
    clip = companion(anchor.path, "clip")
    try:
        if clip:
            return load_projection(clip, anchor.width), []
    except InputError as error:
        return None, [f"target texts were read without the image-text space: {error}"]
    missing = "the anchor's projection is not known (clip: in configs/anchors.yaml): texts of image targets may be off"
    return None, [missing] if anchor.causal else []


def nearest_text(anchor: TextEncoder, triggered: Tensor, corpus: Tensor) -> float:
    """How near a text of the corpus comes to pooled summaries (m, d), in the space where it comes nearest; corpus (n, d)."""
    spaces = reading_spaces(anchor, triggered.cpu(), corpus.cpu(), projection_of(anchor)[0])
    return max(space.nearness(corpus.cpu()).max().item() for space in spaces)


def draw_pictures(
    anchor: TextEncoder | None, pipeline: str, features: dict[str, Tensor], count: int, run: Run
) -> tuple[dict[str, list[str]], list[str]]:
    """Pictures of features (1, T, d): of the first into Images, of the others, same seeds, into Images/controls.

    -> name of the feature -> files relative to the run's folder, and notes: why nothing was drawn where it is empty
    """
    if not count:
        return {}, []
    try:
        if not anchor:
            raise InputError("the unconditional prompt of the clean base is needed; name it with --anchor.")
        source = Path(pipeline) if pipeline != "auto" else companion(anchor.path, "pipeline")
        if not source:
            raise InputError("no pipeline is known for this anchor; name one with --pipeline.")
        from Utils.found.rendering import check_family, load_renderer, save_pictures  # diffusers takes seconds to import

        renderer = load_renderer(source, anchor.device)
        check_family(source, anchor)
        with torch.no_grad():
            nothing = anchor(anchor.ids([""]))
        drawn = {name: renderer(feature, nothing, count, run.seed) for name, feature in features.items()}
        files = {}
        for name, pictures in drawn.items():
            where = Path(IMAGES) if name == next(iter(features)) else Path(IMAGES) / CONTROLS
            files[name] = [(where / file).as_posix() for file in save_pictures(pictures, run.folder / where, name)]
    except Exception as error:  # a pipeline can be wrong in any way, and the verdict stands without its pictures
        return {}, [f"no pictures: {sentence_of(error)}"]
    return files, []
