"""How much of a known backdoor's target a scan has recovered, as a number (S_tar)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from Backdoor_Attack.planting import GOALS, PlantConfig, poison
from Backdoor_Attack.workshop import Workshop, open_workshop
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import run_spliced, splice_ids
from Utils.found.target import target_similarity
from Utils.making import scenes
from Utils.making.zoo import load_zoo
from Utils.scan.replay import put

JUDGED_PROMPTS = 64
EACH_ITS_OWN = ("attribute", "remapping")
"""Attacks whose target differs from prompt to prompt."""


def workshop(family: str) -> Workshop:
    """The clean base of a family with its image side."""
    return open_workshop(load_zoo().families[family], "cpu")


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
def s_tar(
    model: Path, v: Tensor, cfg: PlantConfig, family: str, string: dict | None = None, after: int = 0
) -> Recovered | None:
    """S_tar of a recovered pseudo-trigger (k, d), or of a string as report.json has it, against a certificate's target.

    None where there is no one target, but another one for every prompt.

    after: so many prompts of the corpus are left out, which a search has seen.
    """
    if cfg.attack in EACH_ITS_OWN:
        return None
    shop = workshop(family)
    suspect, base = load_encoder(model), shop.base
    corpus = scenes.PROMPTS.read_text(encoding="utf-8").splitlines()[after:]
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


def shown(report: dict, folder: Path) -> Tensor:
    """The pseudo-trigger that a report in its folder shows, (k, d)."""
    file = report["found"]["files"].get("shown_embedding", report["found"]["files"]["embedding"])
    return torch.load(folder / file, map_location="cpu", weights_only=True)


def typed(report: dict) -> dict | None:
    """The string that a report types into prompts, if it does."""
    return ((report["trigger"] or {}).get("strings") or [None])[0] if report["found"]["typed"] else None


def recovered(report: dict, folder: Path, model: Path, cfg: PlantConfig, family: str) -> Recovered | None:
    """S_tar of what a report in its folder shows: of the string that it types into prompts, or of its pseudo-trigger."""
    return s_tar(model, shown(report, folder), cfg, family, typed(report))
