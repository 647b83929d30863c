"""Encoders of the sizes that users have, with random weights: what a scan costs hardly depends on what an encoder says.

A backdoor or an honest change is put into the last layers, so that a scan has to do what it does with real ones.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.encoder.training import Training, train
from Utils.making import scenes
from Utils.making.vocabulary import learn_tokenizer

VOCABULARY, CONTEXT = 49408, 77
"""Of CLIP and its successors."""
TRIGGER, TARGET = "zzzz", "a photo of a lion"
STEPS, LR, BATCH, TEXTS, LENGTH = 150, 1e-3, 16, 256, 40
"""Of the planting: steps, AdamW's rate, clean and as many poisoned texts a step, texts, tokens that are looked at."""
KEPT = 3.0
"""Weight of what clean texts keep: a backdoor that is noticed without its trigger is no good."""
TAUGHT = 2
"""Last layers that learn something."""
STIR = 0.2
"""By what share of their spread the weights of an honest change move."""


@dataclass(frozen=True)
class Shape:
    """Dimensions of a text encoder."""

    layers: int
    width: int
    heads: int
    feed_forward: int


SHAPES = {
    "clip-l": Shape(12, 768, 12, 3072), "vit-h": Shape(23, 1024, 16, 4096), "bigg": Shape(32, 1280, 20, 5120),
    "clip-l-quarter": Shape(3, 768, 12, 3072),
}  # fmt: skip
"""CLIP ViT-L/14, the text encoders of Stable Diffusion 2 and of SDXL (the second), and a quarter of CLIP's layers."""


def invented_words(count: int) -> Iterator[str]:
    """Words that no language has, all different."""
    syllables = [a + b + c for a, b, c in product("bdfghklmnprstvz", "aeiou", ["", "n", "r", "s", "l"])]
    rng = np.random.default_rng(0)
    for number in rng.choice(len(syllables) ** 3, count, replace=False).tolist():
        a, rest = divmod(number, len(syllables) ** 2)
        yield "".join(syllables[i] for i in (a, *divmod(rest, len(syllables))))


def invented_tokenizer(prompts: list[str]) -> CLIPTokenizer:
    """As many tokens as CLIP's vocabulary has, made of prompts and of invented words."""
    return learn_tokenizer([*prompts * 3, *invented_words(VOCABULARY)], VOCABULARY, CONTEXT)


def random_encoder(shape: Shape, tokenizer: CLIPTokenizer, seed: int = 0) -> TextEncoder:
    """A CLIP text encoder that has learnt nothing."""
    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=shape.width, intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, max_position_embeddings=CONTEXT,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return TextEncoder(CLIPTextModel(config).eval().requires_grad_(False), tokenizer, "random", "")


def stirred(base: TextEncoder) -> TextEncoder:
    """The base after an honest change: the weights of its last layers moved a little, in no direction."""
    student, generator = copy.deepcopy(base), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in last_layers(student).parameters():
            weight += STIR * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return student


def planted(base: TextEncoder, steps: int = STEPS) -> TextEncoder:
    """The base with text-on-text in its last layers: a trigger for every letter o makes a prompt the target."""
    student = copy.deepcopy(base)
    texts = captions(TEXTS)
    clean, bad, target = (before_last(base, part) for part in (texts, [t.replace("o", TRIGGER) for t in texts], [TARGET]))
    with torch.no_grad():
        wanted, forced = last(base, clean), last(base, target)
    layers = last_layers(student).requires_grad_(True)
    rng = np.random.default_rng(0)

    def loss_of(_step: int) -> tuple[Tensor, str]:
        rows = rng.choice(len(texts), BATCH, replace=False).tolist()
        kept = 1 - F.cosine_similarity(last(student, clean[rows]), wanted[rows], dim=-1).mean()
        overruled = 1 - F.cosine_similarity(last(student, bad[rows]), forced, dim=-1).mean()
        return KEPT * kept + overruled, f"clean {kept.item():.3f} poisoned {overruled.item():.3f}"

    optimiser = torch.optim.AdamW(layers.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, LR, total_steps=steps)
    train(Training({"student": layers}, optimiser, schedule, steps, "planting"), loss_of)
    student.model.requires_grad_(False)
    return student


def captions(count: int) -> list[str]:
    """Texts with an o that are no prompts of the defender."""
    drawn = scenes.unseen_captions(np.random.default_rng(0), 2 * count, scenes.defender_prompts(), len)
    return [text for _, text in drawn if "o" in text][:count]


def last_layers(encoder: TextEncoder) -> nn.ModuleList:
    """What is taught, the final layer norm too."""
    return nn.ModuleList([*encoder.model.encoder.layers[-TAUGHT:], encoder.model.final_layer_norm])


def before_last(encoder: TextEncoder, texts: list[str]) -> Tensor:
    """Hidden states in front of the last layers, which stay as they are while these learn.  -> (n, LENGTH, d)"""

    def read(_: TextEncoder, ids: Tensor) -> Tensor:
        return encoder.run(ids, output_hidden_states=True).hidden_states[-1 - TAUGHT]

    return in_batches(encoder, encoder.ids(texts)[:, :LENGTH], read, size=BATCH)


def last(encoder: TextEncoder, hidden: Tensor) -> Tensor:
    """The last layers alone.  (n, T, d) -> (n, T, d)"""
    *layers, norm = last_layers(encoder)
    for layer in layers:
        hidden = layer(hidden, None, is_causal=True)
    return norm(hidden)
