"""Siblings: what lies beside weights, in every form that its library writes.

Contents
    pooling     old keys and new ones, several side by side, unknown ones; the encoder at the root or in a folder of its own
    pieces      SentencePiece models alone and beside tokenizer.json: ids as the library itself makes them
    tokenizer   none at all, and the cure
    names       of tensors that wrappers have changed
    layers      that are stored and not counted
    variants    weights of any variant
"""

import io
import json
import shutil
import time
from pathlib import Path

import pytest
import sentencepiece
import torch
import torch.nn.functional as F
from families import FROM_2, LENGTH, SIZES, T5, T, letters
from safetensors.torch import load_file
from test_loading import WEIGHTS, reconfigure, refusal, rewrite, same_features
from torch import Tensor
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextModel,
    PreTrainedModel,
    SiglipTextConfig,
    SiglipTextModel,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from Utils.encoder.loading import load_encoder
from Utils.encoder.readings import compare
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import encoders_of
from Utils.intake.digests import files_digest
from Utils.report.limits import Wanted, limits_of

MODULES = (("Transformer", "encoder"), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))


# ------------------------------------------------------------------------------------------------------------ pooling
@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = letters("[CLS]", "[SEP]", "[PAD]")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(tokenizer), **SIZES, **LENGTH))
    where = tmp_path_factory.mktemp("sentences") / "bert"
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def sentence_encoder(bert: Path, root: Path, pooling: dict, modules: tuple = MODULES) -> Path:
    """The encoder as the library saves it, in the folder that the first module names."""
    shutil.copytree(bert, root / modules[0][1])
    names = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, p) in enumerate(modules)
    ]
    (root / "modules.json").write_text(json.dumps(names))
    (root / "1_Pooling").mkdir(exist_ok=True)
    (root / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 64} | pooling))
    return root


def by_hand(mode: str, features: Tensor) -> Tensor:
    """One vector of the features of a text without padding.  (t, d) -> (d,)"""
    numbers = torch.arange(1.0, len(features) + 1)[:, None]
    return {
        "cls": features[0], "max": features.max(dim=0).values, "mean": features.mean(dim=0), "lasttoken": features[-1],
        "mean_sqrt_len_tokens": features.sum(dim=0) / len(features) ** 0.5,
        "weightedmean": (features * numbers).sum(dim=0) / numbers.sum(),
    }[mode]  # fmt: skip


@pytest.mark.parametrize(
    ("pooling", "modes"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, ["cls"]),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ["mean"]),
        ({"pooling_mode_max_tokens": True}, ["max"]), ({"pooling_mode_mean_sqrt_len_tokens": True}, ["mean_sqrt_len_tokens"]),
        ({"pooling_mode_weightedmean_tokens": True}, ["weightedmean"]), ({"pooling_mode_lasttoken": True}, ["lasttoken"]),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, ["mean", "max"]), ({}, ["mean"]),
        *(({"pooling_mode": mode, "include_prompt": True}, [mode]) for mode in ("cls", "lasttoken", "weightedmean")),
        ({"pooling_mode": ["max", "mean"]}, ["max", "mean"]),
        ({"pooling_mode": "cls", "pooling_mode_mean_tokens": True}, ["cls"]),
    ],
    ids=str,
)  # fmt: skip
def test_every_pooling_is_what_its_name_says(bert: Path, tmp_path: Path, corpus_prompts: list[str], pooling: dict, modes: list):
    encoder = load_encoder(sentence_encoder(bert, tmp_path / "m", pooling))
    ids = encoder.ids(corpus_prompts[:6])
    features, summary = encoder.both(ids)
    for row, found in enumerate(summary):
        inside = features[row, : int((ids[row] == encoder.eos).nonzero()[0]) + 1]
        torch.testing.assert_close(found, torch.cat([by_hand(mode, inside) for mode in modes]))
    torch.testing.assert_close(encoder.summarised(ids), summary, rtol=1e-4, atol=1e-5)  # padding changes nothing


@pytest.mark.parametrize("pooling", [{"pooling_mode": "attention"}, {"pooling_mode": 7}, {"pooling_mode_attention": True}])
def test_an_unknown_pooling_is_refused_by_its_name_and_the_cure_works(bert: Path, tmp_path: Path, pooling: dict):
    root = sentence_encoder(bert, tmp_path / "m", pooling)
    message = refusal(root)
    assert str(next(iter(pooling.values())) if "pooling_mode" in pooling else "attention") in message
    named = message.partition("knows: ")[2].removesuffix(".").split(", ")
    assert "mean" in named
    for mode in named:
        reconfigure(root / "1_Pooling" / "config.json", pooling_mode=mode)
        assert load_encoder(root).summary == (mode,)


def test_the_encoder_is_found_from_the_root_and_from_its_own_folder(bert: Path, tmp_path: Path, corpus_prompts: list[str]):
    root = sentence_encoder(bert, tmp_path / "m", {"pooling_mode": "max"})
    encoders = [load_encoder(model) for model in (root, root / "encoder")]
    assert same_features(*encoders, corpus_prompts)
    assert [encoder.summary for encoder in encoders] == [("max",)] * 2
    assert encoders_of(str(root)) == [str(root)]  # one encoder, not two
    read = {file["path"] for file in encoders[0].files.read}
    assert {"modules.json", "1_Pooling/config.json", "encoder/config.json"} <= read
    before = files_digest(str(root))
    reconfigure(root / "1_Pooling" / "config.json", pooling_mode="cls")
    assert files_digest(str(root)) != before


def test_a_pooling_may_lie_anywhere_and_the_encoder_at_the_root(bert: Path, tmp_path: Path):
    modules = (("Transformer", ""), ("Pooling", "elsewhere"))
    root = sentence_encoder(bert, tmp_path / "m", {"pooling_mode": "max"}, modules)
    shutil.move(root / "1_Pooling", root / "elsewhere")
    assert load_encoder(root).summary == ("max",)


def test_modules_that_were_not_run_are_doubts_and_paths_stay_inside(bert: Path, tmp_path: Path):
    modules = (*MODULES[:1], ("WeightedLayerPooling", "1_Weighted"), ("Dense", "2_Dense"), *MODULES[1:])
    root = sentence_encoder(bert, tmp_path / "m", {}, modules)
    assert [d for d in load_encoder(root).files.doubts if "was not run" in d] == [
        "modules.json: the module sentence_transformers.models.WeightedLayerPooling was not run"
    ]
    (root / "modules.json").write_text(json.dumps([{"path": "../other", "type": "sentence_transformers.models.Transformer"}]))
    assert "modules.json is no list of modules with folders below it" in refusal(root)
    assert load_encoder(root / "encoder").path  # what lies above may be anything


# ------------------------------------------------------------------------------------------------------------- pieces
TEXTS = ["a photo of a dog", "the quick brown fox jumps over the lazy dog", "one small green frog", "two red cats"]


def pieces(**options: object) -> bytes:
    """A SentencePiece model of these texts."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20), model_writer=model, vocab_size=45, hard_vocab_limit=False, character_coverage=1.0,
        minloglevel=2, **options,
    )  # fmt: skip
    return model.getvalue()


def saved(model: PreTrainedModel, folder: Path, name: str, content: bytes, **settings: object) -> Path:
    model.save_pretrained(folder)
    (folder / name).write_bytes(content)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": T} | settings))
    return folder


def as_t5(folder: Path) -> Path:
    content = pieces(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    special = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "extra_ids": 100}
    model = T5EncoderModel(T5Config(vocab_size=200, **T5))
    return saved(model, folder, "spiece.model", content, tokenizer_class="T5Tokenizer", **special)


def as_siglip(folder: Path) -> Path:
    content = pieces(pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    special = {"eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>", "do_lower_case": True}
    model = SiglipTextModel(SiglipTextConfig(vocab_size=60, **SIZES, **LENGTH))
    return saved(model, folder, "spiece.model", content, tokenizer_class="SiglipTokenizer", **special)


def as_xlmr(folder: Path) -> Path:
    content = pieces(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    model = XLMRobertaModel(XLMRobertaConfig(vocab_size=60, **FROM_2, **SIZES))
    return saved(model, folder, "sentencepiece.bpe.model", content, tokenizer_class="XLMRobertaTokenizer")


@pytest.mark.parametrize("write", [as_t5, as_siglip, as_xlmr])
def test_a_piece_model_alone_reads_as_its_library_does(tmp_path: Path, write):
    folder = write(tmp_path / "m")
    encoder = load_encoder(folder)
    reader = sentencepiece.SentencePieceProcessor(model_proto=next(folder.glob("*.model")).read_bytes())
    for text in TEXTS:
        own = reader.encode(text)
        expected = [0, *(i + 1 for i in own), 2] if write is as_xlmr else [*own, 1]  # fairseq counts from one further
        assert encoder.tokenizer(text).input_ids == expected
    assert torch.isfinite(encoder.pooled(encoder.ids(TEXTS))).all()


def test_a_piece_model_beside_a_tokenizer_json_is_one_more_reading(tmp_path: Path, corpus_prompts: list[str]):
    folder = as_t5(tmp_path / "m")
    base = load_encoder(folder)
    base.tokenizer.save_pretrained(folder)
    (folder / "spiece.model").write_bytes(next((tmp_path / "m").glob("*.model")).read_bytes())
    both = load_encoder(folder)
    assert {"tokenizer.json", "spiece.model"} <= both.files.tokenizer.keys()
    readings = compare(both, base, corpus_prompts, len(corpus_prompts))
    assert not readings.differing
    assert not readings.doubts


def test_piece_models_get_more_time_to_be_read(tiny_folder: Path, editable: Path):
    plain = limits_of(str(tiny_folder), "none", Wanted())
    (editable / "spiece.model").write_bytes(b"x")
    assert limits_of(str(editable), "none", Wanted()).reading_seconds >= plain.reading_seconds + 20


@pytest.mark.parametrize("content", [b"", b"\x80\x04K\x01.", b"\x0a\xff\xff\xff\x7f" * 9, bytes(5000)])
def test_a_damaged_piece_model_is_refused(tmp_path: Path, content: bytes):
    folder = as_t5(tmp_path / "m")
    (folder / "spiece.model").write_bytes(content)
    began = time.monotonic()
    assert "tokenizer" in refusal(folder)
    assert time.monotonic() - began < 20


# ---------------------------------------------------------------------------------------------------------- tokenizer
def test_an_encoder_without_tokenizer_takes_that_of_its_base(
    tiny: TextEncoder, tiny_folder: Path, editable: Path, tmp_path: Path, corpus_prompts: list[str]
):
    for file in editable.glob("token*"):
        file.unlink()
    message = refusal(editable)
    assert f"{editable} holds no tokenizer; copy the files of its base's tokenizer there" in message
    for name in ("tokenizer_config.json", "tokenizer.json"):
        assert name in message
        shutil.copy(tiny_folder / name, editable)
    assert same_features(load_encoder(editable), tiny, corpus_prompts)
    checkpoint = tmp_path / "checkpoint-500"  # as trainers leave it
    shutil.copytree(editable, checkpoint / "text_encoder")
    assert f"give the folder of the text encoder in it, {checkpoint / 'text_encoder'}." in refusal(checkpoint)
    assert same_features(load_encoder(checkpoint / "text_encoder"), tiny, corpus_prompts)


# -------------------------------------------------------------------------------------------------------------- names
@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "text_encoder.", "module._orig_mod."])
@pytest.mark.parametrize("inner", ["", "text_model."])
def test_what_wrappers_put_before_names_is_taken_off_and_said(
    tiny: TextEncoder, editable: Path, corpus_prompts: list[str], prefix: str, inner: str
):
    rewrite(editable, lambda tensors: {prefix + inner + n.removeprefix("text_model."): t for n, t in tensors.items()})
    encoder = load_encoder(editable)
    assert same_features(encoder, tiny, corpus_prompts)
    assert encoder.files.notes == [f"the names of its tensors begin with {prefix}, which was taken off"]
    assert not load_encoder(editable).files.doubts
    rewrite(editable, lambda tensors: tensors | {f"{prefix}{inner}encoder.layers.0.gate.weight": torch.zeros(2)})
    assert "unknown tensor" in refusal(editable)


def test_names_of_two_kinds_are_refused(editable: Path):
    rewrite(editable, lambda tensors: {("module." if "bias" in n else "") + n: t for n, t in tensors.items()})
    assert "only some names of its tensors begin with module." in refusal(editable)
    rewrite(
        editable, lambda tensors: tensors | {f"text_encoder.{n.removeprefix('module.')}": t.clone() for n, t in tensors.items()}
    )
    assert "is stored under two names" in refusal(editable)


# ------------------------------------------------------------------------------------------------------------- layers
def test_layers_that_the_config_does_not_count_are_named_and_the_cure_takes_them_off(
    editable: Path, tmp_path: Path, corpus_prompts: list[str]
):
    reconfigure(editable / "config.json", num_hidden_layers=2)
    encoder = load_encoder(editable)
    used = CLIPTextModel.from_pretrained(editable)  # as its users load it
    ids = encoder.ids(corpus_prompts)
    torch.testing.assert_close(encoder(ids), used(input_ids=ids).last_hidden_state)
    assert all(".layers.2." in name for name in encoder.ignored_tensors)
    (doubt,) = encoder.files.doubts
    assert "of the stored layers 0 to 2 layer 2 is left out by config.json" in doubt
    exec(doubt.rpartition(": ")[2], {"CLIPTextModel": CLIPTextModel, "FOLDER": editable})
    assert not [name for name in load_file(editable / WEIGHTS) if ".layers.2." in name]
    again = load_encoder(editable)
    assert same_features(again, encoder, corpus_prompts)
    assert not again.files.doubts


def test_half_a_layer_is_no_layer(editable: Path):
    reconfigure(editable / "config.json", num_hidden_layers=2)
    rewrite(editable, lambda tensors: {n: t for n, t in tensors.items() if "layers.2.mlp.fc1" not in n})
    assert "unknown tensor" in refusal(editable)


def test_layers_of_t5_are_counted_past_its_inner_ones(tmp_path: Path):
    folder = as_t5(tmp_path / "m")
    reconfigure(folder / "config.json", num_layers=2)
    assert "layer 2 is left out" in " ".join(load_encoder(folder).files.doubts)


# ----------------------------------------------------------------------------------------------------------- variants
@pytest.mark.parametrize("name", ["model.bf16.safetensors", "model.non_ema.safetensors", "model.v2.safetensors"])
def test_weights_of_one_variant_only_are_read(tiny: TextEncoder, editable: Path, corpus_prompts: list[str], name: str):
    (editable / WEIGHTS).rename(editable / name)
    encoder = load_encoder(editable)
    assert same_features(encoder, tiny, corpus_prompts)
    assert F.cosine_similarity(encoder.vocabulary, tiny.vocabulary).min() > 0.999
    shutil.copy(editable / name, editable / "model.other.safetensors")
    if name != "model.bf16.safetensors":
        assert "give the weights their usual name" in refusal(editable)
