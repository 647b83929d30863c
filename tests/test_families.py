"""Families: every kind of text encoder is run by its own forward pass, spliced, masked and summarised as it should be.

Contents
    loading   tiny random models of every family load, alone and out of a larger checkpoint
    reading   begin, end, context and padding come from tokenizer and config
    splice    equals a forward pass over a hand-built embedding
    padding   changes nothing where the family hides it
    summary   the family's own, or the mean of attended positions
    legacy    an end of text numbered 2 keeps its pooling
    scan      ends with "uncalibrated" for each of them
"""

import json
from pathlib import Path

import pytest
import torch
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

import main
from Utils.encoders import TextEncoder, load_encoder, run_spliced, same_shape, splice_ids

T = 24
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
T5 = {"d_model": 32, "d_ff": 64, "num_layers": 3, "num_heads": 4, "d_kv": 8, "decoder_start_token_id": 0}
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
        BERT, lambda n: DistilBertModel(DistilBertConfig(vocab_size=n, dim=32, hidden_dim=64, n_layers=3, n_heads=4, **LENGTH)),
    ),
    "t5": (SPM, lambda n: T5EncoderModel(T5Config(vocab_size=n, **T5))),
    "t5 with decoder": (SPM, lambda n: T5ForConditionalGeneration(T5Config(vocab_size=n, **T5))),
}  # fmt: skip
"""Name -> special tokens, a model over n tokens."""


def letters(begin: str | None, end: str, pad: str) -> PreTrainedTokenizerFast:
    """A tokenizer with a token a letter that puts texts between `begin` and `end`."""
    signs = [chr(i) for i in range(33, 127)] + ["é", "<unk>"]
    special = [begin, pad, end] if begin == "<s>" else [pad, end, begin or "<extra>"]
    vocabulary = {token: i for i, token in enumerate([*special, *signs])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex("."), "isolated")]
    )
    numbers = [(token, vocabulary[token]) for token in special]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}" if begin else f"$A {end}", special_tokens=numbers
    )
    names = {"cls_token": begin, "sep_token": end} if begin == "[CLS]" else {"bos_token": begin, "eos_token": end}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=pad, unk_token="<unk>", model_max_length=T,
        **{name: token for name, token in names.items() if token},
    )  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    specials, build = KINDS[request.param]
    tokenizer = letters(*specials)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(len(tokenizer))
    where = tmp_path_factory.mktemp("family") / request.param.replace(" ", "_")
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def encoder(folder: Path) -> TextEncoder:
    return load_encoder(folder)


# ------------------------------------------------------------------------------------------------------------ loading
def test_it_loads_frozen_with_every_layer(encoder: TextEncoder, corpus_prompts: list[str]):
    ids = encoder.ids(corpus_prompts)
    layers, summary = encoder.layers(ids)
    assert ids.shape == (len(corpus_prompts), T)
    assert len(layers) == encoder.model.config.num_hidden_layers == 3
    assert torch.equal(layers[-1], encoder(ids))
    assert summary.shape == (len(corpus_prompts), 32)
    assert same_shape(encoder, encoder)


def test_what_is_no_part_of_the_tower_is_listed(encoder: TextEncoder, folder: Path):
    ignored = {name.split(".")[0] for name in encoder.ignored_tensors}
    whole = {"bert_for_words": {"cls"}, "t5_with_decoder": {"decoder"}, "bert": {"pooler"}, "roberta": {"pooler"}}
    whole |= {"xlm-roberta": {"pooler"}, "mpnet": {"pooler"}}
    assert ignored - {"lm_head"} == whole.get(folder.name, set())


# ------------------------------------------------------------------------------------------------------------ reading
def test_begin_and_end_come_from_the_tokenizer(encoder: TextEncoder):
    ids = encoder.ids(["ab"])
    attended = encoder.attended(ids)[0]
    first = encoder.tokenizer.convert_ids_to_tokens(int(ids[0, 0]))
    assert encoder.begin == (first != "a")
    assert encoder.context == T
    assert attended.sum() == 3  # a, b, end
    assert not attended[: encoder.begin].any()
    assert int(ids[0, attended.nonzero().max()]) == encoder.eos


# ------------------------------------------------------------------------------------------------------------- splice
@pytest.mark.parametrize("k", [1, 3])
def test_a_splice_equals_a_hand_built_embedding(encoder: TextEncoder, corpus_prompts: list[str], k: int):
    torch.manual_seed(k)
    v = torch.randn(k, 32)
    ids = splice_ids(encoder, encoder.ids(corpus_prompts), k)
    rows = encoder.vocabulary[ids].clone()
    rows[:, encoder.begin : encoder.begin + k] = v
    handle = encoder.embedding.register_forward_hook(lambda _module, _args, _rows: rows)
    try:
        expected = encoder(ids)
    finally:
        handle.remove()
    found = run_spliced(encoder, v, ids)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, encoder(ids), atol=1e-3)  # the control: the splice is felt
    assert (ids == encoder.eos).any(dim=1).all()


def test_only_the_vector_has_a_gradient(encoder: TextEncoder):
    v = torch.randn(1, 32, requires_grad=True)
    run_spliced(encoder, v, splice_ids(encoder, encoder.ids(["a dog"]), 1)).sum().backward()
    assert v.grad is not None
    assert all(p.grad is None for p in encoder.model.parameters())


# ------------------------------------------------------------------------------------------------------------ padding
def test_padding_changes_nothing_where_the_family_hides_it(encoder: TextEncoder, corpus_prompts: list[str]):
    short = [prompt for prompt in corpus_prompts if len(prompt) < 12]
    ids = encoder.ids(short)
    cut = encoder.trimmed(ids)
    mask = encoder.attended(cut)
    if not encoder.family.padding_free:
        assert cut.shape == ids.shape
        return
    assert cut.shape[1] < T
    (full, summary), (less, summary_less) = encoder.both(ids), encoder.both(cut)
    torch.testing.assert_close(less[mask], full[:, : cut.shape[1]][mask], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(summary_less, summary, rtol=1e-4, atol=1e-5)
    alone = torch.cat([encoder.both(encoder.trimmed(encoder.ids([prompt])))[1] for prompt in short])
    torch.testing.assert_close(alone, summary, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ summary
def test_the_summary_is_the_familys_own_or_the_mean_of_what_is_attended(encoder: TextEncoder, corpus_prompts: list[str]):
    ids = encoder.ids(corpus_prompts)
    features, summary = encoder.both(ids)
    if encoder.family.head:
        torch.testing.assert_close(summary, encoder.model.head(features[:, -1]))
        return
    for row, text in enumerate(corpus_prompts):
        end = (ids[row] == encoder.eos).nonzero()[0]
        torch.testing.assert_close(summary[row], features[row, : end + 1].mean(dim=0), msg=text)


def test_a_sentence_encoder_that_pools_at_the_first_token_does(folder: Path):
    pooling = folder / "1_Pooling"
    pooling.mkdir()
    (pooling / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    encoder = load_encoder(folder)
    (pooling / "config.json").unlink()
    pooling.rmdir()
    features, summary = encoder.both(encoder.ids(["a dog"]))
    assert torch.equal(summary, features[:, 0]) != encoder.family.head


# ------------------------------------------------------------------------------------------------------------- legacy
def test_a_legacy_end_of_text_keeps_its_pooling(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    """Old CLIP configs say 2; the model then pools at the highest id, which is the first end of text."""
    config = json.loads((editable / "config.json").read_text(encoding="utf-8"))
    (editable / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}), encoding="utf-8")
    old = load_encoder(editable)
    ids = old.ids(corpus_prompts)
    features, summary = old.both(ids)
    torch.testing.assert_close(summary, tiny.both(ids)[1])
    ends = (ids == old.eos).int().argmax(dim=1)
    assert torch.equal(summary, features[torch.arange(len(ids)), ends])


# --------------------------------------------------------------------------------------------------------------- scan
def test_a_scan_ends_uncalibrated(folder: Path, tmp_path: Path):
    settings = [
        "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "3", "--landscape-points", "3", "--restarts", "2",
        "--landscape-planes", "1", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    code = main.main(["--model", str(folder), "--anchor", str(folder), "--output", str(tmp_path), *settings])
    (report,) = tmp_path.glob("*/report.json")
    content = json.loads(report.read_text(encoding="utf-8"))
    assert (code, content["verdict"]) == (3, "inconclusive")
    assert any("uncalibrated" in note for note in content["notes"])
    drift = next(e["value"] for e in content["evidence"] if e["name"] == "drift")
    assert drift == pytest.approx(0, abs=1e-3)
