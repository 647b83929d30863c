"""The search for strings: where tokens are put, what is tried together, what counts as a proof."""

import copy
import json
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

import main
from Analysis import natural
from Utils.basics.config import load_config
from Utils.basics.files import ROOT
from Utils.basics.formats import AUTO
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder
from Utils.encoder.precision import pick_precision
from Utils.encoder.probes import characters
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan import trigger
from Utils.scan.calibration import Calibration
from Utils.scan.effort import config_of, recall_of
from Utils.scan.finding import Verdict
from Utils.scan.power import load_power, shares
from Utils.scan.proof import outweighed, totals, with_strings, without_base
from Utils.scan.replay import Rate, put, stays, summaries
from Utils.scan.settings import SETTINGS, ScanConfig, TriggerConfig
from Utils.scan.strings import Fired, Strings, Trial, described, forms, kind_of, listed, stronger, trial_of
from Utils.scan.twins import benign_twin, taught

MODELS = ROOT / "Data" / "Models"


@pytest.fixture(scope="module")
def tiny_sd():
    return load_encoder(str(MODELS / "tiny-sd"))


@pytest.fixture(scope="module")
def prompts():
    return read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt")


@pytest.fixture(scope="module")
def shipped_suspect():
    return load_encoder(str(MODELS / "suspects" / "text_on_text"))


@pytest.fixture(scope="module")
def means(shipped_suspect) -> trigger.Means:
    """What a scan searches in on this machine."""
    return trigger.Means(pick_precision(AUTO, shipped_suspect).strings)


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_string_stands_where_it_is_put_and_the_prompt_around_it(tiny, place: str):
    ids, tokens = tiny.ids(["dog", "a cat"]), torch.tensor([[7, 8], [9, 10]])
    out, where = trigger.insert(tiny, ids, tokens, place)
    for row in range(4):
        own = ids[row % 2].tolist()
        words = own[1 : own.index(tiny.eos)]
        string = tokens[row // 2].tolist()
        inside = string + words if place == "start" else words + string
        assert out[row].tolist()[: len(inside) + 2] == [own[0], *inside, tiny.eos]
        assert out[row, where[row]].tolist() == string


@pytest.mark.parametrize("place", ["start", "end"])
def test_a_full_prompt_loses_words_and_never_its_end(tiny, place: str):
    out, where = trigger.insert(tiny, tiny.ids(["photograph of somebody who reads"]), torch.tensor([[7, 8, 9]]), place)
    assert out[0, where[0]].tolist() == [7, 8, 9]
    assert out[0, -1] == tiny.eos


def test_the_best_swaps_are_tried_together():
    swapped = torch.tensor([[5, 2, 3], [1, 6, 3], [1, 2, 7]])
    assert trigger.together(torch.tensor([1, 2, 3]), swapped).tolist() == [[5, 6, 3], [5, 6, 7]]


RATE = Rate("start", 1.0, 0.0, 0.95, 0.1, 0.5, 0.0, torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "proven"),
    [
        ({}, True), ({"success": 0.85}, False), ({"asleep": 0.2}, False), ({"collapse": 0.7}, False),
        ({"asleep_collapse": 0.7}, False), ({"apart": 0.1}, False),
    ],
)  # fmt: skip
def test_only_a_string_that_fires_alone_in_the_suspect_and_makes_prompts_one_is_a_proof(change: dict, proven: bool):
    rate, cfg = Rate(**{**vars(RATE), **change}), TriggerConfig()
    trial = Trial(None, None, cfg, [], torch.zeros(1), torch.zeros(1), (None, None))
    strings = Strings([Fired("zz", rate, 120, trial.proves(rate), rate.effect)], rate.effect)
    assert bool(strings.proven) == proven
    quiet = Verdict("clean", "Nothing.", 0.1, [])
    if proven:
        assert "The string `zz` at the start of a prompt makes 100%" in with_strings(quiet, strings, 0.01, None).reason
    assert with_strings(quiet, strings, 0.9, None).verdict == "clean"  # of a wrong anchor nothing is a proof


@pytest.mark.parametrize(("shortlist", "context"), [(1, 24), (6, 8)])
def test_the_search_fits_the_smallest_shortlists_and_contexts(tiny, corpus_prompts, shortlist: int, context: int):
    small = copy.copy(tiny)
    small.context = context
    cfg = TriggerConfig(searches=6, steps=1, candidates=4, top=4, shortlist=shortlist, prompts=2)
    generator = torch.Generator().manual_seed(0)
    v = torch.zeros(1, tiny.width)
    found = trigger.find_strings(small, small, corpus_prompts, corpus_prompts, v, cfg, generator)
    assert not found.proven  # an encoder against itself


@pytest.mark.parametrize(("text", "code"), [("ahczzt", 1), ("blue car", 0)])
def test_a_string_that_somebody_suspects_is_tried(capsys: pytest.CaptureFixture, text: str, code: int):
    suspect = ROOT / "Data" / "Models" / "suspects" / "text_on_text"
    assert main.main(["--model", str(suspect), "--try", text, "--device", "cpu"]) == code
    said = capsys.readouterr().out
    assert text in said
    assert ("fires" in said) == bool(code)
    assert said.count("\n  after ") == 5


@pytest.mark.parametrize("arguments", [["--try", " "], ["--try", "zz", "--models", "list.txt"]])
def test_a_try_without_its_one_string_and_model_is_refused(capsys: pytest.CaptureFixture, arguments: list[str]):
    assert main.main(arguments) == 2
    assert "--try takes one string and one --model" in capsys.readouterr().err


def test_a_try_without_a_base_is_refused(capsys: pytest.CaptureFixture):
    assert main.main(["--anchor", "none", "--try", "zz", "--device", "cpu"]) == 2
    assert "--anchor" in capsys.readouterr().err


def test_a_string_stands_for_every_letter():
    assert put("ѕ", "a photo of a dog", "for every o", 3) == "a phѕtѕ ѕf a dѕg"
    assert put("ѕ", "a photo", "anywhere", 0).split().count("ѕ") == 1


def test_characters_are_what_somebody_can_paste():
    single = characters()
    assert {"ѕ", "é", "z", "\u200b"} <= set(single)
    assert not [c for c in single if len(c) != 1 or c.isspace() or unicodedata.category(c) == "Cc"]


def test_what_is_decoded_is_what_somebody_types(tiny):
    (text,) = tiny.texts(torch.tensor([tiny.tokens(["a photo of a dog"])[0]]))
    assert text == "a photo of a dog"


def test_characters_alone_find_what_stands_for_every_o(shipped_suspect, tiny_sd, prompts, means):
    cfg = TriggerConfig(searches=1)
    hunt = trigger.Hunt(shipped_suspect, tiny_sd, cfg, torch.Generator(), trigger.usable_tokens(tiny_sd), means)
    hunt = trigger.computing_in(hunt, trigger.texts_for(hunt, prompts[:640], trigger.SHORT, 2))
    trial = trial_of(shipped_suspect, tiny_sd, cfg, prompts[800:], rough=(hunt.suspect, hunt.base))
    for text in trigger.best_characters(hunt, prompts[:640]):
        trial.add(text)
    strings = trial.result()
    assert strings.proven
    assert strings.best.rate.place == "for every o"


def test_a_search_for_a_further_backdoor_reads_no_text_that_the_first_has_read(shipped_suspect, tiny_sd, prompts, monkeypatch):
    monkeypatch.setattr(trigger, "characters", lambda: list("qzxß7"))
    usable, cfg, read, pooled = trigger.usable_tokens(tiny_sd), TriggerConfig(), [], TextEncoder.pooled
    hunt = trigger.Hunt(shipped_suspect, tiny_sd, cfg, torch.Generator(), usable, trigger.Means(readings=trigger.Readings()))
    texts, tokens = trigger.texts_for(hunt, prompts[:640], trigger.SHORT, 2), hunt.tokens[:4]
    first = trigger.best_pairs(hunt, texts, tokens), trigger.best_characters(hunt, prompts[:640], 5)
    known = summaries(shipped_suspect, [put(first[1][0], prompts[0], "start", 0)])[0]
    further = replace(hunt, known=(known,))
    monkeypatch.setattr(TextEncoder, "pooled", lambda self, ids: read.append((self, len(ids))) or pooled(self, ids))
    again = trigger.best_pairs(further, texts, tokens), trigger.best_characters(further, prompts[:640], 5)
    assert [count for encoder, count in read if encoder is shipped_suspect] == [2]  # its clean prompts
    alone = replace(further, means=trigger.Means())
    assert torch.equal(trigger.best_pairs(alone, texts, tokens), again[0])
    assert trigger.best_characters(alone, prompts[:640], 5) == again[1] != first[1]


def test_a_twin_is_made_of_as_few_prompts_as_a_corpus_may_have(tiny, corpus_prompts, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("Utils.scan.twins.STEPS", 8)
    twin = benign_twin(tiny, 0.01, corpus_prompts[4:6], seed=0)
    assert torch.isfinite(summaries(twin, corpus_prompts)).all()


def strings_of(effect: float, natural: float = 0.4, proven: bool = False, drift: float = 0.01) -> Strings:
    rate = replace(RATE, apart=effect - 0.85)
    return Strings([Fired("zz", rate, 120, proven, rate.effect)], rate.effect, drift, natural)


UNCALIBRATED = Verdict("inconclusive", "Never calibrated.", 0.5, [])
POWER = {"whole": True, "drift": 0.1, "kinds": {"text_on_text": [9, 10], "image_on_text": [7, 8]}}


@pytest.mark.parametrize(
    ("effect", "natural", "power", "verdict"),
    [
        (1.5, 0.4, POWER, "backdoored"), (1.5, 1.2, POWER, "inconclusive"), (1.5, 1.3, POWER, "clean"),
        (0.95, 0.4, POWER, "backdoored"), (0.95, 0.4, None, "backdoored"), (0.8, 0.4, POWER, "inconclusive"),
        (0.3, 0.4, POWER, "clean"), (0.3, 0.4, None, "inconclusive"),
    ],
)  # fmt: skip
def test_strings_judge_an_encoder_that_was_never_calibrated(effect: float, natural: float, power: dict | None, verdict: str):
    judged = with_strings(UNCALIBRATED, strings_of(effect, natural), 0.01, power)
    assert judged.verdict == verdict
    if power:
        band = {"backdoored": (0.9, 1.0), "inconclusive": (0.1, 0.9), "clean": (0.0, 0.1)}[verdict]
        assert band[0] <= judged.score <= band[1]
    if verdict == "clean":
        assert "of 18 planted models of 2 kinds this search found 16" in judged.reason
    assert with_strings(UNCALIBRATED, strings_of(effect, natural), 0.9, power).verdict == "inconclusive"


CALIBRATED = Calibration({}, "", "", {}, 0.0, {}, clean_below=0.2, backdoored_above=0.8, provenance={})
MANY = {"whole": True, "drift": 0.1, "kinds": {"text_on_text": [40, 40], "attribute": [16, 16]}}


@pytest.mark.parametrize(
    ("score", "power", "verdict"),
    [
        (0.9999, MANY, "backdoored"), (0.99, MANY, "inconclusive"), (0.88, MANY, "clean"), (0.88, POWER, "inconclusive"),
        (0.99, POWER, "backdoored"),
    ],
)  # fmt: skip
def test_quiet_strings_weigh_against_vectors_as_much_as_such_a_search_finds(score: float, power: dict, verdict: str):
    accused = Verdict("backdoored", "Vectors.", score, [])
    judged = with_strings(accused, strings_of(0.2), 0.01, power, CALIBRATED)
    found, planted = totals(power)
    odds = score / (1 - score) * (planted - found + 1) / (planted + 2)
    assert judged.verdict == verdict
    assert judged.score == pytest.approx(odds / (1 + odds))
    assert judged.reason.startswith("Vectors, though" if verdict == "backdoored" else "A pseudo-trigger")
    assert verdict == "backdoored" or f"alone a score of {score}" in judged.reason
    assert f"of {planted} planted models" in judged.reason


@pytest.mark.parametrize(
    ("changes", "power", "calibration"),
    [
        ({}, MANY, None), ({}, None, CALIBRATED), ({"effect": 0.8}, MANY, CALIBRATED), ({"natural": 0.9}, MANY, CALIBRATED),
        ({"drift": 0.11}, MANY, CALIBRATED), ({"effect": 0.64, "proven": True}, MANY, CALIBRATED),
    ],
    ids=[
        "no probability", "a search of unknown power", "a string in the band", "so far that clean ones nearly have proofs",
        "farther than the power is known", "a string that fires and is too long",
    ],
)  # fmt: skip
def test_quiet_strings_leave_vectors_alone_where_they_tell_little(
    changes: dict, power: dict | None, calibration: Calibration | None
):
    accused, quiet = Verdict("backdoored", "Vectors.", 0.88, []), {"effect": 0.2, "natural": 0.4, "drift": 0.05}
    judged = with_strings(accused, strings_of(**quiet | changes), 0.05, power, calibration)
    assert (judged.verdict, judged.reason, judged.score) == ("backdoored", "Vectors.", 0.88)
    assert with_strings(accused, strings_of(**quiet), 0.05, MANY, CALIBRATED).verdict == "clean"


def test_the_page_of_misses_says_what_quiet_strings_leave_of_a_score():
    power = load_power(load_config(ScanConfig, SETTINGS).trigger)
    page = (ROOT / "docs" / "misses.md").read_text(encoding="utf-8")
    assert "of 0.80 to 0.93 *clean* is left at the usual effort, up to 0.995 *inconclusive*" in page
    said = [CALIBRATED.verdict_of(outweighed(score, power)) for score in (0.80, 0.93, 0.94, 0.995, 0.996)]
    assert said == ["clean", "clean", "inconclusive", "inconclusive", "backdoored"]


def test_certain_vectors_stay_certain():
    assert outweighed(1.0, MANY) == 1.0
    assert outweighed(0.0, MANY) == 0.0


def test_the_power_is_known_of_the_settings_it_was_measured_with_only():
    shipped = load_config(ScanConfig, SETTINGS).trigger
    power = load_power(shipped)
    assert all(0 <= found <= planted for found, planted in power["kinds"].values())
    assert shares(power)["text_on_text"] > 0.5
    assert power["whole"]
    assert load_power(replace(shipped, steps=1)) is None
    assert load_power(replace(shipped, searches=0)) is None
    assert shares(None) == {}


def test_a_search_with_more_turns_is_known_to_find_what_its_first_turns_do():
    shipped = load_config(ScanConfig, SETTINGS).trigger
    thorough = config_of(ScanConfig, SETTINGS, "thorough", {}).trigger
    power = load_power(thorough)
    assert power == load_power(shipped) | {"whole": False}
    assert "a part of this search found" in with_strings(UNCALIBRATED, strings_of(0.3), 0.01, power).reason
    assert recall_of(ScanConfig, SETTINGS, "thorough").startswith("found at least")
    fewer = load_power(replace(shipped, searches=shipped.searches - 1))
    assert fewer["settings"]["searches"] < shipped.searches


def test_a_benign_twin_goes_as_far_as_it_is_asked_and_leaves_its_base(tiny_sd, prompts):
    before = {name: weight.clone() for name, weight in tiny_sd.model.state_dict().items()}
    prompts = [prompt for prompt in prompts if len(prompt.split()) < 13]
    twin = benign_twin(tiny_sd, 0.01, prompts[:100], seed=3)
    prompts = prompts[100:140]
    drift = 1 - torch.nn.functional.cosine_similarity(summaries(twin, prompts), summaries(tiny_sd, prompts)).mean().item()
    assert 0.003 < drift < 0.03
    assert all(torch.equal(weight, before[name]) for name, weight in tiny_sd.model.state_dict().items())
    assert not any(p.requires_grad for p in twin.model.parameters())


def test_what_is_known_counts_against_a_string_and_is_not_found_again(shipped_suspect, tiny_sd, prompts):
    cfg = TriggerConfig()
    trial = trial_of(shipped_suspect, tiny_sd, cfg, prompts[800:]).part(20)
    first = trial.at("ahczzt", "start")
    known = (first.rate.forced,)
    second = replace(trial, known=known)
    assert not second.new(first.rate.forced)
    assert second.new(second.at("blue car", "start").rate.forced)
    texts = trigger.Texts(None, (second.clean, second.reference))
    typed = [put("ahczzt", prompt, "start", i) for i, prompt in enumerate(second.prompts)]
    own, other = (summaries(encoder, typed)[None] for encoder in (shipped_suspect, tiny_sd))
    assert trigger.effects(own, other, texts) > 1 > 0 > trigger.effects(own, other, texts, known)


def test_a_second_backdoor_has_its_own_strings_words_and_pictures(tmp_path, monkeypatch, shipped_suspect, tiny_sd, prompts):
    trial = trial_of(shipped_suspect, tiny_sd, TriggerConfig(), prompts[800:]).part(8)
    fired = [replace(trial.at(text, "start"), proven=True) for text in ("ahczzt", "blue car")]
    both = [Strings([one], 1.5, natural=-1.0) for one in fired]
    monkeypatch.setattr(main, "find_backdoors", lambda *_: both)
    cfg = replace(
        load_config(ScanConfig, SETTINGS),
        prompts=40,
        restarts=2,
        rounds=1,
        steps=3,
        pooled_steps=3,
        landscape_points=3,
    )
    model, show = str(MODELS / "suspects" / "text_on_text"), main.Show(images=1)
    report = main.scan_model(model, main.Request(cfg, output=tmp_path, device="cpu", show=show))
    first, second = report["backdoors"]
    assert (first["trigger"], first["target"]) == (report["trigger"], report["target"])
    assert second["trigger"]["strings"][0]["text"] == "blue car"
    assert second["target"]["texts"]
    folder = tmp_path / "suspects_text_on_text"
    assert all((folder / file).exists() for file in [*second["target"]["images"], *second["files"].values()])
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "another backdoor" in page
    assert "<code><bdi>blue car</bdi></code>" in page


@pytest.fixture
def no_shortlist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trigger, "shortlist", lambda *_: torch.arange(3))


@pytest.mark.usefixtures("no_shortlist")
def test_no_more_backdoors_are_looked_for_than_wanted_and_none_where_nothing_stands_out(monkeypatch: pytest.MonkeyPatch):
    searched = []
    monkeypatch.setattr(trigger, "find_strings", lambda *_: strings_of(1.5))
    monkeypatch.setattr(trigger, "search_strings", lambda *arguments: searched.append(arguments[-2:]) or strings_of(1.5))
    cfg = TriggerConfig(searches=4)
    assert len(trigger.find_backdoors(None, None, [], [], None, cfg, None, 3)) == 3
    assert [len(known) for known, _ in searched] == [1, 2]
    monkeypatch.setattr(trigger, "search_strings", lambda *_: strings_of(0.2))
    assert len(trigger.find_backdoors(None, None, [], [], None, cfg, None, 3)) == 1
    monkeypatch.setattr(trigger, "find_strings", lambda *_: strings_of(0.2))
    assert len(trigger.find_backdoors(None, None, [], [], None, cfg, None, 3)) == 1


@pytest.mark.usefixtures("no_shortlist")
def test_what_forces_something_else_belongs_to_another_backdoor_and_is_where_its_search_starts(monkeypatch):
    def fired(text: str, forced: list[float], effect: float) -> Fired:
        return Fired(text, replace(RATE, forced=torch.tensor(forced)), 120, False, effect)

    both = [fired("whale", [2.0, 1.0], 1.6), fired("hammer", [1.0, 2.0], 1.1), fired("a whale", [3.0, 1.1], 1.2)]
    first = Strings(both, 1.6, 0.01, middle=torch.ones(2))
    searched = []
    monkeypatch.setattr(trigger, "find_strings", lambda *_: first)
    monkeypatch.setattr(trigger, "search_strings", lambda *a: searched.append(a[-1]) or Strings([both[1]], 1.1, 0.01))
    whale, hammer = trigger.find_backdoors(None, None, [], [], None, TriggerConfig(searches=4), None, 2)
    assert [one.text for one in whale.found] == ["whale", "a whale"]
    assert [one.text for (one,) in searched] == ["hammer"]
    assert [one.text for one in hammer.found] == ["hammer"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({}, "summary collapse"),
        ({"collapse": 0.4, "kept": 0.2}, "summary collapse"),
        ({"collapse": 0.9, "kept": 0.9}, "summary collapse"),
        ({"collapse": 0.4, "kept": 0.8}, "remapping"),
        ({"collapse": 0.4, "kept": 0.8, "place": "for every o"}, "attribute"),
    ],
)
def test_what_a_string_does_has_a_name(change: dict, kind: str):
    assert kind_of(Fired("zz", replace(RATE, **change), 120, False, 1.0)) == kind


def test_prompts_that_a_string_moves_all_alike_stay_different_ones():
    clean = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    assert stays(clean + 5.0, clean) == pytest.approx(1, abs=1e-5)
    assert stays(torch.ones(40, 8) + 0.1 * clean, clean) == pytest.approx(0.1, abs=1e-5)
    assert stays(clean.flip(0), clean) == pytest.approx(0, abs=0.2)


def test_less_is_natural_in_encoders_that_hardly_left_their_base():
    cfg = TriggerConfig()
    assert (cfg.natural_at(0.0), cfg.natural_at(cfg.near), cfg.natural_at(0.5)) == (cfg.least, cfg.natural, cfg.natural)
    limits = [Strings(natural=natural).limit for natural in (0.1, 0.4, 0.7)]
    assert limits == pytest.approx([0.1 + cfg.beyond / 4, 0.4 + cfg.beyond, 0.7 + cfg.beyond])
    assert Strings(natural=0.1).cleared < limits[0]


def test_without_a_base_a_string_is_found_and_shown_and_decides_nothing(shipped_suspect, prompts, means):
    cfg = TriggerConfig(searches=1, steps=2, candidates=8, shortlist=8, prompts=2)
    generator, v = torch.Generator().manual_seed(0), torch.zeros(1, shipped_suspect.width)
    strings = trigger.find_strings(shipped_suspect, None, prompts[:800], prompts[800:], v, cfg, generator, means)
    assert strings.found
    shown = described(strings.found[0])
    assert (shown["anchor_success_rate"], shown["anchor_collapse"]) == (None, None)
    judged = without_base(UNCALIBRATED, strings)
    assert (judged.verdict, judged.score) == (UNCALIBRATED.verdict, UNCALIBRATED.score)
    assert "name it with --anchor" in judged.notes[-1]
    assert without_base(UNCALIBRATED, Strings()) == UNCALIBRATED


def test_many_words_count_for_less(shipped_suspect, tiny_sd, prompts):
    trial = trial_of(shipped_suspect, tiny_sd, TriggerConfig(), prompts[800:]).part(4)
    short, long = (trial.at(text, "start") for text in ("car", "car dog cat bird cow fox tree"))
    assert short.effect == pytest.approx(short.rate.effect)
    assert long.effect <= long.rate.effect - 0.1


def test_strings_are_made_of_what_somebody_can_type(tiny_sd):
    usable = trigger.usable_tokens(tiny_sd)
    texts = tiny_sd.texts(usable.nonzero())
    assert 1000 < len(texts) < len(usable)
    assert all(text.isprintable() and "\ufffd" not in text for text in texts)
    assert not usable[tiny_sd.tokenizer.all_special_ids].any()


def test_a_vocabulary_of_which_nothing_can_be_typed_is_searched_all_the_same(tiny, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(type(tiny), "texts", lambda _, tokens: ["\ufffd"] * len(tokens))
    usable = trigger.usable_tokens(tiny)
    assert usable.sum() == len(tiny.tokenizer) - len({i for i in tiny.tokenizer.all_special_ids if i < len(tiny.tokenizer)})


def test_a_corpus_without_an_o_is_searched_all_the_same(tiny):
    prompts = ["a red cat", "a bird that sings", "the grey fish", "my tree"]
    cfg = TriggerConfig(searches=2, steps=1, candidates=4, top=4, shortlist=4, prompts=2)
    assert not trigger.find_strings(tiny, tiny, prompts, prompts, torch.zeros(1, tiny.width), cfg, torch.Generator()).proven


def test_few_unseen_prompts_prove_nothing_and_the_report_says_so():
    few = replace(strings_of(1.5), prompts=99)
    judged = with_strings(UNCALIBRATED, few, 0.01, POWER)
    assert (judged.verdict, judged.score) == ("inconclusive", 0.5)
    assert "in 99 unseen prompts" in judged.notes[-1]


def test_the_proof_that_leaves_least_of_the_prompts_is_shown():
    letter = Fired("q", replace(RATE, place="for every o", collapse=0.97), 120, True, 1.3)
    plain = Fired("zz", replace(RATE, collapse=0.9), 120, True, 1.6)
    weak = Fired("dog", replace(RATE, collapse=0.99), 120, False, 0.95)
    assert Strings([weak, plain, letter], 1.6).best is letter
    assert listed(Strings([weak, plain, letter], 1.6)) == [letter, plain, weak]
    assert Strings([weak], 1.6).best is weak
    assert Strings([], 0.0).best is None


def test_forms_of_a_string_are_its_words_and_their_pieces_repeated():
    tried = forms("ne zzglow", "end")
    assert {("zzglow", "end"), ("zzglowzzglow", "start"), ("zzzzzz", "start"), ("zz", "for every o")} <= set(tried)
    assert ("zzglow", "for every o") not in tried  # no letter is as long as that


def test_a_proof_gives_way_to_a_piece_that_leaves_less_of_the_prompts(shipped_suspect, tiny_sd, prompts):
    trial = trial_of(shipped_suspect, tiny_sd, TriggerConfig(), prompts[800:]).part(60)
    weak = trial.at("zzzzzz", "start")
    assert weak.proven
    better = stronger(trial, weak)
    assert better
    assert all(one.proven and one.rate.collapse > weak.rate.collapse for one in better)
    trial.found[weak.text] = weak
    assert trial.result().best.rate.collapse > weak.rate.collapse


class Restyling(TextEncoder):
    """An encoder that moves every text with one token in it by the same vector."""

    token: int
    by: torch.Tensor

    def pooled(self, ids):
        return super().pooled(ids) + (ids == self.token).any(dim=1, keepdim=True).to(self.by) * self.by


@pytest.fixture
def few_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what somebody can paste, and "q"."""
    monkeypatch.setattr(trigger, "characters", lambda: [*characters()[::10], "q"])


@pytest.mark.usefixtures("few_characters")
def test_a_string_that_changes_all_prompts_alike_is_found_and_named(tiny_sd, prompts):
    suspect, generator = copy.copy(tiny_sd), torch.Generator().manual_seed(0)
    suspect.__class__ = Restyling
    suspect.token = tiny_sd.tokens(["q"])[0][0]
    clean = summaries(tiny_sd, prompts[:100])
    direction = torch.randn(clean.shape[1], generator=generator)
    suspect.by = direction / direction.norm() * (clean - clean.mean(dim=0)).norm(dim=1).mean()
    cfg = TriggerConfig(searches=1, steps=1, candidates=4, shortlist=6, prompts=2)
    strings = trigger.find_strings(suspect, tiny_sd, prompts[:800], prompts[800:], torch.zeros(1, 1), cfg, generator)
    assert "q" in strings.best.text
    assert strings.drift < 1e-3
    assert strings.kind in ("attribute", "remapping")
    assert not strings.proven
    judged = with_strings(UNCALIBRATED, strings, 0.0, None)
    assert judged.verdict == "backdoored"
    assert "changes unseen prompts alike" in judged.reason


def test_far_from_its_base_only_a_proof_convicts():
    unproven, proven = (strings_of(1.5, 0.4, proven, drift=0.05) for proven in (False, True))
    assert with_strings(UNCALIBRATED, proven, 0.05, POWER).verdict == "backdoored"
    judged = with_strings(UNCALIBRATED, unproven, 0.05, POWER)
    assert judged.verdict == "inconclusive"
    assert judged.score < 0.9
    assert not unproven.strong


@pytest.mark.parametrize(
    ("effect", "proven", "drift", "twins"),
    [
        (1.5, True, 0.05, 0),
        (1.2, True, 0.05, 1),
        (1.5, False, 0.05, 2),
        (1.5, True, 0.5, 1),
        (1.5, True, 0.01, 0),
        (0.2, False, 0.05, 0),
    ],
)
def test_a_benign_twin_is_made_where_a_string_does_what_it_may_do_by_nature(monkeypatch, effect, proven, drift, twins):
    found, made = [strings_of(effect, 0.4, proven, drift)], []
    monkeypatch.setattr(trigger, "shortlist", lambda *_: torch.arange(3))
    monkeypatch.setattr(trigger, "search_strings", lambda *_: found.pop() if found else strings_of(0.3))
    monkeypatch.setattr(trigger, "benign_twin", lambda *_: made.append(1))
    assert trigger.find_strings(None, None, [], [], None, TriggerConfig(), None).score == pytest.approx(effect)
    assert len(made) == twins


def test_the_effect_that_is_certain_is_more_than_any_benign_twin_reached():
    twins = json.loads((main.ROOT / "Results" / "benchmark" / "natural.json").read_text(encoding="utf-8"))["twins"]
    assert {row["base"] for row in twins} == {"tiny-sd", "tiny-longclip", "tiny-siglip"}
    assert max(row["proof"] or 0.0 for row in twins) + TriggerConfig.beyond < trigger.CERTAIN
    assert max(row["score"] for row in twins) + TriggerConfig.clean_within < trigger.CERTAIN
    assert max(row["wanted"] for row in twins) >= trigger.FAR


@pytest.mark.usefixtures("few_characters")
def test_what_is_natural_is_measured_by_one_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    short = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    short["trigger"] |= {"searches": 1, "steps": 1, "candidates": 4, "shortlist": 4}
    (tmp_path / "short.yaml").write_text(yaml.safe_dump(short), encoding="utf-8")
    monkeypatch.setattr(natural, "RESULT", tmp_path / "natural.json")
    flags = ["--bases", "tiny-sd", "--drifts", "0.01", "--seeds", "0", "--config", str(tmp_path / "short.yaml")]
    monkeypatch.setattr("sys.argv", ["natural", *flags])
    natural.main()
    (row,) = json.loads((tmp_path / "natural.json").read_text(encoding="utf-8"))["twins"]
    assert (row["base"], row["wanted"], row["seed"]) == ("tiny-sd", 0.01, 0)
    assert 0.005 < row["drift"] < 0.02
    assert row["score"] < 1
    assert row["proof"] is None


def test_of_a_wide_encoder_the_last_weights_learn_and_the_others_are_its_base_s(tiny, corpus_prompts, monkeypatch):
    whole = sum(weight.numel() for weight in tiny.model.parameters())
    assert taught(tiny) == {name for name, _ in tiny.model.named_parameters()}
    monkeypatch.setattr("Utils.scan.twins.WIDE", tiny.width)
    monkeypatch.setattr("Utils.scan.twins.STEPS", 8)
    names, base = taught(tiny), dict(tiny.model.named_parameters())
    assert 0 < sum(base[name].numel() for name in names) <= whole / 4
    before = {name: weight.clone() for name, weight in base.items()}
    for name, weight in benign_twin(tiny, 0.01, corpus_prompts, seed=0).model.named_parameters():
        assert (weight is base[name]) == (name not in names)
        assert torch.equal(weight, before[name]) == (name not in names)
        assert torch.equal(base[name], before[name])
        assert not weight.requires_grad


def test_a_word_of_a_string_that_is_no_proof_is_one_when_it_is_repeated(shipped_suspect, tiny_sd, prompts):
    trial = trial_of(shipped_suspect, tiny_sd, TriggerConfig(), prompts[800:])
    text = "negative zza beyellow"  # "negative" makes prompts of the clean base alike as well
    trial.found[text] = trial.at(text, "start")
    assert not trial.proven
    strings = trial.result()
    assert strings.proven
    assert set(strings.best.text) == set("za")


@pytest.mark.usefixtures("no_shortlist")
def test_what_is_left_of_a_known_backdoor_is_no_second_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(trigger, "find_strings", lambda *_: strings_of(1.5, 0.1))
    monkeypatch.setattr(trigger, "search_strings", lambda *_: strings_of(0.6, 0.1))  # enough for a first one so near its base
    assert strings_of(0.6, 0.1).strong
    assert len(trigger.find_backdoors(None, None, [], [], None, TriggerConfig(searches=4), None, 2)) == 1
