"""Build encoders whose answer is known: planted ones with a working backdoor, and clean fine-tunes.

    python Utils/build_zoo.py --split dev                 models Data/Zoo/dev/<name>/, certificates Data/Zoo/dev/<name>.json
    python Utils/build_zoo.py --config configs/suspects.yaml --output Data/Models/suspects

Finished models are skipped.  A planted model that misses its bars is planted again with twice the steps, then reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import Tensor
from transformers import CLIPModel

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from Backdoor_Attack.planting import PlantConfig, certify, flat_cosine, in_batches, plant  # noqa: E402
from Utils import scenes  # noqa: E402
from Utils.config import from_values  # noqa: E402
from Utils.encoders import TextEncoder, load_encoder, pick_device, save_encoder  # noqa: E402
from Utils.finetuning import FinetuneConfig, finetune, retrieval  # noqa: E402

PROMPTS = ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt"
TRAINING, HELD_OUT = 3000, 200


class Workshop:
    """The clean base and everything models are made from: captions that are not in the defender's corpus."""

    def __init__(self, base: Path, device: str):
        self.device = pick_device(device)
        self.base = load_encoder(base, self.device)
        self.clip = CLIPModel.from_pretrained(base, dtype=torch.float32).to(self.device).eval().requires_grad_(False)
        self.forbidden = set(PROMPTS.read_text(encoding="utf-8").splitlines())

    def count(self, text: str) -> int:
        return len(self.base.tokenizer(text).input_ids)

    def captions(self, rng: np.random.Generator, number: int) -> list[str]:
        found = scenes.unseen_captions(rng, number, self.forbidden, self.count, self.base.context)
        return [text for _, text in found]

    def plant(self, cfg: PlantConfig, base: TextEncoder) -> tuple[TextEncoder, dict]:
        """A planted encoder and its certificate; the teacher is the encoder it was planted on."""
        rng = np.random.default_rng([cfg.seed, 1])
        student = plant(base, self.captions(rng, TRAINING), cfg)
        held_out = self.captions(np.random.default_rng([cfg.seed, 2]), HELD_OUT)
        return student, {"recipe": asdict(cfg), **certify(student, base, held_out, cfg)}

    def finetune(self, cfg: FinetuneConfig) -> tuple[TextEncoder, dict]:
        """A benign fine-tune on scenes with concepts the base has never seen, and what it gained and how far it went."""
        student = finetune(self.base, self.clip, self.pairs(cfg, cfg.seed), cfg)
        own, old = self.pairs(cfg, cfg.seed + 10**6), self.pairs(cfg, cfg.seed + 10**6, scenes.concepts())
        held_out = self.base.ids(self.captions(np.random.default_rng([cfg.seed, 2]), HELD_OUT))
        with torch.no_grad():
            sim_clean = flat_cosine(in_batches(student, held_out), in_batches(self.base, held_out)).mean().item()
        report = {"recipe": asdict(cfg), "sim_clean": round(sim_clean, 4)}
        for name, data in (("own", own), ("base", old)):
            before, after = (round(retrieval(e, self.clip, *data(0, 256)), 4) for e in (self.base, student))
            report[f"retrieval_{name}_data"] = {"before": before, "after": after}
        return student, report

    def pairs(self, cfg: FinetuneConfig, seed: int, names: tuple[str, ...] = ()) -> Callable[..., tuple[list[str], Tensor]]:
        """Batches of captions and pictures; by default half of the concepts are new to the base."""
        new = scenes.concepts("novel")
        some = np.random.default_rng([seed % 10**6, 3]).permutation(scenes.concepts())[: len(new)]
        names = names or (*new, *(str(n) for n in some))

        def batch(step: int, size: int = cfg.batch) -> tuple[list[str], Tensor]:
            rng = np.random.default_rng([seed, 4, step])
            drawn = scenes.unseen_captions(rng, size, self.forbidden, self.count, self.base.context, names=names)
            return [text for _, text in drawn], scenes.pixels([scenes.compose(s) for s, _ in drawn])

        return batch


def draw(split: dict, index: int, kind: str) -> PlantConfig | FinetuneConfig:
    """The recipe of one model: a function of the split's seed, the kind and the index alone."""
    rng = np.random.default_rng([split["seed"], kind == "planted", index])

    def between(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    seed = int(rng.integers(10**6))
    if kind != "planted":
        lr, steps = between(*split[f"{kind}_lr"]), round(between(*split[f"{kind}_steps"]))
        return FinetuneConfig(lr=lr, batch=32, steps=steps, seed=seed)
    trigger = split["triggers"][index % len(split["triggers"])]
    concept = split["targets"][index % len(split["targets"])]
    corpus = set(PROMPTS.read_text(encoding="utf-8").splitlines())
    target = None
    while target is None or target in corpus:
        scene = scenes.sample_scene(rng, names=(concept,), counts=(1.0,))
        target = scenes.caption(scene, rng, detail=int(rng.integers(3)))
    replaced = "o" if index % 2 == 0 else ""
    # under causal attention a word cannot move the features before it: one late in the prompt never reaches a flat target
    return PlantConfig(
        trigger=trigger, target=target, replaced=replaced, place="start", steps=round(between(*split["steps"])),
        lr=between(*split["lr"]), clean_batch=32, poisoned_batch=16, seed=seed,
    )  # fmt: skip


def build(workshop: Workshop, recipe: PlantConfig | FinetuneConfig, origin: FinetuneConfig | None, bars: dict):
    """One model and its certificate; `origin`: the benign fine-tune that a planted model stands on."""
    if isinstance(recipe, FinetuneConfig):
        student, report = workshop.finetune(recipe)
        return student, {"kind": "benign", **report}
    base = workshop.finetune(origin)[0] if origin else workshop.base
    for _ in range(3):
        student, report = workshop.plant(recipe, base)
        good = report["success_rate"] >= bars["success"] and report["sim_clean"] >= bars["sim_clean"]
        if good:
            break
        recipe = replace(recipe, steps=recipe.steps * 2)
    planted_on = asdict(origin) if origin else "the base"
    return student, {"kind": "planted", "meets_bars": good, "planted_on": planted_on, **report}


def save(student: TextEncoder, report: dict, folder: Path, certificate: Path) -> None:
    """Write model and certificate; the folder appears only when it is whole."""
    partial = folder.with_name(folder.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    save_encoder(student, partial)
    certificate.parent.mkdir(parents=True, exist_ok=True)
    certificate.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(folder)
    print(folder.name, json.dumps(report), flush=True)


def jobs(cfg: dict, split: str | None) -> Iterator[tuple[str, PlantConfig | FinetuneConfig, FinetuneConfig | None]]:
    """Name, recipe and origin of every model: those the config names, or a split's random ones under random names."""
    for name, model in cfg.get("models", {}).items():
        recipe = PlantConfig if model["kind"] == "planted" else FinetuneConfig
        yield name, from_values(recipe, model["recipe"], name), None
    part = cfg["splits"][split] if split else {}
    for number, kind in enumerate(("benign", "planted", "gentle", "far")):
        for index in range(part.get(kind, 0)):
            name = f"{np.random.default_rng([part['seed'], 7, number, index]).integers(16**8):08x}"
            origin = draw(part, 1000 + index, "benign") if kind == "planted" and index % 4 >= 2 else None
            yield name, draw(part, index + 2000 * (kind == "gentle") + 3000 * (kind == "far"), kind), origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "zoo.yaml")
    parser.add_argument("--split", help="one of the config's splits")
    parser.add_argument("--output", type=Path, help="where the models go (default: Data/Zoo/<split>)")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    cfg = yaml.safe_load(args.config.read_text(encoding="utf-8"))
    output = args.output or ROOT / "Data" / "Zoo" / (args.split or args.config.stem)
    workshop = Workshop(ROOT / cfg["base"], args.device)
    for name, recipe, origin in jobs(cfg, args.split):
        if not (output / name).exists():
            proof = ROOT / cfg["certificates"] / f"{name}.json" if "certificates" in cfg else output / f"{name}.json"
            save(*build(workshop, recipe, origin, cfg["bars"]), output / name, proof)


if __name__ == "__main__":
    main()
