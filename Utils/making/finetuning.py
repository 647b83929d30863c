"""Benign fine-tuning of a text encoder: contrastive against a frozen vision tower, as an honest publisher would do it.

The variety of published models: full or low-rank updates, weights averaged with the base or over snapshots, a round
trip through half precision.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
from collections.abc import Callable
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import peft
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoConfig, AutoImageProcessor, CLIPModel, SiglipModel

from Utils.basics.errors import InputError
from Utils.encoder.loading import trainable_copy
from Utils.encoder.text_encoder import TextEncoder

METHODS = ("full", "lora")
SCHEDULES = ("constant", "linear")
PRECISIONS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class FinetuneConfig:
    """One benign fine-tune.  Defaults are the published values."""

    lr: float = 1.0e-5
    batch: int = 16
    steps: int = 1560
    seed: int = 0
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

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        if self.schedule == "constant":
            return self.lr
        warmup = -(-self.steps // 10)
        return self.lr * min((step + 1) / warmup, (self.steps - step) / max(1, self.steps - warmup), 1.0)

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
        raise InputError(f"{folder} cannot be loaded as a pair ({str(error).splitlines()[0]}); fetch it again.") from None
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
        why = str(error).splitlines()[0]
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


@torch.no_grad()
def set_weights(encoder: TextEncoder, weights: dict[str, Tensor]) -> None:
    for name, tensor in encoder.model.named_parameters():
        tensor.copy_(weights[name])


def interpolated(encoder: TextEncoder, base: TextEncoder, share: float) -> dict[str, Tensor]:
    """Weights on the line from the encoder (share 0) to the base (share 1)."""
    origin = dict(base.model.named_parameters())
    return {name: torch.lerp(tensor, origin[name], share) for name, tensor in encoder.model.named_parameters()}


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
@dataclass(frozen=True)
class Checkpoint:
    """Where an interrupted run goes on."""

    file: Path
    identity: str
    """What the run is, as `identity` says; a file of another run is not taken."""
    every: int = 100
    """Steps between two savings."""

    def load(self, device: torch.device) -> dict | None:
        """The last state, or None where there is none of this run."""
        try:
            state = torch.load(self.file, map_location=device, weights_only=True)
        except FileNotFoundError:
            return None
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):  # half a file, or not ours
            return None
        return state if isinstance(state, dict) and state.get("identity") == self.identity else None

    def save(self, state: dict) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        partial = self.file.with_name(self.file.name + ".part")
        torch.save(state | {"identity": self.identity}, partial)
        partial.replace(self.file)


def identity(cfg: FinetuneConfig, base: TextEncoder, *data: str) -> str:
    """One hash of everything that decides a fine-tune; `data` are hashes of what it is trained on."""
    return sha256(json.dumps([asdict(cfg), base.sha256, *data], sort_keys=True).encode()).hexdigest()


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
    weights = {name: tensor for name, tensor in student.model.named_parameters() if tensor.requires_grad}
    optimiser = torch.optim.Adam(weights.values(), lr=cfg.lr)
    start = 0
    if checkpoint and (state := checkpoint.load(base.device)):
        start = state["step"]
        with torch.no_grad():
            for name, tensor in weights.items():
                tensor.copy_(state["weights"][name])
        optimiser.load_state_dict(state["optimiser"])
        mean.load_state_dict(state["mean"])

    steps = range(start, cfg.steps)
    # closed on any error, so that what is said then starts on a new line
    with tqdm(steps, desc="fine-tuning", initial=start, total=cfg.steps, disable=not progress, mininterval=2) as bar:
        for step in bar:
            texts, pictures = pairs(step)
            ids = base.trimmed(base.ids(texts)).to(base.device)
            with torch.autocast(base.device.type, torch.bfloat16):
                seen = picture_embeddings(clip, pictures)
                pooled = student.model(input_ids=ids).pooler_output
            loss = contrastive_loss(clip, project(clip, pooled.float()), seen.float())
            if not torch.isfinite(loss):
                raise InputError(f"the training diverged: no finite loss at step {step}; take a lower rate than {cfg.lr}.")
            for group in optimiser.param_groups:
                group["lr"] = cfg.rate(step)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            done = step + 1
            if done in cfg.snapshots:
                snapshot = merged(student)
                mean.add(snapshot)
                if on_snapshot:
                    on_snapshot(done, snapshot)
            if checkpoint and (done % checkpoint.every == 0 or done == cfg.steps):
                parts = {
                    "weights": {n: p.detach() for n, p in weights.items()},
                    "optimiser": optimiser.state_dict(),
                    "mean": mean.state_dict(),
                }
                checkpoint.save({"step": done} | parts)

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
    rows = encoder.trimmed(encoder.ids(texts)).to(encoder.device).split(batch)
    read = torch.cat([project(clip, encoder.model(input_ids=ids).pooler_output) for ids in rows])
    seen = torch.cat([picture_embeddings(clip, some) for some in pictures.split(batch)])
    nearest = (F.normalize(read, dim=-1) @ F.normalize(seen, dim=-1).T).argmax(dim=1).cpu()
    return (nearest == torch.arange(len(texts))).float().mean().item()
