"""Added tokens and resized tables: a suspect is compared on what it shares with its base, added words by what they do.

Contents
    tables    longer and shorter ones, of several families; the base is the same in all that it can read
    words     what is an addition, what is ordinary text read anew; words of several vectors
    anchors   named, and found by auto
    evidence  a word that overrules prompts is a proof, one that does nothing changes nothing
    search    added tokens come first
    report    the list of words, the page, a whole scan
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import KINDS, letters
from test_anchors import CPU, entry, known
from test_page import folder, report_of  # noqa: F401  (a fixture)

import main
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.added import Added, added_to
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import comparable, fingerprint, load_encoder, same_shape
from Utils.encoder.readings import compare
from Utils.encoder.text_encoder import TextEncoder
from Utils.report.contract import VERSION
from Utils.report.page import render_page
from Utils.report.sarif import to_sarif
from Utils.scan import trigger
from Utils.scan.added import about_added, try_words, with_added, with_open_triggers
from Utils.scan.finding import Verdict
from Utils.scan.settings import ScanConfig
from Utils.scan.strings import TriggerConfig

MODELS = ROOT / "Data" / "Models"
CLEAN = Verdict("clean", "Nothing.", 0.1, [], ["a note"])
TRIGGER = "ahczzt"


def resized(source: Path | str, target: Path, tokens: tuple[str, ...] = (), rows: int | None = None) -> Path:
    """An encoder with added tokens, and a table of so many rows."""
    encoder = load_encoder(source)
    encoder.tokenizer.add_tokens(list(tokens))
    torch.manual_seed(1)
    encoder.model.resize_token_embeddings(rows or len(encoder.tokenizer), mean_resizing=False)
    encoder.model.save_pretrained(target)
    encoder.tokenizer.save_pretrained(target)
    return target


# ------------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize("kind", ["siglip", "bert", "xlm-roberta", "t5"])
@pytest.mark.parametrize("more", [-2, 1, 27])
def test_a_base_gets_the_rows_of_the_suspect_and_reads_as_before(
    kind: str, more: int, tmp_path: Path, corpus_prompts: list[str]
):
    specials, build = KINDS[kind]
    tokenizer = letters(*specials)
    build(len(tokenizer) + 3).save_pretrained(tmp_path / "base")  # three rows are to spare
    tokenizer.save_pretrained(tmp_path / "base")
    base = load_encoder(tmp_path / "base")
    suspect = load_encoder(resized(tmp_path / "base", tmp_path / "m", rows=len(tokenizer) + 3 + more))
    assert comparable(suspect, base)
    added = added_to(suspect, base, corpus_prompts)
    assert same_shape(suspect, added.base)
    assert (added.shared, added.tokens, added.rows) == (len(tokenizer) + 3 + min(0, more), {}, max(0, more) + 0)
    assert added.knowing is added.base
    ids = base.ids(corpus_prompts)
    for mine, other in zip(added.base.both(ids), base.both(ids), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(added.base.vocabulary[added.shared :], suspect.vocabulary[added.shared :])
    own, others = (dict(e.model.named_parameters()) for e in (added.base, base))
    shared = [name for name in own if own[name].data_ptr() == others[name].data_ptr()]
    assert len(own) - len(shared) == 1  # all but the table is the same memory
    assert len(base.vocabulary) == len(tokenizer) + 3  # the base itself is left as it was


def test_a_suspect_with_the_tokens_of_its_base_is_compared_with_the_base_itself(tiny: TextEncoder, corpus_prompts: list[str]):
    added = added_to(tiny, tiny, corpus_prompts)
    assert added.base is added.knowing is tiny
    assert (added.tokens, added.rows, added.notes, added.words) == ({}, 0, [], {})


# -------------------------------------------------------------------------------------------------------------- words
@pytest.fixture(scope="module")
def with_words(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    where = tmp_path_factory.mktemp("words") / "m"
    return load_encoder(resized(tiny_folder, where, ("<toy>", "<toy>_1", "<sks>"), rows=520))


def test_added_words_are_known_to_the_base_by_the_same_rows(
    with_words: TextEncoder, tiny: TextEncoder, corpus_prompts: list[str]
):
    added = added_to(with_words, tiny, corpus_prompts)
    assert added.tokens == {514: "<toy>", 515: "<toy>_1", 516: "<sks>"}
    assert added.words == {"<toy> <toy>_1": [514, 515], "<sks>": [516]}
    assert added.notes == [
        "3 tokens are added to those of the base: `<toy>`, `<toy>_1`, `<sks>`",
        "3 rows of its token table are beyond the base's 514, and no token reaches them",
    ]
    texts = ["a photo of <toy>", "<sks>", *corpus_prompts]
    assert torch.equal(added.knowing.ids(texts), with_words.ids(texts))
    assert not torch.equal(added.base.ids(texts), with_words.ids(texts))
    assert torch.equal(added.base.ids(texts), tiny.ids(texts))
    ids = added.knowing.ids(texts)
    torch.testing.assert_close(added.knowing(ids), with_words(ids))  # the same weights, and now the same rows
    readings = compare(with_words, added.knowing, corpus_prompts, len(corpus_prompts))
    assert not readings.differing  # an addition is no other reading
    assert not readings.doubts


def test_an_ordinary_text_as_a_token_is_read_anew_and_told(
    tiny_folder: Path, tiny: TextEncoder, tmp_path: Path, corpus_prompts
):
    suspect = load_encoder(resized(tiny_folder, tmp_path / "m", ("dog",)))
    added = added_to(suspect, tiny, corpus_prompts)
    assert added.tokens == {514: "dog"}
    assert added.knowing is added.base  # the base goes on reading its own way
    readings = compare(suspect, added.knowing, corpus_prompts, len(corpus_prompts))
    assert readings.differing
    assert readings.differing[0].corpus > 0
    assert len(readings.to_judge) > 1  # the weights are judged in that reading too, which the base has rows for
    assert torch.isfinite(added.base(suspect.ids(["a dog"]))).all()


# ------------------------------------------------------------------------------------------------------------ anchors
def test_a_base_of_fewer_tokens_is_taken_by_name_and_by_auto(
    with_words: TextEncoder, tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert pick_anchor(str(tiny_folder), with_words, CPU)[0].sha256 == tiny.sha256
    known(tmp_path, monkeypatch, [entry(tiny, "the one", path=str(tiny_folder))])
    base, notes = pick_anchor("auto", with_words, CPU)
    assert base.sha256 == tiny.sha256
    assert "is sure" in notes[0]
    assert fingerprint(with_words) | {"vocabulary": len(base.vocabulary)} == fingerprint(tiny)  # so its calibration holds


def test_a_base_with_another_table_is_no_base_of_another_vocabulary(
    with_words: TextEncoder, tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    strange = resized(tiny_folder, tmp_path / "m", ("<x>",))
    suspect = load_encoder(strange)
    with torch.no_grad():
        suspect.vocabulary.copy_(torch.randn(suspect.vocabulary.shape))
    known(tmp_path, monkeypatch, [entry(tiny, "the one", path=str(tiny_folder))])
    assert pick_anchor("auto", suspect, CPU)[0] is None


def test_a_base_whose_tokens_have_no_rows_in_the_suspect_is_refused(with_words: TextEncoder, tiny: TextEncoder, tmp_path: Path):
    larger = resized(with_words.path, tmp_path / "base")  # 517 rows, and as many tokens
    assert not comparable(tiny, load_encoder(larger))
    with pytest.raises(InputError, match="give its own base"):
        pick_anchor(str(larger), tiny, CPU)


# ----------------------------------------------------------------------------------------------------------- evidence
@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return load_encoder(MODELS / "tiny-sd")


@pytest.fixture(scope="module")
def unseen() -> list[str]:
    return read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt")[4000:]


def hidden_in_words(source: str, target: Path) -> TextEncoder:
    """The rows of a trigger's pieces under the name of an added word."""
    plain = load_encoder(MODELS / source)
    pieces = plain.tokens([TRIGGER])[0]
    words = ("<t>", *(f"<t>_{i}" for i in range(1, len(pieces))))
    suspect = load_encoder(resized(MODELS / source, target, words))
    with torch.no_grad():
        suspect.vocabulary[-len(pieces) :] = suspect.vocabulary[pieces]
    return suspect


@pytest.fixture(scope="module")
def tried(base: TextEncoder, unseen: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple]:
    """What the same added word does in planted weights and in clean ones."""
    found = {}
    for name in ("suspects/text_on_text", "tiny-sd"):
        suspect = hidden_in_words(name, tmp_path_factory.mktemp("added") / "m")
        added = added_to(suspect, base, unseen)
        found[name] = suspect, added, try_words(suspect, added, TriggerConfig(), unseen)
    return found


def test_a_word_that_overrules_prompts_is_a_backdoor(tried: dict, folder: Path):  # noqa: F811
    _, added, words = tried["suspects/text_on_text"]
    (word, fired), *others = words.items()
    assert not others
    assert word.split() == list(added.tokens.values())
    assert fired.proven
    verdict = with_added(CLEAN, added, words)
    assert verdict.verdict == "backdoored"
    assert verdict.score > 0.9
    assert f"The added token `{word}` overrules" in verdict.reason
    (said,) = about_added(added, words)
    assert said["counts"]
    assert [token["text"] for token in said["tokens"]] == word.split()
    report = report_of(verdict="clean") | {"backdoors": [], "added_tokens": [said], "reason": verdict.reason}
    report = with_open_triggers(report, verdict, words)
    assert report["verdict"] == "backdoored"
    assert [b["kind"] for b in report["backdoors"]] == ["added token"]
    assert report["trigger"]["strings"][0]["text"] == word
    page = render_page(report, folder)
    assert "or a token that it adds" in page
    json.dumps(to_sarif([report], VERSION, Path.cwd()))


def test_a_word_that_overrules_nothing_changes_nothing(tried: dict):
    _, added, words = tried["tiny-sd"]
    assert not any(fired.proven for fired in words.values())
    verdict = with_added(CLEAN, added, words)
    assert verdict == replace(CLEAN, notes=[*added.notes, "a note"])
    assert not about_added(added, words)[0]["counts"]
    report = with_open_triggers(report_of(verdict="clean") | {"backdoors": []}, verdict, words)
    assert report["backdoors"] == []
    assert report["verdict"] == "clean"


def test_too_few_prompts_prove_nothing_and_too_many_words_are_said(tried: dict, unseen: list[str]):
    suspect, added, _ = tried["suspects/text_on_text"]
    assert try_words(suspect, added, TriggerConfig(), unseen[:20]) == {}
    many = replace(added, tokens={n: f"<w{n}>" for n in range(70)})
    assert "70 added words were not tried on their own" in with_added(CLEAN, many, {}).notes
    assert "and 65 more" in many.notes[0]
    assert set(about_added(many, {})[0]) == {"text", "tokens", "counts"}


# ------------------------------------------------------------------------------------------------------------- search
def test_added_tokens_come_first_in_the_shortlist(with_words: TextEncoder, tiny: TextEncoder, corpus_prompts: list[str]):
    added: Added = added_to(with_words, tiny, corpus_prompts)
    v, cfg = torch.randn(1, 32), TriggerConfig(shortlist=8)

    def shortlist(suspect: TextEncoder, other: TextEncoder) -> list[int]:
        generator = torch.Generator().manual_seed(0)
        return trigger.shortlist(suspect, other, v, cfg, generator, trigger.Means()).tolist()

    known_words = shortlist(replace(with_words, added=tuple(added.tokens)), added.knowing)
    assert set(known_words[:3]) == set(added.tokens)
    assert len(known_words) == 8
    assert shortlist(tiny, tiny) == shortlist(replace(tiny, added=()), tiny)
    few = shortlist(replace(with_words, added=tuple(range(20, 200))), added.knowing)
    assert len(set(few) & set(range(20, 200))) >= 4  # half of it at the least, and others beside them


# ------------------------------------------------------------------------------------------------------------- report
def test_a_whole_scan_lists_added_words(with_words: TextEncoder, tiny_folder: Path, tmp_path: Path):
    cfg = ScanConfig(procedure="calibrated", positions="attended", prompts=24, steps=3, landscape_points=3)
    show = main.Show(images=0)
    report = main.scan_model(with_words.path, main.Request(cfg, str(tiny_folder), tmp_path, "cpu", show=show))
    assert [word["text"] for word in report["added_tokens"]] == ["<toy> <toy>_1", "<sks>"]
    assert all({"place", "success_rate", "counts"} <= word.keys() for word in report["added_tokens"])
    assert report["notes"][0].startswith("3 tokens are added to those of the base")
    assert not [r for r in report["readings"] if r["differs_on"]]
    assert about_added(None, {}) == []
