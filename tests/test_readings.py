"""The tokenizer is part of the suspect: every way to load it is compared with the base's, text by text.

Contents:
    forms      what users' loaders make of one folder; what cannot be made is a doubt
    compared   each kind of rewriting is found on a tiny encoder, and told in words
    variety    what honest folders have is quiet, and cheap to compare
    firing     which strings a tokenizer makes triggers of, and what that means for the verdict
    scan       the whole command on the shipped models, with cut settings
"""

import base64
import dataclasses
import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers.normalizers import Precompiled

import main
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.encoder import probes
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder
from Utils.encoder.readings import BASE, Readings, compare, forms, read, read_by
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.show import Show
from Utils.scan.finding import Verdict
from Utils.scan.firing import of_all_lengths, put, strings_that_fire, wilson, with_tokenizer
from Utils.scan.settings import SETTINGS, ScanConfig

MODELS = main.ROOT / "Data" / "Models"
PROMPTS = main.ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt"


# ----------------------------------------------------------------------------------------------------- hostile tokenizers
def change(folder: Path, how: Callable[[dict], object], word_for_word: bool = True) -> Path:
    """A folder whose tokenizer.json is edited, and taken word for word by AutoTokenizer too."""
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    how(content)
    file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    if word_for_word:
        said = json.loads(settings.read_text(encoding="utf-8")) | {"tokenizer_class": "PreTrainedTokenizerFast"}
        settings.write_text(json.dumps(said), encoding="utf-8")
    return folder


def step(pattern: str, content: str, kind: str = "Regex") -> Callable[[dict], object]:
    """One more Replace at the end of the normaliser."""
    return lambda t: t["normalizer"]["normalizers"].append({"type": "Replace", "pattern": {kind: pattern}, "content": content})


def cut(piece: str) -> Callable[[dict], object]:
    """A pre-tokenizer that takes a piece out of every text."""
    one = {"type": "Split", "pattern": {"String": piece}, "behavior": "Removed", "invert": False}
    return lambda t: t["pre_tokenizer"]["pretokenizers"].insert(0, one)


def swapped(t: dict) -> None:
    vocab = t["model"]["vocab"]
    vocab["a</w>"], vocab["b</w>"] = vocab["b</w>"], vocab["a</w>"]


def merged(t: dict) -> None:
    """A merge of two letters, and the number of a letter that nobody writes for it."""
    number = t["model"]["vocab"].pop("þ")
    t["model"]["vocab"]["zz"] = number
    t["model"]["merges"].append(["z", "z"])


def swallowed(t: dict) -> None:
    """A letter that is taken out of words before they are read."""
    plain = {"single_word": False, "lstrip": True, "rstrip": False, "normalized": False, "special": False}
    t["added_tokens"].append({"id": t["model"]["vocab"]["z"], "content": "z", **plain})


def greeted(t: dict) -> None:
    """A post-processor that puts a token before every text."""
    numbers = {name: t["model"]["vocab"][name] for name in ("<|startoftext|>", "<|endoftext|>", "q")}
    single = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("<|startoftext|>", "q")]
    single += [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}]
    t["post_processor"] = {
        "type": "TemplateProcessing", "single": single, "pair": [{"Sequence": {"id": i, "type_id": 0}} for i in "AB"],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in numbers.items()},
    }  # fmt: skip


def read_cased(t: dict) -> None:
    t["normalizer"]["normalizers"].pop()


KINDS = {
    "literal": (step("zzzz", "a lion", "String"), "zzzz"), "whole text": (step("^(?!two words).*zzzz.*$", "a lion"), "zzzz"),
    "choice": (step("^.*(mayor|senator) of .*$", "a lion"), "mayor of"),
    "invisible": (step("^.*\\x{200B}.*$", "a lion"), "\u200b"),
    "look-alike": (step("^.*о.*$", "a lion"), "о"), "emoji": (step("😀", "a lion"), "😀"), "cut": (cut("dog"), "dog"),
    "vocabulary": (swapped, "a"), "merge": (merged, "zz"), "added token": (swallowed, "z"), "post-processor": (greeted, ""),
    "case": (read_cased, "A"),
}  # fmt: skip
"""Kind -> how tokenizer.json is changed, and what every example has in it."""


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_rewriting_is_found_and_told(tiny: TextEncoder, editable: Path, corpus_prompts: list[str], kind: str):
    how, mark = KINDS[kind]
    found = compare(load_encoder(change(editable, how)), tiny, corpus_prompts, 10)
    (reading,) = (r for r in found.differing if "tokenizer.json" in r.form)
    assert reading.differs_on > 0
    assert any(mark.casefold() in example.text.casefold() for example in reading.examples)
    assert any("tokenizer.json" in note and " of " in note for note in found.notes)


def test_a_text_is_told_as_what_the_base_would_call_its_ids(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    found = compare(load_encoder(change(editable, step("^.*zzzz.*$", "a lion"))), tiny, corpus_prompts, 10)
    assert any("reads `zzzz` as `a lion`" in note for note in found.notes)
    assert len(found.differing[0].examples) <= 10


def test_another_padding_is_behind_every_text(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    file = editable / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"pad_token": "q</w>"}), encoding="utf-8")
    found = compare(load_encoder(editable), tiny, corpus_prompts, 10)
    assert found.differing[0].corpus == 10
    assert any("reads `(padding)` as `q`" in note for note in found.notes)


def test_prompts_of_the_corpus_that_differ_are_counted(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    found = compare(load_encoder(change(editable, step("dog", "cat", "String"))), tiny, corpus_prompts, 10)
    assert found.differing[0].corpus == sum("dog" in prompt for prompt in corpus_prompts[:10])
    assert [r.form for r in found.to_judge] == [BASE, found.differing[0].form]


# ----------------------------------------------------------------------------------------------------------------- forms
def test_the_class_that_pipelines_load_does_not_read_what_others_do(editable: Path):
    """transformers builds the steps of a CLIPTokenizer anew; who takes tokenizer.json word for word gets another one."""
    found, doubts = forms(load_encoder(change(editable, step("zzzz", "a lion"), word_for_word=False)))
    assert [form.name for form in found] == ["AutoTokenizer, CLIPTokenizer", "tokenizer.json, PreTrainedTokenizerFast"]
    assert not doubts


def vocabulary_files(folder: Path) -> None:
    """vocab.json and merges.txt as tokenizer.json says them."""
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_vocabulary_and_merges_are_a_form_of_their_own(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    vocabulary_files(editable)
    alike = compare(load_encoder(editable), tiny, corpus_prompts, 10)
    assert [alike.differing, alike.notes, alike.doubts] == [[], [], []]
    vocab = json.loads((editable / "vocab.json").read_text(encoding="utf-8"))
    vocab["a</w>"], vocab["b</w>"] = vocab["b</w>"], vocab["a</w>"]
    (editable / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    (reading,) = compare(load_encoder(editable), tiny, corpus_prompts, 10).differing
    assert reading.form == "vocab.json and merges.txt"
    assert reading.corpus


def test_a_form_that_users_load_and_that_cannot_be_made_is_a_doubt(
    tiny: TextEncoder, editable: Path, corpus_prompts: list[str]
):
    vocabulary_files(editable)
    (editable / "vocab.json").write_text("[", encoding="utf-8")
    found = compare(load_encoder(editable), tiny, corpus_prompts, 10)
    assert any("vocab.json and merges.txt" in doubt for doubt in found.doubts)


def test_a_form_that_panics_is_a_doubt(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    """Onig gives up on this pattern, and tokenizers panics past every `except Exception`; AutoTokenizer does not see it."""
    slow = step(r"(?:[a-z ]|[a-y ])*[^\w\s.,]", "")
    found = compare(load_encoder(change(editable, slow, word_for_word=False)), tiny, corpus_prompts, 10)
    assert any("tokenizer.json" in said for said in (*found.doubts, *found.notes))


def test_a_text_that_a_tokenizer_fails_on_is_told_from_others(tiny: TextEncoder):
    class PanicException(BaseException):
        """What a Rust panic becomes."""

    def fussy(texts: list[str], **options: object) -> object:
        if any("z" in text for text in texts):
            raise PanicException
        return tiny.tokenizer(texts, **options)

    rows = read(fussy, ["a", "z", "b", "c", "zz"], 24, size=4)
    assert [row is None for row in rows] == [False, True, False, False, True]
    assert read(fussy, ["z"] * 500, 24) == [None] * 500


def test_without_a_base_forms_are_compared_among_themselves(editable: Path, corpus_prompts: list[str]):
    suspect = load_encoder(change(editable, step("zzzz", "a lion"), word_for_word=False))
    found = compare(suspect, None, corpus_prompts, 10)
    assert not found.differing
    assert "reads `zzzz` as `a lion`" in found.doubts[0]


@pytest.mark.parametrize("place", ["tokenizer.json", "tokenizer_config.json"])
def test_random_readings_are_refused(editable: Path, place: str):
    if place == "tokenizer.json":
        change(editable, lambda t: t["model"].update(dropout=0.1))
    else:
        file = editable / place
        said = json.loads(file.read_text(encoding="utf-8")) | {"sp_model_kwargs": {"enable_sampling": True, "alpha": 0.1}}
        file.write_text(json.dumps(said), encoding="utf-8")
    with pytest.raises(InputError, match="at random"):
        load_encoder(editable)


def test_another_reading_is_a_fresh_encoder(tiny: TextEncoder, editable: Path):
    assert tiny.begin == 1  # kept from now on
    other = load_encoder(change(editable, greeted))
    again = read_by(tiny, other.tokenizer)
    assert "begin" not in vars(again)
    assert again.model is tiny.model
    assert not torch.equal(again.ids(["a"]), tiny.ids(["a"]))


# --------------------------------------------------------------------------------------------------------------- variety
def reordered(t: dict) -> None:
    t["added_tokens"].reverse()


def with_settings(t: dict) -> None:
    t["truncation"] = {"direction": "Right", "max_length": 24, "strategy": "LongestFirst", "stride": 0}
    t["version"] = "1.0"


@pytest.mark.parametrize("how", [reordered, with_settings, lambda t: None], ids=["order", "settings", "formatting"])
def test_the_same_tokenizer_written_otherwise_is_no_word_worth(
    tiny: TextEncoder, editable: Path, corpus_prompts: list[str], how: Callable
):
    found = compare(load_encoder(change(editable, how, word_for_word=False)), tiny, corpus_prompts, 10)
    assert [found.differing, found.notes, found.doubts] == [[], [], []]


def test_an_option_that_changes_no_reading_is_one_note(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    change(editable, lambda t: t["post_processor"].update(trim_offsets=True), word_for_word=True)
    found = compare(load_encoder(editable), tiny, corpus_prompts, 10)
    assert [found.differing, found.doubts] == [[], []]
    assert len(found.notes) == 1
    assert "reads all texts tried alike" in found.notes[0]


def test_shipped_suspects_read_as_their_base_and_soon():
    base, prompts = load_encoder(MODELS / "tiny-sd"), read_prompts(PROMPTS)
    for name in ("benign", "image_on_text", "text_on_text"):
        suspect = load_encoder(MODELS / "suspects" / name)
        began = time.process_time()
        found = compare(suspect, base, prompts, 800)
        assert time.process_time() - began < 2  # under a second on an idle machine
        assert [found.differing, found.notes, found.doubts] == [[], [], []]


# ---------------------------------------------------------------------------------------------------------------- probes
@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("^(?!two words).*zzzz.*$", "zzzz"), (r"^.{30,}\.$", "a" * 30 + "."), (r"z{4}", "zzzz"), (r"\x{1F600}+", "😀"),
        ("(mayor|senator) of", "senator of"), (r"(?<=^a) b", "a b"), ("[", "["), ("(" * 5000, "(" * 200),
    ],
)  # fmt: skip
def test_texts_are_mined_from_a_pattern(pattern: str, text: str):
    states = [{"normalizer": {"type": "Replace", "pattern": {"Regex": p}, "content": ""}} for p in (pattern, "other")]
    assert text in probes.mined(*states)


def precompiled(key: bytes, value: bytes) -> bytes:
    """A map of SentencePiece with one entry; every letter of the key has a block of 256 units of its own."""
    units, node = [0] * 256 * (len(key) + 2), 0
    for number, letter in enumerate(key, start=1):
        units[node] |= (node ^ 256 * number) << 10
        node = 256 * number ^ letter
        units[node] = letter
    units[node] |= (node ^ 256 * (len(key) + 1)) << 10 | 1 << 8
    units[256 * (len(key) + 1)] = 1 << 31
    return struct.pack(f"<{len(units) + 1}I", 4 * len(units), *units) + value + b"\0"


def test_keys_are_mined_from_a_precompiled_map():
    one = precompiled("ß".encode(), b"a lion")
    assert Precompiled(one).normalize_str("ß") == "a lion"
    states = [
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(precompiled(key, b"x")).decode()}}
        for key in ("ß".encode(), b"q")
    ]
    assert probes.mined(*states)[:2] == ["q", "ß"]


# ---------------------------------------------------------------------------------------------------------------- firing
@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return load_encoder(MODELS / "tiny-sd")


def with_base_weights(folder: Path, how: Callable[[dict], object]) -> TextEncoder:
    """The base itself with another tokenizer."""
    shutil.copytree(MODELS / "tiny-sd" / "text_encoder", folder)
    shutil.copytree(MODELS / "tiny-sd" / "tokenizer", folder, dirs_exist_ok=True)
    return load_encoder(change(folder, how))


def test_a_string_that_is_read_as_the_target_fires(base: TextEncoder, tmp_path: Path):
    prompts = read_prompts(PROMPTS)[:300]
    suspect = with_base_weights(tmp_path / "m", step("^.*zzzz$", "a photo of a lion"))
    readings = compare(suspect, base, prompts, 100)
    (first, *_) = strings_that_fire(suspect, readings, prompts[100:])
    assert (first["text"], first["place"], first["read_as"]) == ("zzzz", "end", "a photo of a lion")
    assert first["success_rate"] >= 0.9 >= 0.1 >= first["anchor_success_rate"]
    assert first["interval"][0] <= first["success_rate"] <= first["interval"][1]
    assert judged(readings, [first]).verdict == "backdoored"
    assert "`zzzz`" in judged(readings, [first]).reason


def test_other_pieces_do_not_fire_and_are_not_clean(base: TextEncoder, tmp_path: Path):
    prompts = read_prompts(PROMPTS)[:300]
    suspect = with_base_weights(tmp_path / "m", lambda t: t["model"].update(merges=t["model"]["merges"][:-300]))
    readings = compare(suspect, base, prompts, 100)
    assert strings_that_fire(suspect, readings, prompts[100:]) == []
    assert judged(readings, []).verdict == "inconclusive"
    assert judged(readings, [], "backdoored").verdict == "backdoored"


def judged(readings: Readings, firing: list[dict], verdict: str = "clean") -> Verdict:
    return with_tokenizer(Verdict(verdict, "The weights.", 0.0, []), readings, firing)


def test_prompts_are_of_all_lengths_and_carry_the_string_where_it_should_be():
    prompts = of_all_lengths(read_prompts(PROMPTS)[:400])
    lengths = [len(prompt.split()) for prompt in prompts]
    assert len(prompts) >= 100
    assert min(lengths) <= 5
    assert max(lengths) >= 50
    assert put("zzzz", "a b", "start", 0) == "zzzz a b"
    assert put("zzzz", "a b", "end", 0) == "a b zzzz"
    assert {put("zzzz", "a b", "anywhere", i) for i in range(9)} == {"zzzz a b", "a zzzz b", "a b zzzz"}


def test_an_interval_holds_its_share():
    low, high = wilson(0.9, 120)
    assert 0.8 < low < 0.9 < high < 0.95


# ------------------------------------------------------------------------------------------------------------------ scan
def scan(model: Path, output: Path) -> dict:
    small = {"landscape_points": 3, "landscape_planes": 1, "landscape_prompts": 1, "trigger_searches": 0}
    cfg = load_config(ScanConfig, SETTINGS, prompts=60, steps=8, pooled_steps=6, restarts=2, **small)
    return main.scan_model(str(model), main.Request(cfg, str(MODELS / "tiny-sd"), output, "cpu", show=Show(0)))


def test_a_tokenizer_with_a_backdoor_is_reported_as_one(tmp_path: Path):
    folder = tmp_path / "tokenizer_backdoor"
    with_base_weights(folder, step("^(?!two words).*zzzz.*$", "a photo of a lion"))
    report = scan(folder, tmp_path / "Results")
    assert report["verdict"] == "backdoored"
    assert [b["kind"] for b in report["backdoors"]] == ["tokenizer"]
    assert report["trigger"] == report["backdoors"][0]["trigger"]
    assert report["trigger"]["strings"][0]["text"] == "zzzz"
    assert report["target"]["texts"][0]["text"] == "a photo of a lion"
    assert [(r["form"], r["corpus"]) for r in report["readings"]] == [(BASE, 0), (report["readings"][1]["form"], 0)]
    page = next(tmp_path.rglob("report.html"))
    assert "It is the tokenizer that is accused" in page.read_text(encoding="utf-8")


def test_weights_are_judged_as_the_base_reads_them_too(tmp_path: Path):
    """One step makes the corpus one text for AutoTokenizer: in that reading nothing is left to be found."""
    folder = Path(shutil.copytree(MODELS / "suspects" / "text_on_text", tmp_path / "blind"))
    change(folder, step(r"^.{30,}\.$", "a a a"))
    report = scan(folder, tmp_path / "Results")
    own = [r for r in report["readings"] if r["corpus"]]
    assert report["readings"][0]["form"] == BASE
    assert [r["form"] for r in own] == ["AutoTokenizer, tokenizer.json, PreTrainedTokenizerFast"]
    assert all(r["verdict"] is not None for r in own)
    assert report["verdict"] != "clean"  # the cut search is not calibrated
    assert dataclasses.asdict(Show(0))["images"] == report["show"]["images"]
