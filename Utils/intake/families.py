"""The families of text encoders that the scan knows: which class, and what cannot be read from tokenizer and config."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    Siglip2Config,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipConfig,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

LEGACY_EOS = 2
"""What old CLIP configs say for end of text; transformers then pools at the highest token id."""


@dataclass(frozen=True)
class Family:
    """What has to be known about one kind of text encoder; the rest is read from tokenizer and config."""

    tower: type[PreTrainedModel]
    config: type[PreTrainedConfig]
    prefix: str
    """What checkpoints of larger models put before the tower's tensor names."""
    causal: bool = False
    """A position sees the earlier ones only."""
    masks: bool = False
    """Padding is hidden by an attention mask."""
    head: bool = True
    """The model summarises a text itself; otherwise the features of its tokens are averaged."""
    options: tuple[tuple[str, bool], ...] = ()
    """Further arguments of the tower's class."""

    @property
    def padding_free(self) -> bool:
        """Whether what stands behind the end of text changes nothing before it."""
        return self.causal or self.masks


_HEADLESS = (("add_pooling_layer", False),)  # sentence encoders average, and many files have no pooling layer
FAMILIES = {
    "clip": Family(CLIPTextModel, CLIPConfig, "text_model.", causal=True),
    "clip_text_model": Family(CLIPTextModel, CLIPTextConfig, "text_model.", causal=True),
    "siglip": Family(SiglipTextModel, SiglipConfig, "text_model."),
    "siglip_text_model": Family(SiglipTextModel, SiglipTextConfig, "text_model."),
    "siglip2": Family(Siglip2TextModel, Siglip2Config, "text_model."),
    "siglip2_text_model": Family(Siglip2TextModel, Siglip2TextConfig, "text_model."),
    "bert": Family(BertModel, BertConfig, "bert.", masks=True, head=False, options=_HEADLESS),
    "roberta": Family(RobertaModel, RobertaConfig, "roberta.", masks=True, head=False, options=_HEADLESS),
    "xlm-roberta": Family(XLMRobertaModel, XLMRobertaConfig, "roberta.", masks=True, head=False, options=_HEADLESS),
    "mpnet": Family(MPNetModel, MPNetConfig, "mpnet.", masks=True, head=False, options=_HEADLESS),
    "distilbert": Family(DistilBertModel, DistilBertConfig, "distilbert.", masks=True, head=False),
    "t5": Family(T5EncoderModel, T5Config, "", masks=True, head=False),
}
"""model_type in config.json -> the family."""


def is_family(kind: object) -> bool:
    """Whether what a config says for its model type, which may be anything, is a family's name."""
    return isinstance(kind, str) and kind in FAMILIES
