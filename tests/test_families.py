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
import math
from pathlib import Path

import pytest
import torch
from families import KINDS, WIDTH, T, letters

import main
from Utils.encoder.loading import load_encoder, same_shape
from Utils.encoder.text_encoder import TextEncoder, run_spliced, splice_ids
from Utils.scan.strings import TriggerConfig
from Utils.scan.trigger import find_strings


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
    assert summary.shape == (len(corpus_prompts), WIDTH)
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
    v = torch.randn(k, WIDTH)
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
    v = torch.randn(1, WIDTH, requires_grad=True)
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
        "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "3", "--trigger-searches", "0",
        "--landscape-points", "3", "--restarts", "2",
        "--landscape-planes", "1", "--device", "cpu", "--quiet",
    ]  # fmt: skip
    code = main.main(["--model", str(folder), "--anchor", str(folder), "--output", str(tmp_path), *settings])
    (report,) = tmp_path.glob("*/report.json")
    content = json.loads(report.read_text(encoding="utf-8"))
    assert (code, content["verdict"]) == (3, "inconclusive")
    assert any("uncalibrated" in note for note in content["notes"])
    drift = next(e["value"] for e in content["evidence"] if e["name"] == "drift")
    assert drift == pytest.approx(0, abs=1e-3)


def test_strings_are_looked_for_in_it_and_in_a_benign_twin(folder: Path, corpus_prompts: list[str], monkeypatch):
    """On these alone a verdict rests where nothing is calibrated; the settings ask for a twin whatever is found."""
    monkeypatch.setattr("Utils.scan.twins.STEPS", 4)
    base, suspect = load_encoder(folder), load_encoder(folder)
    with torch.no_grad():
        suspect.vocabulary.add_(0.05 * torch.randn(suspect.vocabulary.shape, generator=torch.Generator().manual_seed(1)))
    cfg = TriggerConfig(searches=2, steps=1, candidates=4, shortlist=4, prompts=2, near=-1.0, natural=-5.0, clean_within=0.0)
    v, prompts = torch.zeros(1, base.width), corpus_prompts * 3
    found = find_strings(suspect, base, prompts, prompts, v, cfg, torch.Generator().manual_seed(0))
    assert found.drift > 0
    assert found.natural > -5.0  # the twin was searched
    assert all(math.isfinite(one.effect) for one in found.found)
