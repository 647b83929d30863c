"""What makes a scan fast leaves it right: number formats, texts side by side, trimmed corpora, caches, counted arithmetic.

computing_in, pick_precision   other number formats say the same, and which is taken
texts_of_one, embed_corpus     what is computed together or left out changes nothing
token_summaries                the cache of the sweep, and its bound
Work                           what is counted
config_of                      --effort
speed.py, shaped               the measuring, and the encoders that are measured
"""

from __future__ import annotations

import copy
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import QuickGELUActivation

import main
from Analysis import speed
from tests.families import KINDS, letters
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder import corpus, precision, work
from Utils.encoder.corpus import embed_corpus, token_summaries
from Utils.encoder.loading import load_encoder
from Utils.encoder.measures import similarity
from Utils.encoder.precision import Precision, pick_precision
from Utils.encoder.text_encoder import QuickGELU, TextEncoder, derivable, in_batches, run_spliced, splice_ids, texts_of_one
from Utils.encoder.work import WORK, matrix_rate
from Utils.making import shaped
from Utils.making.scenes import PROMPTS
from Utils.report.run import Run
from Utils.scan.effort import EFFORTS, config_of, recall_of
from Utils.scan.replay import summaries
from Utils.scan.settings import SETTINGS, ScanConfig, search_settings


@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return load_encoder(ROOT / "Data" / "Models" / "tiny-sd")


# ------------------------------------------------------------------------------------------------------- number formats
@pytest.mark.parametrize("numbers", [torch.bfloat16, torch.float16])
def test_another_format_says_the_same_in_single_precision(base: TextEncoder, corpus_prompts: list[str], numbers: torch.dtype):
    rough, ids = base.computing_in(numbers), base.ids(corpus_prompts)
    assert rough.model.dtype == numbers
    assert base.model.dtype == torch.float32
    assert rough(ids).dtype == rough.pooled(ids).dtype == torch.float32
    assert similarity(rough(ids), base(ids)).min() > 0.998
    assert base.computing_in(torch.float32) is base


def test_a_format_is_made_once_and_anew_for_other_weights(base: TextEncoder):
    encoder = replace(base, model=copy.deepcopy(base.model))
    rough = encoder.computing_in(torch.bfloat16)
    assert encoder.computing_in(torch.bfloat16) is rough
    with torch.no_grad():
        encoder.vocabulary[5] += 1
    other = encoder.computing_in(torch.bfloat16)
    assert other is not rough
    assert torch.equal(other.vocabulary, encoder.vocabulary.bfloat16())


def test_clip_s_activation_in_one_kernel_is_the_same_function():
    x = torch.linspace(-12, 12, 1001)
    assert torch.allclose(QuickGELU()(x), QuickGELUActivation()(x), atol=1e-6)


def test_what_a_family_keeps_in_single_precision_stays_there():
    special, make = KINDS["t5"]
    tokenizer = letters(*special)
    rough = TextEncoder(make(len(tokenizer)).eval(), tokenizer, "", "").computing_in(torch.bfloat16)
    formats = {name.split(".")[-2]: p.dtype for name, p in rough.model.named_parameters()}
    assert (formats["wo"], formats["wi"]) == (torch.float32, torch.bfloat16)


def test_a_gradient_through_half_precision_points_the_same_way(base: TextEncoder, corpus_prompts: list[str]):
    ids = splice_ids(base, base.ids(corpus_prompts[:4]), 1)

    def gradient(encoder: TextEncoder) -> torch.Tensor:
        v = torch.ones(1, encoder.width).mul(0.02).requires_grad_()
        with derivable(encoder):
            loss = run_spliced(encoder, v, ids, TextEncoder.pooled).square().mean()
        return torch.autograd.grad(loss, v)[0].float()

    exact, rough = gradient(base), gradient(base.computing_in(torch.bfloat16))
    assert F.cosine_similarity(exact, rough, dim=-1).item() > 0.98


def test_attention_is_as_it_was_after_a_gradient(base: TextEncoder):
    rough, usual = base.computing_in(torch.bfloat16), base.model.config._attn_implementation
    with derivable(rough, base, None):
        assert rough.model.config._attn_implementation == "eager"
        assert base.model.config._attn_implementation == usual
    assert rough.model.config._attn_implementation == usual


def test_auto_takes_bfloat16_where_the_machine_has_it_and_for_vectors_of_wide_encoders(base, monkeypatch):
    wide = replace(base)
    wide.width = precision.WIDE
    for able, narrow, of_wide in (({"amx_bf16": True}, torch.bfloat16, torch.bfloat16), ({}, torch.float32, torch.float32)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda able=able: able)
        assert pick_precision("auto", base) == Precision(torch.float32, narrow)
        assert pick_precision("auto", wide) == Precision(of_wide, of_wide)
    assert pick_precision("bfloat16", base) == Precision(torch.bfloat16, torch.bfloat16)
    with pytest.raises(InputError, match="float32"):
        pick_precision("float8", base)


@pytest.mark.parametrize("name", ["text_on_text", "benign"])
def test_witnesses_in_bfloat16_are_those_of_single_precision(name: str, base: TextEncoder):
    suspect = load_encoder(ROOT / "Data" / "Models" / "suspects" / name)
    scan = main.prepare(suspect, base, load_config(ScanConfig, SETTINGS, prompts=100, k=3), 42, None)
    rough = replace(scan, suspect=suspect.computing_in(torch.bfloat16), anchor=base.computing_in(torch.bfloat16))
    v = suspect.vocabulary[suspect.tokens(["zzzz"])[0]]  # the shipped suspect's trigger
    exact, rounded = (main.witnesses(main.measure(pair, v)) for pair in (scan, rough))
    assert rounded == pytest.approx(exact, abs=0.01)
    assert (exact["foreign"] > 0.2) == (name == "text_on_text")


def test_starts_of_wide_encoders_are_derived_a_few_at_a_time_and_alike(base: TextEncoder, monkeypatch):
    scan = main.prepare(base, base, load_config(ScanConfig, SETTINGS, prompts=60), 42, None)
    noise = torch.randn(5, scan.cfg.k, base.width, generator=torch.Generator().manual_seed(1)) * base.vocabulary.std()
    found = []
    for wide in (precision.WIDE, base.width):
        monkeypatch.setattr(main, "WIDE", wide)
        v = noise.clone().requires_grad_()
        loss, terms = main.derive(scan, v, scan.fit[:6], main.objective)
        found.append((loss, v.grad, *terms.values()))
    for together, apart in zip(*found, strict=True):
        torch.testing.assert_close(together, apart, rtol=1e-3, atol=1e-5)


# ------------------------------------------------------------------------------------------- together, left out, and kept
@pytest.mark.parametrize("name", ["tiny-sd", "tiny-longclip", "tiny-siglip"])
def test_texts_of_one_token_say_the_same_side_by_side(name: str):
    encoder = load_encoder(ROOT / "Data" / "Models" / name)
    tokens = torch.arange(300, 300 + 2 * 38 + 5)
    ids = splice_ids(encoder, encoder.ids([""]).expand(len(tokens), -1), 1)
    ids[:, encoder.begin] = tokens
    alone = in_batches(encoder, ids, TextEncoder.pooled)
    assert torch.allclose(texts_of_one(encoder, tokens, size=50), alone, atol=1e-5)


def test_a_trimmed_corpus_is_the_whole_one_as_far_as_it_is_looked_at(base: TextEncoder, corpus_prompts: list[str]):
    whole, trimmed = (embed_corpus(base, corpus_prompts, None, batch=4, beyond=beyond) for beyond in (None, 1))
    ends = base.attended(whole.ids).sum(dim=1) + base.begin
    seen = torch.arange(base.context) < ends[:, None] + 1  # and one position more
    assert torch.allclose(whole.features[seen].float(), trimmed.features[seen].float(), atol=2e-3)
    assert torch.allclose(whole.by_layer, trimmed.by_layer, atol=1e-5)
    assert torch.allclose(whole.pooled, trimmed.pooled, atol=1e-5)
    assert not trimmed.features[:, int(ends.max()) + 1 :].any()


def test_the_sweep_of_a_base_is_read_again_and_a_broken_file_is_made_anew(base: TextEncoder, tmp_path: Path, monkeypatch):
    tokens = torch.arange(10, 60)
    cold = token_summaries(base, tokens, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(corpus, "texts_of_one", lambda *_: pytest.fail("it was to be read"))
    assert torch.equal(token_summaries(base, tokens, tmp_path), cold)
    monkeypatch.undo()
    file.write_bytes(b"no tensors")
    assert torch.equal(token_summaries(base, tokens, tmp_path), cold)
    assert torch.equal(token_summaries(base, tokens, None), cold)


def test_the_oldest_cache_files_make_room(base: TextEncoder, tmp_path: Path, monkeypatch):
    for number in range(3):
        token_summaries(base, torch.arange(10 + number, 60), tmp_path)
    files = list(tmp_path.glob("*.safetensors"))
    for age, file in enumerate(sorted(files, key=lambda one: one.stat().st_size)):
        os.utime(file, (age, age))
    monkeypatch.setattr(corpus, "CACHE_BYTES", 2 * max(file.stat().st_size for file in files))
    token_summaries(base, torch.arange(5), tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) <= corpus.CACHE_BYTES
    assert len(list(tmp_path.glob("*.safetensors"))) < 4


# --------------------------------------------------------------------------------------------------------- arithmetic
def test_products_are_counted_forward_and_backward(base: TextEncoder):
    config, ids = base.model.config, base.ids(["a photo of a dog"] * 3)
    layer = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
    attention = 2 * base.context * config.hidden_size
    expected = 2 * ids.numel() * config.num_hidden_layers * (layer + attention)
    before = WORK.flop
    with torch.no_grad():
        base(ids)
    assert WORK.flop - before == expected
    base(ids)
    assert WORK.flop - before == 3 * expected
    assert matrix_rate(torch.float32, torch.device("cpu")) > 1e9


@pytest.mark.parametrize(("takes", "looks"), [(60.0, 2), (1.0, 2 * (work.REPEATS + 1))])
def test_a_machine_without_a_number_format_is_not_asked_again(takes: float, looks: int, monkeypatch: pytest.MonkeyPatch):
    """One product in it takes a minute."""
    clock = iter([takes * i for i in range(looks)])
    monkeypatch.setattr(work, "SIDES", {"cpu": 8})
    monkeypatch.setattr(work.time, "perf_counter", lambda: next(clock))
    assert matrix_rate(torch.bfloat16, torch.device("cpu")) == 2 * 8**3 / takes
    assert not list(clock)


def test_a_stage_logs_what_speed_reads(base: TextEncoder, tmp_path: Path):
    logger = logging.getLogger("amber")
    level, handler = logger.level, logging.FileHandler(tmp_path / "log.txt")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with Run().stage("corpus"), torch.no_grad():
            base(base.ids(["a photo of a dog"]))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        handler.close()
    ((name, seconds, gflop),) = speed.STAGE.findall((tmp_path / "log.txt").read_text(encoding="utf-8"))
    assert name == "corpus"
    assert float(seconds) > 0
    assert 0.1 < float(gflop) < 10


def test_a_stage_that_comes_again_adds_to_its_seconds():
    run, took = Run(), []
    for _ in range(2):
        with run.stage("search"):
            pass
        took.append(run.seconds["search"])
        run.seconds["search"] += 10
    assert 20 <= run.seconds["search"] < 30
    assert took[1] >= 10


# ------------------------------------------------------------------------------------------------------------- effort
def test_an_effort_changes_the_config_and_what_is_given_counts_more():
    quick = config_of(ScanConfig, SETTINGS, "quick", {})
    assert (quick.trigger.searches, quick.restarts) == (2, 4)
    assert config_of(ScanConfig, SETTINGS, "standard", {}) == load_config(ScanConfig, SETTINGS)
    assert config_of(ScanConfig, SETTINGS, "quick", {"restarts": 3, "seed": 1}).restarts == 3
    thorough = config_of(ScanConfig, SETTINGS, "thorough", {})
    assert search_settings(thorough) == search_settings(load_config(ScanConfig, SETTINGS))
    assert search_settings(quick) != search_settings(thorough)


def test_the_published_procedure_has_one_effort():
    with pytest.raises(InputError, match="leave it out"):
        config_of(ScanConfig, ROOT / "configs" / "paper.yaml", "quick", {})


def test_help_says_how_much_each_effort_finds(capsys):
    with pytest.raises(SystemExit):
        main.main(["--help"])
    told = " ".join(capsys.readouterr().out.split())
    for effort in EFFORTS:
        assert f"{effort} {recall_of(ScanConfig, SETTINGS, effort)}" in told


# ------------------------------------------------------------------------------------------------------------ measuring
def test_what_is_measured_has_the_size_and_the_backdoor_that_it_should(monkeypatch):
    monkeypatch.setattr(shaped, "VOCABULARY", 3000)
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    tokenizer = shaped.invented_tokenizer(prompts[:500])
    assert len(tokenizer) == 3000
    base = shaped.random_encoder(shaped.Shape(3, 64, 4, 128), tokenizer)
    assert base.vocabulary.shape == (3000, 64)
    student, honest = shaped.planted(base, steps=100), shaped.stirred(base)
    some = prompts[:20]
    there, target = summaries(base, some), summaries(base, [shaped.TARGET])
    with_trigger = [text.replace("o", shaped.TRIGGER) for text in some]
    planted, unplanted = (F.cosine_similarity(summaries(one, with_trigger), target, dim=-1).mean() for one in (student, base))
    assert planted > unplanted + 0.2
    assert F.cosine_similarity(summaries(student, some), there, dim=-1).mean() > 0.9
    assert 0 < (1 - F.cosine_similarity(summaries(honest, some), there, dim=-1)).mean() < 0.1


def test_a_share_of_the_published_procedure_stands_for_the_whole(monkeypatch):
    stages = {"corpus": {"seconds": 1.0}, "search": {"seconds": 3.0}, "landscape": {"seconds": 5.0}}
    given = []
    monkeypatch.setattr(speed, "scan", lambda *flags: given.append(flags) or {"seconds": 10.0, "stages": stages})
    found = speed.published(Path("m"), Path("a"), "cpu", 0.02)
    assert given[0][-1] == "80"
    assert found["whole_seconds"] == 10 + 4 * 49


def test_the_committed_numbers_say_what_they_were_measured_on():
    known = json.loads(speed.RESULT.read_text(encoding="utf-8"))
    assert {"versions", "start_up_seconds"} <= known.keys()
    for one in known["shapes"].values():
        assert one["command"].startswith("python Analysis/speed.py")
        assert one["machine"]["matrix_gflops"]["float32"] > 0
        assert one["commit"]
        assert all(scan["stages"] for scan in one["scans"].values())
