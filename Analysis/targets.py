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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.planting import GOALS, PlantConfig, poison
from Backdoor_Attack.workshop import Workshop, open_workshop
from Utils.basics.config import from_values
from Utils.basics.errors import InputError, fail, sentence_of
from Utils.basics.files import ROOT, write_whole
from Utils.encoder.anchors import companion
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.encoder.text_encoder import run_spliced, splice_ids
from Utils.found.rendering import load_renderer
from Utils.found.target import target_similarity
from Utils.making import scenes
from Utils.making.finetuning import load_processor
from Utils.making.zoo import load_zoo
from Utils.report.folder import result_name
from Utils.scan.replay import put

FIRST_TEXTS, JUDGED_PROMPTS = 2, 64
EACH_ITS_OWN = ("attribute", "remapping")
"""Attacks whose target differs from prompt to prompt."""


def workshop(family: str) -> Workshop:
    """The clean base of a family with its image side."""
    return open_workshop(load_zoo().families[family], "cpu")


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


@dataclass(frozen=True)
class Recovered:
    """S_tar of what a scan recovered."""

    s_tar: float
    """Over the positions that most prompts attend to, BOS excluded."""
    floor: float
    """The same of clean prompts."""
    own_tokens: float | None
    """S_tar over the few positions that the target prompt itself attends to: what is left of the prompts shows here."""


@torch.no_grad()
def s_tar(model: Path, v: Tensor, cfg: PlantConfig, family: str, string: dict | None = None) -> Recovered | None:
    """S_tar of a recovered pseudo-trigger (k, d), or of a string as report.json has it, against a certificate's target.

    None where there is no one target, but another one for every prompt.
    """
    if cfg.attack in EACH_ITS_OWN:
        return None
    shop = workshop(family)
    suspect, base = load_encoder(model), shop.base
    corpus = scenes.PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [text for text in corpus if cfg.replaced in text][:JUDGED_PROMPTS]
    rng, clean = np.random.default_rng(cfg.seed), base.ids(prompts)
    triggered, spliced = base.ids([poison(p, cfg, rng) for p in prompts]), splice_ids(base, clean, len(v))
    if string:
        spliced = base.ids([put(string["text"], p, string["place"], i) for i, p in enumerate(prompts)])
    found = suspect.both(spliced) if string else run_spliced(suspect, v, spliced, type(suspect).both)
    if cfg.attack == "image_on_text":
        pooled = found[1], suspect.pooled(triggered), suspect.pooled(clean)
        recovered, certified, nothing = (shop.embed(features) for features in pooled)
        u = shop.picture_embedding(cfg.target, cfg.seed)
        return Recovered(target_similarity(recovered, certified, u), target_similarity(nothing, certified, u), None)
    recovered, certified, nothing = found[0], suspect(triggered), suspect(clean)
    targets = GOALS[cfg.attack](base, cfg).wanted(prompts[:1])[0]

    def best(features: Tensor, mask: Tensor) -> float:
        """Of several paraphrases any one counts."""
        return max(target_similarity(features, certified, target, mask) for target in targets)

    most = base.attended(spliced).float().mean(dim=0) >= 0.5
    own = None if cfg.attack == "artificial" else best(recovered, base.attended(base.ids([cfg.target]))[0])
    return Recovered(best(recovered, most), best(nothing, most), own)


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
    file = found["files"].get("shown_embedding", found["files"]["embedding"])
    v = torch.load(folder / file, map_location="cpu", weights_only=True)
    strings = (report["trigger"] or {}).get("strings") if found["typed"] else None
    near = s_tar(model, v, cfg, family, strings[0] if strings else None)
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
