"""How well a scan shows the target of a backdoor whose target is known: by its pictures, by its words, and as a number.

    python Analysis/targets.py --zoo Data/Zoo/dev        the results of Analysis/benchmark.py on that zoo, model by model

A picture is recognised when the vision tower of the base puts the target's concept first among all concepts of the testbed,
words when one of the first two texts names it.  The scan itself knows none of these concepts.
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
import yaml
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from Backdoor_Attack.planting import PlantConfig, poison  # noqa: E402
from Backdoor_Attack.workshop import PROMPTS, Workshop  # noqa: E402
from Utils import scenes  # noqa: E402
from Utils.config import from_values  # noqa: E402
from Utils.encoders import load_encoder, quiet_libraries, run_spliced, splice_ids  # noqa: E402
from Utils.report import result_name  # noqa: E402
from Utils.target import target_similarity  # noqa: E402

FIRST_TEXTS, JUDGED_PROMPTS = 2, 64


@cache
def families() -> dict:
    return yaml.safe_load((ROOT / "configs" / "zoo.yaml").read_text(encoding="utf-8"))["families"]


@cache
def workshop(family: str) -> Workshop:
    """The clean base of a family with its image side."""
    base = families()[family]["base"]
    return Workshop(ROOT / base, ROOT / families()[family].get("pair", base), ROOT / "Data" / "Models" / "tiny-sd", "cpu")


@cache
def named_concepts(family: str) -> Tensor:
    """Embeddings of one plain prompt for every concept of the testbed.  -> (concepts, p)"""
    shop = workshop(family)
    prompts = [f"a photo of {scenes.with_article(name)}" for name in scenes.concepts()]
    with torch.no_grad():
        return F.normalize(shop.embed(shop.base.pooled(shop.base.ids(prompts))), dim=-1)


@torch.no_grad()
def recognised(pictures: list[Path], family: str) -> list[str]:
    """The concept that the vision tower puts first, for every picture."""
    shop = workshop(family)
    processor = AutoImageProcessor.from_pretrained(shop.pair_folder)
    pixels = processor(images=[Image.open(file).convert("RGB") for file in pictures], return_tensors="pt").pixel_values
    seen = F.normalize(shop.pair.get_image_features(pixels).pooler_output, dim=-1)
    return [scenes.concepts()[i] for i in (seen @ named_concepts(family).T).argmax(dim=1)]


def concept_of(target: str) -> str:
    """The longest concept that a target prompt names."""
    return max((name for name in scenes.concepts() if name in target), key=len)


@torch.no_grad()
def s_tar(model: Path, v: Tensor, cfg: PlantConfig, family: str) -> float:
    """S_tar of a recovered pseudo-trigger (k, d) against a certificate's target."""
    shop = workshop(family)
    suspect, base = load_encoder(model), shop.base
    corpus = PROMPTS.read_text(encoding="utf-8").splitlines()
    prompts = [text for text in corpus if cfg.replaced in text][:JUDGED_PROMPTS]
    rng = np.random.default_rng(cfg.seed)
    triggered, spliced = base.ids([poison(p, cfg, rng) for p in prompts]), splice_ids(base, base.ids(prompts), len(v))
    if cfg.attack == "image_on_text":
        u = shop.picture_embedding(cfg.target, cfg.seed)
        found, certified = (
            shop.embed(run_spliced(suspect, v, spliced, type(suspect).pooled)),
            shop.embed(suspect.pooled(triggered)),
        )
        return target_similarity(found, certified, u)
    target = base(base.ids([cfg.target]))[0]
    return target_similarity(run_spliced(suspect, v, spliced), suspect(triggered), target)


def shown(certificate: Path, results: Path) -> dict:
    """How well the result of one planted model shows its target."""
    truth = json.loads(certificate.read_text(encoding="utf-8"))
    cfg, family = from_values(PlantConfig, truth["recipe"], str(certificate)), truth.get("family", "clip")
    model = certificate.with_suffix("")
    folder = results / result_name(str(model), results)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    concept, found = concept_of(cfg.target), report["found"]
    names = recognised([folder / file for file in found["images"]], family) if found["images"] else []
    texts = [entry["text"] for entry in found["texts"] or []][:FIRST_TEXTS]
    v = torch.load(folder / report["found"]["files"]["embedding"], weights_only=True)
    return {
        "name": certificate.stem, "family": family, "attack": cfg.attack, "target": concept, "verdict": report["verdict"],
        "pictures": f"{names.count(concept)} of {len(names)}", "words": any(concept in text for text in texts),
        "S_tar": round(s_tar(model, v, cfg, family) if report["verdict"] == "backdoored" else 0.0, 3), "first_text": texts[:1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, required=True, help="a folder of models with certificates, scanned before")
    parser.add_argument("--results", type=Path, default=ROOT / "Results", help="where the results are (default: Results)")
    args = parser.parse_args()
    quiet_libraries()
    for certificate in sorted(args.zoo.glob("*.json")):
        planted = json.loads(certificate.read_text(encoding="utf-8"))["kind"] == "planted"
        if planted and (args.results / result_name(str(certificate.with_suffix("")), args.results)).exists():
            print(json.dumps(shown(certificate, args.results), ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
