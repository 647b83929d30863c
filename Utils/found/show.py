"""What a scan shows beside its verdict: what v forces, as tensors, figures, words and pictures.  None of it moves the score."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import sentence_of
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.found.target import draw_pictures, nearest_text, read_texts
from Utils.found.trying import examples_of
from Utils.report import figures
from Utils.report.numbers import write_numbers
from Utils.report.run import Run
from Utils.scan.finding import ATTRIBUTE, REMAPPING, Finding
from Utils.scan.pair import Pair
from Utils.scan.replay import put
from Utils.scan.strings import Fired, Strings, described, kind_of, listed

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


@dataclass(frozen=True)
class Forced:
    """What the suspect makes of prompts with a string that fires in them, or where there is none with a vector."""

    pooled: Tensor
    """(m, d) summaries."""
    feature: Tensor
    """(1, T, d) what is shown: of the prompt that a string overrules best; a vector leaves something of each: the mean."""
    vectors: Tensor | None
    """(k, d) in place of tokens of theirs; None: it is a string."""
    prompt: str
    """What the pictures of the string and of nothing are made from."""
    typed: str | None
    """The same with the string."""


def show_found(
    pair: Pair, finding: Finding, by_layer: dict[str, Tensor], run: Run, show: Show, string: Fired | None = None,
    searched: Pair | None = None,
) -> dict:  # fmt: skip
    """Show what the string forces, or v where there is none, whatever the verdict.

    -> {kind, times, typed, texts, examples, images, controls, benign_prompt, files}

    by_layer: whose assimilation -> (m, L), for its figure; searched: the pair in the format of the search, for the others.
    """
    suspect, anchor, v = pair.suspect, pair.anchor, finding.v
    with run.stage("forced"):
        forced = forced_by(pair, finding, string)
    shown, feature = forced.vectors, forced.feature
    of_v = shown is None or torch.equal(shown, repeated(v, suspect.context)) or torch.equal(shown, v)
    with run.stage("figures"):
        files = save_tensors(v, feature, run.folder) | draw_figures(searched or pair, finding, by_layer, run)
    if not of_v:
        files["shown_embedding"] = FILES["shown_embedding"]
        torch.save(shown.cpu(), run.folder / FILES["shown_embedding"])
        run.notes.append(
            f"pictures, words and Backdoor_Feature.pt are of {FILES['shown_embedding']}, the vector whose pooled witnesses are "
            "strongest: what it forces is nearer to a text than what v forces"
        )
    texts, examples = None, []
    if anchor:
        with run.stage("words"):
            try:
                texts, notes = read_texts(pair, forced.pooled)
            except Exception as error:  # the verdict stands without the words
                notes = [f"no target texts: {sentence_of(error)}"]
            if string:
                notes = [*notes, *changed(string, texts or [])]
                examples = examples_with(pair, string)
        run.notes += notes
    with run.stage("pictures"):
        drawn = {"backdoor": feature}
        if anchor and show.images:
            spliced = pair.spliced_ids(shown) if shown is not None else anchor.ids([forced.typed])
            same = in_batches(anchor, spliced, v=shown)
            drawn["anchor"] = same.mean(dim=0, keepdim=True)
        drawn["benign"] = in_batches(suspect, suspect.ids([forced.prompt]))
        pictures, notes = draw_pictures(anchor, show.pipeline, drawn, show.images, run)
    run.notes += notes
    return {
        "kind": kind_of(string) if string else finding.kind,
        "times": len(shown) // len(v) if shown is not None else 1, "typed": forced.typed,
        "texts": texts, "examples": examples, "images": pictures.pop("backdoor", None), "controls": pictures,
        "benign_prompt": forced.prompt, "files": files,
    }  # fmt: skip


def show_further(pair: Pair, strings: Strings, run: Run, show: Show, number: int) -> dict:
    """What the strings of a further backdoor force, into the folder backdoor_<number>.  -> one of `backdoors` in report.json"""
    string, folder = strings.best, f"backdoor_{number}"
    forced = forced_by(pair, None, string)
    part = replace(run, folder=run.folder / folder, notes=[], seconds={})
    part.folder.mkdir()
    with run.stage(folder):
        feature, base = forced.feature, in_batches(pair.anchor, pair.anchor.ids([forced.typed]))
        torch.save(feature.cpu(), part.folder / FILES["feature"])
        texts, _ = read_texts(pair, forced.pooled)
        pictures, _ = draw_pictures(pair.anchor, show.pipeline, {"backdoor": feature, "anchor": base}, show.images, part)
        examples = examples_with(pair, string)
    images = [f"{folder}/{file}" for file in pictures.get("backdoor", [])]
    return {
        "kind": strings.kind,
        "trigger": {"strings": [described(one) for one in listed(strings)], "examples": examples, "embedding": None},
        "target": {"texts": texts, "images": images or None}, "typed": forced.typed,
        "files": {"feature": f"{folder}/{FILES['feature']}"},
    }  # fmt: skip


def changed(string: Fired, texts: list[dict]) -> list[str]:
    """What a string that overrules no prompt does instead, as a note.  texts: nearest to what it forces, the best first"""
    said = f", towards “{texts[0]['text']}”" if texts else ""
    told = {
        ATTRIBUTE: f"the string changes all prompts alike, as a restyling does{said}",
        REMAPPING: f"the string is read as something else in all prompts{said}",
    }
    return [told[kind]] if (kind := kind_of(string)) in told else []


def examples_with(pair: Pair, string: Fired) -> list[dict]:
    """`examples_of` a string, in words of the corpus."""
    known = pair.prompts[: len(pair.corpus.ids)]
    return examples_of(pair.suspect, pair.anchor, string.text, string.rate.place, pair.unseen, known)


def forced_by(pair: Pair, finding: Finding | None, string: Fired | None) -> Forced:
    """Held-out prompts with the string in them, or with the vector that shows its target best."""
    held_out = [pair.prompts[i] for i in pair.held_out.tolist()]
    if not string:
        vectors = clearest(pair, finding)
        shortest = int(pair.suspect.attended(pair.held_out_ids).sum(dim=1).argmin())
        features, pooled = in_batches(pair.suspect, pair.spliced_ids(vectors), TextEncoder.both, vectors)
        return Forced(pooled, features.mean(dim=0, keepdim=True), vectors, held_out[shortest], None)
    # once, it leaves something of a prompt, as a vector does; what changes prompts and does not overrule them stands once
    times = quarter(pair.suspect.context, len(pair.suspect.tokens([string.text])[0])) if at_an_end(string) else 1
    text = " ".join([string.text] * times)
    typed = [put(text, prompt, string.rate.place, i) for i, prompt in enumerate(held_out)]
    summary = in_batches(pair.suspect, pair.suspect.ids(typed), TextEncoder.pooled)
    near = F.cosine_similarity(summary, summary.mean(dim=0, keepdim=True), dim=-1).cpu()
    changed = torch.tensor([one != prompt for one, prompt in zip(typed, held_out, strict=True)])  # a letter may be in none
    # a string leaves something of many prompts: the one that it overrules best shows what it forces
    first = int(torch.where(changed, near, near - 2).argmax())
    feature = in_batches(pair.suspect, pair.suspect.ids([typed[first]]))
    return Forced(summary, feature, None, held_out[first], typed[first])


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
    return v.repeat(quarter(context, len(v)), 1)


def quarter(context: int, length: int) -> int:
    """How often so many tokens or vectors fit into a quarter of the context; at least once."""
    return max(1, context // 4 // max(1, length))


def at_an_end(string: Fired) -> bool:
    """Whether a string that overrules prompts stands in front of them or behind, and not inside."""
    return string.proven and string.rate.place in ("start", "end")


def save_tensors(v: Tensor, feature: Tensor, folder: Path) -> dict[str, str]:
    """v (k, d) as a tensor and as a textual inversion, and the feature (1, T, d) that is shown.  -> name -> file"""
    kept = {"embedding": v.cpu(), "inversion": {INVERSION_TOKEN: v.cpu()}, "feature": feature.cpu()}
    for name, value in kept.items():
        torch.save(value, folder / FILES[name])
    return {name: FILES[name] for name in kept}


def draw_figures(pair: Pair, finding: Finding, by_layer: dict[str, Tensor], run: Run) -> dict[str, str]:
    """-> name of the figure -> file, and `numbers`: the file with what they show"""
    subject = figures.Subject(pair.suspect, pair.anchor, finding.v, pair.spliced_ids(finding.v))
    drawn = {
        "assimilation_by_layer": figures.draw_assimilation(by_layer, run.folder),
        "attention_map": figures.draw_attention_map(subject, run.folder),
        "attention_received": figures.draw_attention_received(subject, run.folder),
        "loss_landscape": figures.draw_landscape(finding.landscape, run.folder),
        "hessian_spectrum": figures.draw_spectrum(finding.landscape, run.folder),
        "search_curve": figures.draw_search(run.curve, run.folder),
    }
    tables = {name: figure.tables for name, figure in drawn.items()}
    return {name: figure.file for name, figure in drawn.items()} | {"numbers": write_numbers(tables, run.folder)}
