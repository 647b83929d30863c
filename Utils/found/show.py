"""What a scan shows beside its verdict: what v forces, as tensors, figures, words and pictures.  None of it moves the score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.errors import sentence_of
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.found.target import draw_pictures, nearest_text, read_texts
from Utils.report import figures
from Utils.report.run import Run
from Utils.scan.finding import Finding
from Utils.scan.pair import Pair

INVERSION_TOKEN = "<amber-backdoor>"
"""The word by which diffusers' load_textual_inversion knows v."""
FILES = {
    "embedding": "Backdoor_Embedding.pt", "inversion": "Backdoor_Embedding_Inversion.pt", "feature": "Backdoor_Feature.pt",
    "shown_embedding": "Shown_Embedding.pt",
}  # fmt: skip


@dataclass(frozen=True)
class Show:
    """How much is shown."""

    images: int = 4
    """Pictures of what v forces, and as many of each control; 0: none."""
    pipeline: str = "auto"
    """Folder of the pipeline that draws them; auto: the one that belongs to the anchor."""


def show_found(pair: Pair, finding: Finding, by_layer: dict[str, Tensor], run: Run, show: Show) -> dict:
    """Show what v forces, whatever the verdict.  -> {kind, times, texts, images, controls, benign_prompt, files}

    by_layer: whose assimilation -> (m, L), for its figure.
    """
    suspect, anchor, v = pair.suspect, pair.anchor, finding.v
    shown = clearest(pair, finding)
    ids = pair.spliced_ids(shown)
    of_v = torch.equal(shown, repeated(v, suspect.context)) or torch.equal(shown, v)
    with run.stage("figures"):
        features, pooled = in_batches(suspect, ids, TextEncoder.both, shown)
        feature = features.mean(dim=0, keepdim=True)
        files = save_tensors(v, feature, run.folder) | draw_figures(pair, finding, by_layer, run)
    if not of_v:
        files["shown_embedding"] = FILES["shown_embedding"]
        torch.save(shown.cpu(), run.folder / FILES["shown_embedding"])
        run.notes.append(
            f"pictures, words and Backdoor_Feature.pt are of {FILES['shown_embedding']}, the vector whose pooled witnesses are "
            "strongest: what it forces is nearer to a text than what v forces"
        )
    texts = None
    if anchor:
        with run.stage("words"):
            try:
                texts, notes = read_texts(pair, pooled)
            except Exception as error:  # the verdict stands without the words
                notes = [f"no target texts: {sentence_of(error)}"]
        run.notes += notes
    with run.stage("pictures"):
        shortest = int(pair.held_out[suspect.attended(pair.held_out_ids).sum(dim=1).argmin()])
        drawn = {"backdoor": feature}
        if anchor and show.images:
            drawn["anchor"] = in_batches(anchor, ids, v=shown).mean(dim=0, keepdim=True)
        drawn["benign"] = pair.corpus.features[shortest : shortest + 1].to(feature)
        pictures, notes = draw_pictures(anchor, show.pipeline, drawn, show.images, run)
    run.notes += notes
    return {
        "kind": finding.kind, "times": len(shown) // len(v), "texts": texts, "images": pictures.pop("backdoor", None),
        "controls": pictures, "benign_prompt": pair.prompts[shortest], "files": files,
    }  # fmt: skip


def clearest(pair: Pair, finding: Finding) -> Tensor:
    """What is spliced in to see the target, (k, d): v over and over, or the vector with the strongest pooled witnesses.

    Whichever forces something nearer to a text: of a long target the strongest collapse of all tokens is a caricature, and its
    summary is then clearer where the summaries collapse.
    """
    many = repeated(finding.v, pair.suspect.context)
    if finding.pooled_v is None or not pair.anchor:
        return many
    near = [
        nearest_text(
            pair.anchor,
            in_batches(pair.suspect, pair.spliced_ids(vectors), TextEncoder.pooled, vectors),
            pair.anchor_corpus.pooled,
        )
        for vectors in (many, finding.pooled_v)
    ]
    return many if near[0] >= near[1] else finding.pooled_v


def repeated(v: Tensor, context: int) -> Tensor:
    """v over and over, in a quarter of the context.  (k, d) -> (n k, d)

    Once, a trigger leaves something of each prompt in its features, and their mean is no clear target.
    """
    return v.repeat(max(1, context // 4 // len(v)), 1)


def save_tensors(v: Tensor, feature: Tensor, folder: Path) -> dict[str, str]:
    """v (k, d) as a tensor and as a textual inversion, and the feature (1, T, d) that is shown.  -> name -> file"""
    kept = {"embedding": v.cpu(), "inversion": {INVERSION_TOKEN: v.cpu()}, "feature": feature.cpu()}
    for name, value in kept.items():
        torch.save(value, folder / FILES[name])
    return {name: FILES[name] for name in kept}


def draw_figures(pair: Pair, finding: Finding, by_layer: dict[str, Tensor], run: Run) -> dict[str, str]:
    """-> name of the figure -> file"""
    subject = figures.Subject(pair.suspect, pair.anchor, finding.v, pair.spliced_ids(finding.v))
    landscape_file, spectrum_file = figures.draw_landscape(finding.landscape, run.folder)
    return {
        "assimilation_by_layer": figures.draw_assimilation(by_layer, run.folder),
        "attention_map": figures.draw_attention_map(subject, run.folder),
        "attention_received": figures.draw_attention_received(subject, run.folder),
        "loss_landscape": landscape_file,
        "hessian_spectrum": spectrum_file,
        "search_curve": figures.draw_search(run.curve, run.folder),
    }
