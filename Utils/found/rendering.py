"""Features to pictures: what a diffusers pipeline draws where it expects the features of a prompt.

The denoising loop is diffusers' own; nothing but its denoiser, autoencoder and scheduler is loaded from the pipeline's
folder, safetensors only, and only classes that are listed here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor

from Utils.basics.errors import InputError, told
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.files import check_files
from Utils.intake.folders import index_of
from Utils.intake.reader import Reader
from Utils.intake.weights import weight_files

FAMILY = "StableDiffusionPipeline"
PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler", "HeunDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler",
)  # fmt: skip
STEPS = 25
GUIDANCE = 7.5
"""Classifier-free guidance, as diffusers has it."""
RESCALE = 0.7
"""Guidance rescale (Lin et al., 2024) for pipelines with zero terminal signal-to-noise, whose pictures guidance burns."""


@dataclass(frozen=True)
class Renderer:
    """A loaded pipeline without its text encoder: features go in, pictures come out."""

    pipe: StableDiffusionPipeline
    folder: Path

    @property
    def width(self) -> int:
        """d, the width of the features it expects."""
        return self.pipe.unet.config.cross_attention_dim

    def check(self, feature: Tensor) -> None:
        """Refuse a feature that is not (1, T, d) of this pipeline's d."""
        if feature.shape[-1] != self.width:
            raise InputError(
                f"the feature is {feature.shape[-1]} wide, the pipeline {self.folder} expects {self.width}; "
                "name the pipeline of the encoder's own base with --pipeline."
            )

    @torch.no_grad()
    def __call__(self, feature: Tensor, negative: Tensor, count: int, seed: int) -> list[Image.Image]:
        """`count` pictures of one feature; picture i has the seed `seed` + i, whatever `count` is.  (1, T, d) twice"""
        self.check(feature), self.check(negative)
        if feature.shape != negative.shape:
            raise InputError(
                f"the feature has {feature.shape[1]} positions and the empty prompt of {self.folder} {negative.shape[1]}; "
                "name the pipeline of the encoder's own base with --pipeline."
            )
        where = {"device": self.pipe.device, "dtype": self.pipe.unet.dtype}
        noise = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        flat = self.pipe.scheduler.config.get("rescale_betas_zero_snr", False)
        return self.pipe(
            prompt_embeds=feature.to(**where).expand(count, -1, -1),
            negative_prompt_embeds=negative.to(**where).expand(count, -1, -1),
            num_inference_steps=STEPS, guidance_scale=GUIDANCE, guidance_rescale=RESCALE if flat else 0.0, generator=noise,
        ).images  # fmt: skip


def check_family(folder: Path, anchor: TextEncoder) -> None:
    """Refuse a pipeline whose own text encoder is of another kind than the anchor: it never learnt to read such features."""
    if not (folder / "text_encoder" / "config.json").exists():
        return
    config = Reader(folder).json(folder / "text_encoder" / "config.json")
    names = ("model_type", "hidden_size", "max_position_embeddings")
    own, wanted = ({name: c.get(name) for name in names} for c in (config, anchor.model.config.to_dict()))
    if own != wanted:
        raise InputError(f"{folder} reads {list(own.values())}, the base is {list(wanted.values())}; name its own --pipeline.")


def load_renderer(folder: Path, device: torch.device) -> Renderer:
    """Load what is needed to draw from the folder of a Stable Diffusion pipeline.

    Raises:
        InputError: no folder, another family, missing parts, pickles, or files that do not fit; one sentence with the cure.
    """
    index = read_index(folder)
    for name in (*PARTS, "scheduler"):
        check_files(folder / name, folder)
    parts = {name: _load_part(folder / name, kind) for name, kind in PARTS.items()}
    scheduler = _load_scheduler(folder / "scheduler", index["scheduler"][1])
    pipe = StableDiffusionPipeline(
        **parts, scheduler=scheduler, text_encoder=None, tokenizer=None, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    if not isinstance(pipe.unet.config.cross_attention_dim, int):
        raise InputError(f"{folder / 'unet'} expects features of several widths; give a Stable Diffusion 1.x or 2.x pipeline.")
    return Renderer(pipe.to(device), folder)


def read_index(folder: Path) -> dict:
    """model_index.json with every class name checked, before anything is loaded."""
    if not folder.is_dir():
        raise InputError(f"the pipeline {folder} does not exist; give the folder of a Stable Diffusion pipeline.")
    check_files(folder, folder)
    if not (folder / "model_index.json").exists():
        raise InputError(f"{folder} holds no model_index.json: it is no pipeline; name one with --pipeline.")
    index = index_of(folder)
    if index.get("_class_name") != FAMILY:
        raise InputError(f"{folder} is a {index.get('_class_name')!r}; features can be drawn by a {FAMILY} only.")
    allowed = {name: (kind.__name__,) for name, kind in PARTS.items()} | {"scheduler": SCHEDULERS}
    for name, classes in allowed.items():
        entry = index.get(name)
        if entry in (None, [None, None]):
            raise InputError(f"{folder}: model_index.json names no {name}; fetch the whole pipeline.")
        if not (isinstance(entry, list) and len(entry) == 2 and entry[0] == "diffusers" and entry[1] in classes):
            raise InputError(f"{folder}: the {name} is {entry!r}, not one of {', '.join(classes)}; nothing was loaded.")
    return index


def _load_part(folder: Path, kind: type) -> UNet2DConditionModel | AutoencoderKL:
    if not folder.is_dir():
        raise InputError(f"{folder.parent} holds no {folder.name}; fetch the whole pipeline.")
    _, variant = weight_files(folder, "diffusion_pytorch_model")
    try:
        part, info = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            torch_dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # a config can be wrong in any way
        raise InputError(f"{folder} cannot be loaded as a {kind.__name__}{told(error)}; fetch it again.") from None
    if info["missing_keys"]:
        raise InputError(f"{folder}: {len(info['missing_keys'])} tensors are missing, first {info['missing_keys'][0]}.")
    return part.eval().requires_grad_(False)


def _load_scheduler(folder: Path, name: str) -> diffusers.SchedulerMixin:
    if not folder.is_dir():
        raise InputError(f"{folder.parent} holds no scheduler; fetch the whole pipeline.")
    try:
        return getattr(diffusers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # a config can be wrong in any way
        raise InputError(f"{folder} cannot be loaded as a {name}{told(error)}; fetch it again.") from None


def read_feature(file: Path) -> Tensor:
    """A feature as the scan writes it, Backdoor_Feature.pt.  -> (1, T, d)"""
    try:
        feature = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{file} does not exist; give the Backdoor_Feature.pt of a scan.") from None
    except Exception:  # torch raises a dozen types for files that are no plain tensors
        raise InputError(f"{file} holds no plain tensor; give the Backdoor_Feature.pt of a scan.") from None
    if not (isinstance(feature, Tensor) and feature.dim() == 3 and len(feature) == 1 and torch.isfinite(feature).all()):
        raise InputError(f"{file} holds no feature of shape (1, T, d); give the Backdoor_Feature.pt of a scan.")
    return feature.float()


def save_pictures(pictures: list[Image.Image], folder: Path, name: str) -> list[str]:
    """Write pictures as <name>_1.png and so on.  -> the file names"""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{name}_{i}.png" for i in range(1, len(pictures) + 1)]
    for picture, file in zip(pictures, names, strict=True):
        picture.save(folder / file)
    return names
