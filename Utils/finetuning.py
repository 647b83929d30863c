"""Benign fine-tuning of a text encoder: contrastive against a frozen vision tower, as an honest publisher would do it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, SiglipModel

from Utils.encoders import TextEncoder, trainable_copy


@dataclass(frozen=True)
class FinetuneConfig:
    """One benign fine-tune.  Defaults are the published values."""

    lr: float = 1.0e-5
    batch: int = 16
    steps: int = 1560
    seed: int = 0
    rehearse: bool = False
    """Keep showing everything the base knows, not a fixed part of it: more drift without forgetting."""


def finetune(
    base: TextEncoder, clip: CLIPModel | SiglipModel, pairs: Callable[[int], tuple[list[str], Tensor]], cfg: FinetuneConfig,
    progress: bool = True,
) -> TextEncoder:  # fmt: skip
    """Fine-tune a copy of `base`, the text tower of `clip`, by cross-entropy over the batch on the text-side logits.

    `pairs(step)` gives captions and pictures (b, 3, h, w); vision tower, projections and logit scale stay frozen.
    """
    student = trainable_copy(base)
    optimiser = torch.optim.Adam(student.model.parameters(), lr=cfg.lr)
    torch.manual_seed(cfg.seed)
    for step in tqdm(range(cfg.steps), desc="fine-tuning", disable=not progress, mininterval=2):
        texts, pictures = pairs(step)
        ids = base.trimmed(base.ids(texts)).to(base.device)
        with torch.autocast(base.device.type, torch.bfloat16):
            with torch.no_grad():
                images = clip.get_image_features(pictures.to(base.device)).pooler_output
            pooled = student.model(input_ids=ids).pooler_output
        embedded = project(clip, pooled.float())
        logits = clip.logit_scale.exp() * F.normalize(embedded, dim=-1) @ F.normalize(images.float(), dim=-1).T
        loss = F.cross_entropy(logits, torch.arange(len(texts), device=base.device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    student.model.requires_grad_(False)
    student.model.set_attn_implementation("sdpa")
    return student


def project(pair: CLIPModel | SiglipModel, pooled: Tensor) -> Tensor:
    """Pooled text features in the space shared with images; SigLIP's are there already.  (b, d) -> (b, p)"""
    return pair.text_projection(pooled) if isinstance(pair, CLIPModel) else pooled


@torch.no_grad()
def retrieval(encoder: TextEncoder, clip: CLIPModel | SiglipModel, texts: list[str], pictures: Tensor) -> float:
    """Top-1 text-to-image retrieval with `encoder` in place of the pair's own text tower."""
    pooled = encoder.model(input_ids=encoder.ids(texts).to(encoder.device)).pooler_output
    embedded = F.normalize(project(clip, pooled), dim=-1)
    images = F.normalize(clip.get_image_features(pictures.to(encoder.device)).pooler_output, dim=-1)
    return ((embedded @ images.T).argmax(dim=1).cpu() == torch.arange(len(texts))).float().mean().item()
