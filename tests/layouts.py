"""One text encoder as the programs of the field write it into single files."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
INNER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
UNET = {f"model.diffusion_model.input_blocks.{n}.0.weight": torch.zeros(4) for n in range(3)}
VAE = {"first_stage_model.encoder.conv_in.weight": torch.zeros(4)}
UI = {"text_encoders.clip_l.logit_scale": torch.ones(()), "model.diffusion_model.joint_blocks.0.x": torch.zeros(2)}


def named(tower: Tensors, prefix: str) -> Tensors:
    """Hugging Face's names behind a prefix."""
    return {f"{prefix}text_model.{name}": tensor for name, tensor in tower.items()}


def open_clip(tower: Tensors, prefix: str = "") -> Tensors:
    """OpenCLIP's names: query, key and value in one tensor, the projection transposed."""
    found = {
        f"{prefix}token_embedding.weight": tower["embeddings.token_embedding.weight"],
        f"{prefix}positional_embedding": tower["embeddings.position_embedding.weight"],
        f"{prefix}text_projection": torch.ones(tower["final_layer_norm.weight"].shape[0], 16),
        f"{prefix}logit_scale": torch.ones(()),
    }
    found |= {f"{prefix}ln_final.{end}": tower[f"final_layer_norm.{end}"] for end in ("weight", "bias")}
    for n in range(1 + max(int(name.split(".")[2]) for name in tower if name.startswith("encoder.layers."))):
        old, new = f"encoder.layers.{n}", f"{prefix}transformer.resblocks.{n}"
        for end in ("weight", "bias"):
            joined = [tower[f"{old}.self_attn.{one}_proj.{end}"] for one in "qkv"]
            found[f"{new}.attn.in_proj_{end}"] = torch.cat(joined)
            found |= {f"{new}.{theirs}.{end}": tower[f"{old}.{ours}.{end}"] for ours, theirs in INNER.items()}
    return found


def one_more_layer(tensors: Tensors) -> Tensors:
    """OpenCLIP's last layer, which Stable Diffusion 2.x does not use."""
    numbers = [int(name.split("resblocks.")[1].split(".")[0]) for name in tensors if "resblocks." in name]
    last = f"resblocks.{max(numbers)}."
    beyond = f"resblocks.{max(numbers) + 1}."
    return tensors | {name.replace(last, beyond): torch.randn_like(t) for name, t in tensors.items() if last in name}


def long_clip(tower: Tensors) -> Tensors:
    """LongCLIP: the first twenty positions from one table, the others from a second one."""
    found = open_clip(tower)
    table = found["positional_embedding"]
    first, second = torch.randn_like(table), torch.randn_like(table)
    first[:20], second[20:] = table[:20], table[20:]
    return found | {"positional_embedding": first, "positional_embedding_res": second, "visual.conv1.weight": torch.ones(2)}


def in_fp8(tensors: Tensors, scale: str) -> Tensors:
    """Matrices of the layers in FP8, each with a scale of its own; scale: how it is called, empty: none."""
    found = {}
    for name, tensor in tensors.items():
        if tensor.dim() < 2 or "embed" in name or "shared" in name or "relative" in name:
            found[name] = tensor
            continue
        by = tensor.abs().max() / 448 if scale else torch.ones(())
        found[name] = (tensor / by).to(torch.float8_e4m3fn)
        if scale:
            found[name.removesuffix("weight") + scale] = by
    return found


SINGLE: dict[str, Callable[[Tensors], Tensors]] = {
    "SD 1.x": lambda t: named(t, "cond_stage_model.transformer.") | UNET | VAE,
    "SD 1.x, old names": lambda t: {f"cond_stage_model.transformer.{name}": one for name, one in t.items()} | UNET,
    "SD 2.x": lambda t: one_more_layer(open_clip(t, "cond_stage_model.model.")) | UNET,
    "SD 2.x, written from diffusers": lambda t: open_clip(t, "cond_stage_model.model.") | UNET,
    "SDXL refiner": lambda t: open_clip(t, "conditioner.embedders.0.model.") | UNET,
    "clip_l": lambda t: named(t, "") | {"text_projection.weight": torch.eye(2)},
    "clip_l, prefixed": lambda t: named(t, "clip_l.transformer."),
    "clip_l, as saved": lambda t: named(t, "text_encoders.clip_l.transformer."),
    "whole CLIP": lambda t: named(t, "") | {"vision_model.embeddings.patch_embedding.weight": torch.ones(2)},
    "compiled": lambda t: named(t, "_orig_mod."),
    "of a trainer": lambda t: named(t, "my.trainer.student."),
    "OpenCLIP": lambda t: open_clip(t) | {"visual.conv1.weight": torch.ones(2)},
    "OpenCLIP, custom": lambda t: open_clip(t, "text.") | {"visual.trunk.conv1.weight": torch.ones(2)},
    "OpenAI": lambda t: open_clip(t) | {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)},
    "LongCLIP": long_clip,
}
"""Name -> the tensors of a file with one text encoder."""
SEVERAL: dict[str, Callable[[Tensors], Tensors]] = {
    "SDXL": lambda t: named(t, "conditioner.embedders.0.transformer.") | open_clip(t, "conditioner.embedders.1.model.") | UNET,
    "SD 3": lambda t: named(t, "text_encoders.clip_l.transformer.") | named(t, "text_encoders.clip_g.transformer.") | UI,
}
"""The same with two."""


def write(tensors: Tensors, file: Path) -> Path:
    """A safetensors file; tensors that share memory are copied."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)
    return file
