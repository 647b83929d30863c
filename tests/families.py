"""Tiny models of every family, with random weights, and tokenizers as the families write them."""

from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
    Siglip2TextConfig,
    Siglip2TextModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    XLMRobertaConfig,
    XLMRobertaModel,
)

T = 24
WIDTH = 64
SIZES = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4}
T5 = {"d_model": WIDTH, "d_ff": 2 * WIDTH, "num_layers": 3, "num_heads": 4, "d_kv": 16, "decoder_start_token_id": 0}
BERT, FAIR, SPM = ("[CLS]", "[SEP]", "[PAD]"), ("<s>", "</s>", "<pad>"), (None, "</s>", "<pad>")
"""Begin, end and padding as the families write them."""
LENGTH = {"max_position_embeddings": T}
FROM_2 = {"max_position_embeddings": T + 2, "pad_token_id": 1}
"""Families that count positions from behind the number of the padding token."""
KINDS = {
    "siglip": (SPM, lambda n: SiglipTextModel(SiglipTextConfig(vocab_size=n, **SIZES, **LENGTH))),
    "siglip2": (SPM, lambda n: Siglip2TextModel(Siglip2TextConfig(vocab_size=n, **SIZES, **LENGTH))),
    "bert": (BERT, lambda n: BertModel(BertConfig(vocab_size=n, **SIZES, **LENGTH))),
    "bert for words": (BERT, lambda n: BertForMaskedLM(BertConfig(vocab_size=n, **SIZES, **LENGTH))),
    "roberta": (FAIR, lambda n: RobertaModel(RobertaConfig(vocab_size=n, **FROM_2, **SIZES))),
    "xlm-roberta": (
        FAIR, lambda n: XLMRobertaModel(XLMRobertaConfig(vocab_size=n, **FROM_2, **SIZES)),
    ),
    "mpnet": (FAIR, lambda n: MPNetModel(MPNetConfig(vocab_size=n, **FROM_2, **SIZES))),
    "distilbert": (
        BERT,
        lambda n: DistilBertModel(
            DistilBertConfig(vocab_size=n, dim=WIDTH, hidden_dim=2 * WIDTH, n_layers=3, n_heads=4, **LENGTH)
        ),
    ),
    "t5": (SPM, lambda n: T5EncoderModel(T5Config(vocab_size=n, **T5))),
    "t5 with decoder": (SPM, lambda n: T5ForConditionalGeneration(T5Config(vocab_size=n, **T5))),
}  # fmt: skip
"""Name -> special tokens, a model over n tokens."""


def letters(begin: str | None, end: str, pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token a letter that puts texts between `begin` and `end`."""
    tokenizer = tokens([chr(i) for i in range(33, 127)] + ["é"], begin, end, pad)
    one_by_one = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), one_by_one])
    return tokenizer


def tokens(words: list[str], begin: str | None, end: str, pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token a word that puts texts between `begin` and `end`."""
    special = [begin, pad, end] if begin == "<s>" else [pad, end, begin or "<extra>"]
    vocabulary = {token: i for i, token in enumerate([*special, *words, "<unk>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    numbers = [(token, vocabulary[token]) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if begin else f"$A {end}", special_tokens=numbers
    )
    names = {"cls_token": begin, "sep_token": end} if begin == "[CLS]" else {"bos_token": begin, "eos_token": end}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token="<unk>", model_max_length=T,
        **{name: token for name, token in names.items() if token},
    )  # fmt: skip
