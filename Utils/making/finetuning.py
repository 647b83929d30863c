"""Benign fine-tuning of a text encoder: contrastive against a frozen vision tower, as an honest publisher would do it.

The variety of published models: full or low-rank updates, weights averaged with the base or over snapshots, a round
trip through half precision.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoImageProcessor, CLIPModel, SiglipModel

from Utils.basics.errors import InputError, first_line
from Utils.encoder.loading import trainable_copy
from Utils.encoder.precision import short_products
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.encoder.training import Checkpoint, Training, train
from Utils.encoder.weights import interpolated, set_weights

METHODS = ("full", "lora")
SCHEDULES = ("constant", "linear")
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class FinetuneConfig:
    """One benign fine-tune.  Defaults are the published values."""

    lr: float = 1.0e-5
    """Learning rate of Adam, where the schedule is at its highest."""
    batch: int = 16
    """Captioned pictures of one step."""
    steps: int = 1560
    """Steps of the training."""
    seed: int = 0
    """Decides what every step sees, and the start of low-rank updates."""
    schedule: str = "constant"
    """constant: the same rate in every step.  linear: it grows over the first tenth of the steps, then falls to zero."""
    method: str = "full"
    """full: every weight moves.  lora: low-rank updates (Hu et al., 2021), merged into the weights at the end."""
    rank: int = 8
    """Rank of the low-rank updates."""
    lora_alpha: float = 16.0
    """The low-rank updates are scaled by lora_alpha / rank."""
    snapshots: tuple[int, ...] = ()
    """Numbers of steps after which the encoder is given out as it is then."""
    average_snapshots: bool = False
    """Whether the result is the mean of the snapshots' weights instead of the last weights (Izmailov et al., 2018)."""
    base_share: float = 0.0
    """Share of the base in the final weights (Wortsman et al., 2022)."""
    precision: str = "float32"
    """Number format that the final weights pass through: float32 (nothing is lost), float16 or bfloat16."""
    rehearse: bool = False
    """Keep showing everything the base knows, not a fixed part of it: more drift without forgetting."""

    def share(self, step: int) -> float:
        """Share of `lr` that a step, counted from 0, learns with."""
        if self.schedule == "constant":
            return 1.0
        warmup = -(-self.steps // 10)
        return min((step + 1) / warmup, (self.steps - step) / max(1, self.steps - warmup), 1.0)

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method should be {' or '.join(METHODS)}, not {self.method!r}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"schedule should be {' or '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision should be one of {', '.join(PRECISIONS)}, not {self.precision!r}")
        if min(self.batch, self.steps, self.rank) < 1 or not 0 < self.lr < math.inf:
            raise ValueError("batch, steps, rank and lr should be above 0")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed should be at least 0 and below 2^32, not {self.seed}")
        if not 0 <= self.base_share < 1:
            raise ValueError(f"base_share should be at least 0 and below 1, not {self.base_share}")
        if any(not 1 <= step <= self.steps for step in self.snapshots) or len(set(self.snapshots)) < len(self.snapshots):
            raise ValueError(f"snapshots should be different numbers from 1 to steps = {self.steps}, not {self.snapshots}")
        if self.average_snapshots and len(self.snapshots) < 2:
            raise ValueError("average_snapshots needs two snapshots or more")


# ------------------------------------------------------------------------------------------------------- pairs of towers
def project(pair: CLIPModel | SiglipModel, pooled: Tensor) -> Tensor:
    """Pooled text features in the space shared with images; SigLIP's are there already.  (b, d) -> (b, p)"""
    return pair.text_projection(pooled) if isinstance(pair, CLIPModel) else pooled


def contrastive_loss(pair: CLIPModel | SiglipModel, texts: Tensor, pictures: Tensor) -> Tensor:
    """The loss the pair was trained with, by its text side.  (b, p), embeddings of their pictures (b, p) -> scalar

    CLIP: cross-entropy of finding a text's own picture in the batch.  SigLIP: every text and picture are judged on their own
    (Zhai et al., 2023).
    """
    logits = pair.logit_scale.exp() * F.normalize(texts, dim=-1) @ F.normalize(pictures, dim=-1).T
    if isinstance(pair, CLIPModel):
        return F.cross_entropy(logits, torch.arange(len(texts), device=logits.device))
    belongs = 2 * torch.eye(len(texts), device=logits.device) - 1
    return -F.logsigmoid(belongs * (logits + pair.logit_bias)).sum(dim=1).mean()


def load_pair(folder: str | Path, device: str | torch.device = "cpu") -> CLIPModel | SiglipModel:
    """The frozen pair of towers of a folder or hub id.

    Raises:
        InputError: it is no pair of a known family; one sentence with the cure.
    """
    kinds = {"clip": CLIPModel, "siglip": SiglipModel}
    try:
        kind = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    except (OSError, ValueError):  # a pipeline has no config of its own
        kind = "no config.json of a pair"
    if kind not in kinds:
        raise InputError(
            f"{folder} holds no pair of towers ({kind}), and the vision tower is needed too; "
            f"give a model of the type {' or '.join(kinds)}."
        )
    try:
        pair, info = kinds[kind].from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"{folder} cannot be loaded as a pair ({first_line(error)}); fetch it again.") from None
    if wrong := sorted(map(str, [*info["missing_keys"], *(m[0] for m in info["mismatched_keys"])])):
        raise InputError(
            f"{folder}: {len(wrong)} tensors of the pair are missing or misshapen, first {wrong[0]}; fetch it again."
        )
    return pair.to(device).eval().requires_grad_(False)


def load_processor(folder: str | Path):
    """The image processor of a pair of towers: what prepares pictures for its vision tower.

    Raises:
        InputError: there is none.
    """
    try:
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = first_line(error)
        raise InputError(f"{folder} has no usable preprocessor_config.json ({why}); fetch it again.") from None


# -------------------------------------------------------------------------------------------------- what is done to weights
def with_lora(student: TextEncoder, rank: int, alpha: float, seed: int) -> TextEncoder:
    """Freeze the student's weights; put trainable low-rank updates, zero at first, on linear layers and token embedding.

    Without the embedding, words the base has never read hardly get a meaning: they share the pieces of known ones.
    """
    embedding = student.model.get_input_embeddings()
    targets = [name for name, part in student.model.named_modules() if isinstance(part, nn.Linear) or part is embedding]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        student.model = peft.get_peft_model(student.model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets))
    return student


def merged(student: TextEncoder) -> TextEncoder:
    """A frozen plain encoder with the student's weights, low-rank updates added to the layers they stand on."""
    plain = copy.deepcopy(student)
    if isinstance(plain.model, peft.PeftModel):
        plain.model = plain.model.merge_and_unload()
    plain.model.requires_grad_(False)
    plain.model.set_attn_implementation("sdpa")
    return plain


def rounded(encoder: TextEncoder, precision: str) -> dict[str, Tensor]:
    """Weights after a round trip through a number format."""
    return {name: tensor.to(getattr(torch, precision)).to(tensor) for name, tensor in encoder.model.named_parameters()}


class MeanWeights:
    """The running mean of several encoders' weights."""

    def __init__(self):
        self.count = 0
        self.weights: dict[str, Tensor] = {}

    def add(self, encoder: TextEncoder) -> None:
        self.count += 1
        for name, tensor in encoder.model.named_parameters():
            self.weights[name] = torch.lerp(self.weights.get(name, tensor.detach()), tensor.detach(), 1 / self.count)

    def state_dict(self) -> dict:
        return {"count": self.count, "weights": self.weights}

    def load_state_dict(self, state: dict) -> None:
        self.count, self.weights = state["count"], state["weights"]


# ----------------------------------------------------------------------------------------------------------- the training
def finetune(
    base: TextEncoder, clip: CLIPModel | SiglipModel, pairs: Callable[[int], tuple[list[str], Tensor]], cfg: FinetuneConfig,
    progress: bool = True, checkpoint: Checkpoint | None = None,
    on_snapshot: Callable[[int, TextEncoder], None] | None = None,
) -> TextEncoder:  # fmt: skip
    """Fine-tune a copy of `base`, the text tower of `clip`, with the pair's contrastive loss and Adam.

    `pairs(step)` gives captions and pictures (b, 3, h, w), or the pictures' embeddings (b, p) where they are known;
    vision tower, projections and logit scale stay frozen.  `on_snapshot(steps, encoder)` gets each snapshot.

    Raises:
        InputError: the training diverged.
    """
    student, mean = trainable_copy(base), MeanWeights()
    if cfg.method == "lora":
        student = with_lora(student, cfg.rank, cfg.lora_alpha, cfg.seed)
    optimiser = torch.optim.Adam([p for p in student.model.parameters() if p.requires_grad], lr=cfg.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: cfg.share(step))

    def step_loss(step: int) -> tuple[Tensor, str]:
        texts, pictures = pairs(step)
        ids = base.trimmed(base.ids(texts)).to(base.device)
        with short_products(base.device):
            shown = picture_embeddings(clip, pictures)
            pooled = student.model(input_ids=ids).pooler_output
        loss = contrastive_loss(clip, project(clip, pooled.float()), shown.float())
        if not torch.isfinite(loss):
            raise InputError(f"the training diverged: no finite loss at step {step}; take a lower rate than {cfg.lr}.")
        return loss, ""

    def take_snapshot(done: int, _: str) -> None:
        if done in cfg.snapshots:
            snapshot = merged(student)
            mean.add(snapshot)
            if on_snapshot:
                on_snapshot(done, snapshot)

    label = "fine-tuning" if progress else ""
    run = Training({"student": student.model}, optimiser, schedule, cfg.steps, label, checkpoint, {"mean": mean})
    train(run, step_loss, take_snapshot)
    result = merged(student)
    if cfg.average_snapshots:
        set_weights(result, mean.weights)
    set_weights(result, interpolated(result, base, cfg.base_share))
    set_weights(result, rounded(result, cfg.precision))
    return result


@torch.no_grad()
def picture_embeddings(clip: CLIPModel | SiglipModel, pictures: Tensor) -> Tensor:
    """Pictures (b, 3, h, w), or what was embedded before (b, p), -> (b, p)"""
    pictures = pictures.to(clip.device)
    return pictures if pictures.ndim == 2 else clip.get_image_features(pictures).pooler_output


@torch.no_grad()
def retrieval(
    encoder: TextEncoder, clip: CLIPModel | SiglipModel, texts: list[str], pictures: Tensor, batch: int = 64
) -> float:
    """Top-1 text-to-image retrieval with `encoder` in place of the pair's own text tower; pictures as in `finetune`."""
    ids = encoder.trimmed(encoder.ids(texts))
    described = in_batches(encoder, ids, lambda e, some: project(clip, e.pooled(some)), size=batch)
    shown = torch.cat([picture_embeddings(clip, some) for some in pictures.split(batch)])
    nearest = (F.normalize(described, dim=-1) @ F.normalize(shown, dim=-1).T).argmax(dim=1).cpu()
    return (nearest == torch.arange(len(texts))).float().mean().item()
