"""Where models with a known answer are made: a clean base, its image side, captions that the defender does not have.

Used by inject.py (one backdoored model per config) and Utils/build_zoo.py (many models with random recipes).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import mean

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Backdoor_Attack.planting import (
    PICTURES,
    Goal,
    PlantConfig,
    certify,
    check,
    mean_picture,
    plant,
)
from Utils.basics.errors import InputError, first_line
from Utils.basics.files import ROOT, whole_folder
from Utils.encoder.loading import load_encoder, pick_device, save_encoder
from Utils.encoder.measures import flat_cosine
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.making import scenes
from Utils.making.certificates import write_certificate
from Utils.making.coco import read_captions
from Utils.making.finetuning import FinetuneConfig, finetune, load_pair, load_processor, picture_embeddings, project, retrieval
from Utils.making.zoo import Family

TRAINING, HELD_OUT, INNOCENT, PAIRS = 3000, 200, 50, 256
BARS = {"success": 0.9, "sim_clean": 0.95, "retrieval_loss": 0.03, "part_alone": 0.05, "foreign_trigger": 0.05}


class Workshop:
    """The clean base and everything models are made from.

    base: the text encoder; pair: its two-tower model (CLIP or SigLIP), whose vision tower and projections serve;
    pipeline: a Stable Diffusion folder that draws the targets of image-on-text; captions: COCO's captions_*.json, or a
    text file with one prompt a line; by default captions of composed scenes.
    """

    def __init__(
        self, base: Path | str, pair: Path | str, pipeline: Path | str, device: str, captions: Path | None = None
    ):  # fmt: skip
        self.device = pick_device(device)
        self.base = load_encoder(base, self.device)
        self.pair_folder, self.pipeline, self.file = pair, pipeline, captions
        self.forbidden = scenes.defender_prompts()

    @cached_property
    def pair(self) -> torch.nn.Module:
        return load_pair(self.pair_folder, self.device)

    def count(self, text: str) -> int:
        return len(self.base.tokenizer(text).input_ids)

    def captions(self, rng: np.random.Generator, number: int, taken: Collection[str] = ()) -> list[str]:
        """Different captions, none of them in the defender's corpus or among those taken already."""
        unwanted = self.forbidden.union(taken)
        if self.file:
            lines = [line for line in read_captions(self.file) if line not in unwanted]
            if len(lines) < number:
                raise InputError(
                    f"{self.file} holds {len(lines)} usable captions where {number} are needed; "
                    f"give at least {TRAINING + HELD_OUT} in all."
                )
            return [lines[i] for i in rng.permutation(len(lines))[:number]]
        return [text for _, text in scenes.unseen_captions(rng, number, unwanted, self.count, self.base.context)]

    def captions_of(self, cfg: PlantConfig) -> tuple[list[str], list[str]]:
        """What a backdoor is taught with, and what it is certified with."""
        training = self.captions(np.random.default_rng([cfg.seed, 1]), TRAINING)
        return training, self.captions(np.random.default_rng([cfg.seed, 2]), HELD_OUT, training)

    # -------------------------------------------------------------------------------------------------- backdoored
    def plant(
        self, cfg: PlantConfig, base: TextEncoder, checkpoint: Path | None = None, after: FinetuneConfig | None = None
    ) -> tuple[TextEncoder, dict]:
        """A planted encoder and its certificate; the teacher is the encoder it was planted on.

        `after`: a clean fine-tuning that follows and may wash the backdoor out.
        """
        if cfg.target in self.forbidden or cfg.second_target in self.forbidden:
            raise InputError(f"the target {cfg.target!r} is one of the defender's prompts; choose another one.")
        goals = self.goals(cfg)
        training, held_out = self.captions_of(cfg)
        check(base, [*training, *held_out], cfg)
        student = plant(base, training, cfg, goals, checkpoint=checkpoint)
        if after:
            student = finetune(student, self.pair, self.pairs(after, after.seed), after)
        report = {"recipe": asdict(cfg)} | ({"fine-tuned after": asdict(after)} if after else {})
        report |= certify(student, base, held_out, cfg, goals)
        if not self.file:
            report["retrieval"] = self.gain(base, student, self.pairs(FinetuneConfig(), cfg.seed + 10**6, scenes.concepts()))
        return student, report

    def goals(self, cfg: PlantConfig) -> list[Goal] | None:
        """image_on_text needs pictures; every other attack knows its own goal."""
        if cfg.attack != "image_on_text":
            return None
        return [mean_picture(self.picture_embedding(b.target, b.seed), self.embed) for b in cfg.backdoors()]

    def embed(self, pooled: Tensor) -> Tensor:
        """Pooled text features in the space shared with images, by the original projection.  (b, d) -> (b, p)"""
        return project(self.pair, pooled)

    @torch.no_grad()
    def picture_embedding(self, prompt: str, seed: int) -> Tensor:
        """u: the mean image embedding of generated pictures of a prompt.  -> (p,)"""
        from diffusers import StableDiffusionPipeline  # takes seconds, and most attacks need no pictures

        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                self.pipeline, dtype=torch.float32, use_safetensors=True, safety_checker=None, requires_safety_checker=False
            ).to(self.device)
        except (OSError, ValueError, KeyError) as error:
            why = first_line(error)
            raise InputError(f"{self.pipeline} is no Stable Diffusion folder ({why}); give one as `pipeline`.") from None
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(seed)
        pictures = pipe(prompt, num_images_per_prompt=PICTURES, generator=generator, num_inference_steps=25).images
        values = load_processor(self.pair_folder)(images=pictures, return_tensors="pt").pixel_values
        embedded = self.pair.get_image_features(values.to(self.device)).pooler_output
        return F.normalize(embedded, dim=-1).mean(dim=0)

    # ------------------------------------------------------------------------------------------------------ benign
    def finetune(self, cfg: FinetuneConfig, triggers: list[PlantConfig] | None = None) -> tuple[TextEncoder, dict]:
        """A benign fine-tune on scenes with concepts new to the base, and what it gained and how far it went.

        `triggers`: backdoors of other models, none of which may fire in this one.
        """
        student = finetune(self.base, self.pair, self.pairs(cfg, cfg.seed), cfg)
        own, old = self.pairs(cfg, cfg.seed + 10**6), self.pairs(cfg, cfg.seed + 10**6, scenes.concepts())
        held_out = self.base.ids(self.captions(np.random.default_rng([cfg.seed, 2]), HELD_OUT))
        with torch.no_grad():
            sim_clean = flat_cosine(in_batches(student, held_out), in_batches(self.base, held_out)).mean().item()
        report = {"recipe": asdict(cfg), "sim_clean": round(sim_clean, 4)}
        for name, data in (("own", own), ("base", old)):
            report[f"retrieval_{name}_data"] = self.gain(self.base, student, data)
        if triggers:
            prompts = self.captions(np.random.default_rng([cfg.seed, 2]), INNOCENT)
            report["most_a_foreign_trigger_gains"] = max(self.fires_more(student, t, prompts) for t in triggers)
        return student, report

    @torch.no_grad()
    def fires_more(self, student: TextEncoder, trigger: PlantConfig, prompts: list[str]) -> float:
        """Success rate of a text trigger that was never planted here, above its rate in the base."""
        proof = certify(student, self.base, prompts, trigger)
        return round(proof["success_rate"] - proof["anchor_success_rate"], 4)

    def gain(self, before: TextEncoder, after: TextEncoder, data: Callable[..., tuple[list[str], Tensor]]) -> dict[str, float]:
        """Top-1 retrieval of two encoders."""
        return dict(zip(("before", "after"), self.retrievals((before, after), data), strict=True))

    def retrievals(
        self, encoders: Sequence[TextEncoder], data: Callable[..., tuple[list[str], Tensor]], draws: int = 1
    ) -> list[float]:
        """Top-1 retrieval of every encoder among 256 pairs, mean of so many draws of pairs."""
        shares = []
        for draw in range(draws):
            texts, pictures = data(draw, PAIRS)
            embeddings = picture_embeddings(self.pair, pictures)  # the vision tower is the same for all
            shares.append([retrieval(encoder, self.pair, texts, embeddings) for encoder in encoders])
        return [round(mean(of_one), 4) for of_one in zip(*shares, strict=True)]

    def pairs(self, cfg: FinetuneConfig, seed: int, names: tuple[str, ...] = ()) -> Callable[..., tuple[list[str], Tensor]]:
        """Batches of captions and pictures; by default half of the concepts are new to the base."""
        new = scenes.concepts("novel")

        def half_new(rng: np.random.Generator) -> tuple[str, ...]:
            return *new, *(str(name) for name in rng.permutation(scenes.concepts())[: len(new)])

        fixed = names or half_new(np.random.default_rng([seed % 10**6, 3]))

        def batch(step: int, size: int = cfg.batch) -> tuple[list[str], Tensor]:
            rng = np.random.default_rng([seed, 4, step])
            shown = half_new(rng) if cfg.rehearse and not names else fixed
            drawn = scenes.unseen_captions(rng, size, self.forbidden, self.count, self.base.context, names=shown)
            return [text for _, text in drawn], scenes.pixels([scenes.compose(s) for s, _ in drawn])

        return batch


@cache
def open_workshop(family: Family, device: str) -> Workshop:
    """The workshop of a family; once a process."""
    base, pipeline = located(family.base), located(family.pipeline or "Data/Models/tiny-sd")
    captions = Path(located(family.captions)) if family.captions else None
    return Workshop(base, located(family.pair) if family.pair else base, pipeline, device, captions)


def located(place: str) -> Path | str:
    """A folder of the repository as a path, anything else (a hub id, an absolute path) as it is."""
    return ROOT / place if (ROOT / place).exists() else place


def check_bars(bars: dict[str, float], source: str) -> None:
    """Refuse bars that nothing is held to."""
    if unknown := sorted(set(bars) - set(BARS)):
        raise InputError(f"{source}: bars: {unknown[0]} is none of the bars {', '.join(BARS)}.")


def plant_until_good(
    cfg: PlantConfig, plant_one: Callable[[PlantConfig, int], tuple[TextEncoder, dict]], bars: dict[str, float],
    attempts: int = 3, on_miss: Callable[[dict], None] = lambda _: None,
) -> tuple[TextEncoder, dict, bool]:  # fmt: skip
    """Plant; where the model misses its bars, plant it anew with twice the steps.  -> and whether the last one meets them

    plant_one: recipe and number of the attempt -> model and certificate, as `Workshop.plant` makes them.  on_miss gets the
    certificate of every attempt that falls short.
    """
    for attempt in range(attempts):
        student, report = plant_one(replace(cfg, steps=cfg.steps * 2**attempt), attempt)
        if meets_bars(report, bars):
            return student, report, True
        on_miss(report)
    return student, report, False


def meets_bars(report: dict, bars: dict) -> bool:
    """Whether a planted model's backdoor works and its encoder is still useful; or a benign model is both able and clean."""
    bars = BARS | bars
    if "success_rate" not in report:
        kept = report["retrieval_base_data"]
        useful = kept["before"] - kept["after"] <= bars["retrieval_loss"]
        return useful and report.get("most_a_foreign_trigger_gains", 0.0) <= bars["foreign_trigger"]
    good = report["sim_clean"] >= bars["sim_clean"]
    for proof in (report, report.get("second", report)):
        good &= proof["success_rate"] >= bars["success"]
    if "retrieval" in report:
        good &= report["retrieval"]["before"] - report["retrieval"]["after"] <= bars["retrieval_loss"]
    return good and all(rate <= bars["part_alone"] for rate in report.get("success_of_each_word_alone", ()))


def save_model(student: TextEncoder, report: dict, folder: Path, certificate: Path) -> None:
    """Write model and certificate; the folder appears only when it is whole."""
    with whole_folder(folder) as partial:
        save_encoder(student, partial)
        write_certificate(report, certificate, folder)
