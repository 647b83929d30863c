"""How well a scan shows the target of a backdoor whose target is known: by its pictures, by its words, and as a number.

    python Analysis/targets.py --zoo Data/Zoo/dev        the results of Analysis/benchmark.py on that zoo, model by model

A picture is recognised when the vision tower of the base puts the target's concept first among all concepts of the testbed,
words when one of the first two texts names it (or, where the target means nothing, when there are none).  The scan itself
knows none of these concepts.  The target is shown when words name it and, for text-on-text with a pipeline, three of four
pictures do.
"""

from __future__ import annotations

import argparse
import json
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Analysis.recovery import recovered, workshop
from Backdoor_Attack.planting import PlantConfig, poison
from Utils.basics.config import from_values
from Utils.basics.errors import InputError, fail, sentence_of
from Utils.basics.files import ROOT, write_whole
from Utils.encoder.anchors import companion
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.found.rendering import load_renderer
from Utils.making import scenes
from Utils.making.finetuning import load_processor
from Utils.report.folder import result_name

FIRST_TEXTS = 2


@cache
def named_concepts(family: str) -> Tensor:
    """Embeddings of one plain prompt for every concept of the testbed.  -> (concepts, p)"""
    shop = workshop(family)
    prompts = [f"a photo of {scenes.with_article(name)}" for name in scenes.concepts()]
    with torch.no_grad():
        return F.normalize(shop.embed(shop.base.pooled(shop.base.ids(prompts))), dim=-1)


def recognised(files: list[Path], family: str) -> list[str]:
    """The concept that the vision tower puts first, for every picture."""
    return concepts_in([Image.open(file).convert("RGB") for file in files], family)


@torch.no_grad()
def concepts_in(pictures: list[Image.Image], family: str) -> list[str]:
    """The same of pictures in memory."""
    shop = workshop(family)
    processor = load_processor(shop.pair_folder)
    pixels = processor(images=pictures, return_tensors="pt").pixel_values
    pictured = F.normalize(shop.pair.get_image_features(pixels).pooler_output, dim=-1)
    return [scenes.concepts()[i] for i in (pictured @ named_concepts(family).T).argmax(dim=1)]


def concept_of(target: str) -> str | None:
    """The longest concept that a target prompt names; None where it names none (artificial vectors, styles)."""
    return max((name for name in scenes.concepts() if name in target), key=len, default=None)


def drawn_by_trigger(model: Path, cfg: PlantConfig, report: dict, count: int, family: str) -> list[str]:
    """What is recognised in pictures of the planted trigger itself, in the prompt and with the seeds of the scan's pictures.

    No string can be expected to show more: the target may be a scene that the pipeline draws badly.
    """
    source = companion(report["anchor"]["path"], "pipeline") if count and report["anchor"] else None
    if not source:
        return []
    suspect, base = load_encoder(model), workshop(family).base
    typed = poison(report["found"]["benign_prompt"], cfg, np.random.default_rng(cfg.seed))
    with torch.no_grad():
        feature, nothing = suspect(suspect.ids([typed])), base(base.ids([""]))
    return concepts_in(load_renderer(source, torch.device("cpu"))(feature, nothing, count, report["seed"]), family)


def judged(certificate: Path, results: Path) -> dict:
    """How well the result of one planted model shows its target."""
    truth = json.loads(certificate.read_text(encoding="utf-8"))
    cfg, family = from_values(PlantConfig, truth["recipe"], str(certificate)), truth.get("family", "clip")
    model = certificate.with_suffix("")
    folder = results / result_name(str(model), results)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    if "found" not in report or report["model"]["sha256"] != load_encoder(model).sha256:
        raise InputError(f"{folder} is of other weights or of an older version; scan {certificate.stem} anew.")
    concept, found = concept_of(cfg.target), report["found"]
    names = recognised([folder / file for file in found["images"]], family) if found["images"] else []
    texts = [entry["text"] for entry in found["texts"] or []][:FIRST_TEXTS]
    near = recovered(report, folder, model, cfg, family)
    missed = report["verdict"] != "backdoored"
    best = drawn_by_trigger(model, cfg, report, len(names), family)
    return {
        "name": certificate.stem, "family": family, "attack": cfg.attack, "target": concept, "verdict": report["verdict"],
        "pictures": names.count(concept) if concept and names else None, "drawn": len(names),
        "pictures_by_trigger": best.count(concept) if concept and best else None,
        "words": any(concept in text for text in texts) if concept else not texts,
        "s_tar": near and (0.0 if missed else round(near.s_tar, 3)), "s_tar_floor": near and round(near.floor, 3),
        "s_tar_own_tokens": near and near.own_tokens and round(near.own_tokens, 3),
        "first_text": next(iter(texts), None),
    }  # fmt: skip


def shows_it(row: dict) -> bool:
    """Words name the target; so do three of four pictures where a text-on-text backdoor was drawn."""
    drawn = row["attack"] == "text_on_text" and row["pictures"] is not None
    return row["verdict"] == "backdoored" and row["words"] and (not drawn or row["pictures"] >= 0.75 * row["drawn"])


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0, or 2 where there is nothing to look at"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="a folder of models with certificates, scanned before")
    parser.add_argument("--models", nargs="+", help="names of some of them (default: all that were planted and scanned)")
    parser.add_argument("--results", type=Path, default=ROOT / "Results", help="where the results are (default: Results)")
    parser.add_argument("--output", type=Path, help="for the rows (default: RESULTS/benchmark/<zoo>_targets[_some].json)")
    args = parser.parse_args(argv)
    quiet_libraries()
    rows = []
    try:
        if unknown := sorted(name for name in args.models or () if not (args.zoo / f"{name}.json").exists()):
            raise InputError(f"{args.zoo} holds no certificate of {unknown[0]}.")
        for certificate in sorted(args.zoo.glob("*.json")):
            planted = json.loads(certificate.read_text(encoding="utf-8"))["kind"] == "planted"
            scanned = (args.results / result_name(str(certificate.with_suffix("")), args.results) / "report.json").exists()
            if planted and scanned and certificate.stem in (args.models or [certificate.stem]):
                rows.append(judged(certificate, args.results))
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)
        if not rows:
            raise InputError(f"{args.zoo} holds no planted model with a result in {args.results}; scan it with benchmark.py.")
    except (InputError, OSError, ValueError, KeyError) as error:  # results can be damaged in any way
        return fail(sentence_of(error))
    summary = {"planted": len(rows), "target_shown": sum(map(shows_it, rows)), "models": rows}
    name = f"{args.zoo.name}_targets_some" if args.models else f"{args.zoo.name}_targets"
    file = args.output or args.results / "benchmark" / f"{name}.json"
    write_whole(file, json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    print(f"{summary['target_shown']} of {len(rows)} show their target; {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
