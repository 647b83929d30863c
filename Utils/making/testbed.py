"""What the embedded testbed is made of: configs/testbed.yaml, which Utils/build_testbed.py trains by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vocabulary:
    """The byte-pair vocabulary."""

    captions: int
    """Captions it is learnt from."""
    vocabulary: int
    """Most tokens it may have: 512 bytes, the merges, begin and end of text."""


@dataclass(frozen=True)
class TextTower:
    """A transformer, in the words of its Hugging Face config."""

    hidden_size: int
    """Width of the features."""
    intermediate_size: int
    """Width inside a layer's perceptron."""
    num_hidden_layers: int
    """Depth."""
    num_attention_heads: int
    """Heads that share the width."""
    hidden_act: str
    """The perceptron's nonlinearity."""


@dataclass(frozen=True)
class VisionTower(TextTower):
    """The same over the patches of a picture."""

    patch_size: int
    """Side of a patch, pixels."""


@dataclass(frozen=True)
class Phase:
    """A stretch of training with a one-cycle rate."""

    steps: int
    """Batches."""
    lr: float
    """Highest rate."""


@dataclass(frozen=True)
class PairPhase(Phase):
    """A stretch of the CLIP pair's training."""

    next_token: float
    """Weight of a next-token loss on the text tower."""
    roll_calls: int
    """Batches that name every concept, after each batch of captions."""


@dataclass(frozen=True, kw_only=True)
class Captioned:
    """What every training on captioned pictures has."""

    context: int
    """Positions of the text tower."""
    batch: int
    """Captioned pictures of one step."""
    details: tuple[float, ...] = ()
    """Probability of each level of detail of a caption; empty: as captions usually are."""
    weight_decay: float = 0.01
    """Of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Clip(Captioned):
    """The CLIP pair."""

    text: TextTower
    """Its text tower."""
    vision: VisionTower
    """Its vision tower."""
    projection_dim: int
    """Width of the space that texts and pictures share."""
    phases: tuple[PairPhase, ...]
    """Its training, one after the other."""


@dataclass(frozen=True, kw_only=True)
class Longclip(Captioned, Phase):
    """The text tower of the long family; it starts from tiny-clip's."""

    next_token: float
    """Weight of a next-token loss."""


@dataclass(frozen=True, kw_only=True)
class Siglip(Captioned, Phase):
    """The SigLIP pair; both towers start from tiny-clip's."""

    hidden: float
    """Share of the tokens hidden in every second batch."""
    hidden_token: float
    """Weight of guessing them."""


@dataclass(frozen=True, kw_only=True)
class Autoencoder(Phase):
    """Pictures to latents and back."""

    channels: tuple[int, ...]
    """Width of each resolution."""
    batch: int
    """Pictures of one step."""
    kl: float
    """Weight of the latents' distance from a standard normal distribution."""
    weight_decay: float = 0.01
    """Of AdamW."""


@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """The UNet."""

    channels: tuple[int, ...]
    """Width of each resolution."""
    pictures: int
    """Latents and text features that are drawn once and kept."""
    counts: tuple[float, ...]
    """Probability of one, two and three things in a picture."""
    sizes: tuple[float, ...]
    """Probability of small, medium and big ones."""
    details: tuple[float, ...]
    """Probability of each level of detail of a caption."""
    phases: tuple[Phase, ...]
    """Its training, one after the other."""
    batch: int
    """Latents of one step."""
    unconditional: float
    """Share of empty prompts, for classifier-free guidance."""
    ema: float
    """Decay of the running mean of the weights, which is what is kept."""
    weight_decay: float = 0.01
    """Of AdamW."""


@dataclass(frozen=True)
class TinyModels:
    """configs/testbed.yaml: every model of the testbed."""

    seed: int
    """Decides all weights and all data."""
    tokenizer: Vocabulary
    """The vocabulary of the CLIP families."""
    clip: Clip
    """The CLIP pair, which the other families and the pipeline rest on."""
    vae: Autoencoder
    """The pipeline's autoencoder."""
    unet: Denoiser
    """The pipeline's denoiser."""
    longclip: Longclip
    """A family with a longer context."""
    siglip: Siglip
    """A family without causal attention."""
