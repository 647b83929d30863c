"""A repair takes out of a suspect what bends towards the target that a scan found, and keeps what it says of clean prompts.

measures                     what a string does, and how far clean prompts went
texts                        words that nobody has seen, something in place of a letter
opponents                    strings that get harder while the student learns
rest                         how much is taken out before anything is learned
reference                    the suspect where nothing bends, the base where it does
unlearn                      what it changes, what it keeps, and that it goes on where it stopped
"""

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from short import few_words

from Utils.basics.files import ROOT
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, weights_digest
from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.training import Checkpoint, Training
from Utils.encoder.weights import set_weights, widest, without_leading
from Utils.repair import measures, unlearning
from Utils.repair.damage import Damage
from Utils.repair.measures import of_odd_prompts, of_strings, towards_target
from Utils.repair.methods import weights_of
from Utils.repair.opponents import LONGEST, TOP, Opponents, Placed
from Utils.repair.settings import RepairConfig
from Utils.repair.taught import NOUNS_TRIED, TOKENS, moved_rows, taught_nouns, taught_tokens, taught_words
from Utils.repair.texts import Invented, for_a_letter, garbled, with_other_words
from Utils.repair.unlearning import (
    Course,
    Made,
    Probe,
    Reading,
    Reference,
    bend,
    less_and_less,
    reference_of,
    unlearn,
    without_ways,
)
from Utils.scan.replay import nearer, put, rate_at, summaries
from Utils.scan.trigger import usable_tokens

PROMPTS = read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt")
FEW = RepairConfig(steps=4, clean=4, invented=1, known=1, garbled=2, found=2, searched=2, opponents=2, flips=1)
TRIGGER = ("zzzz", "for every o")


@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return load_encoder(ROOT / "Data" / "Models" / "tiny-sd")


@pytest.fixture(scope="module")
def damage(base: TextEncoder) -> Damage:
    """The shipped suspect, with its true trigger in place of what a scan finds."""
    suspect = load_encoder(ROOT / "Data" / "Models" / "suspects" / "text_on_text")
    return Damage(suspect, base, PROMPTS[:400], [TRIGGER], (forced_by(suspect),), 1)


def nothing_taken_out(damage: Damage) -> Reference:
    return reference_of(damage, torch.float32, FEW)


@pytest.fixture(scope="module")
def reference(damage: Damage) -> Reference:
    """Of the whole damage: what most tests look at."""
    return nothing_taken_out(damage)


def typed(prompts: list[str]) -> list[str]:
    return [put(TRIGGER[0], prompt, TRIGGER[1], i) for i, prompt in enumerate(prompts)]


def forced_by(encoder: TextEncoder) -> torch.Tensor:
    return summaries(encoder, typed(PROMPTS[400:460])).mean(dim=0)


# ------------------------------------------------------------------------------------------------------------- measures
def test_what_a_string_does_is_told_of_every_encoder_by_what_it_forces_in_the_suspect(damage: Damage, base: TextEncoder):
    prompts, (text, place) = PROMPTS[400:440], TRIGGER
    (row,) = of_strings(damage, base, prompts)  # as if the repair had put the base in its place
    clean = [summaries(one, prompts) for one in (damage.suspect, base)]
    rate = rate_at(place, text, damage.suspect, base, prompts, *clean, whole=True)
    assert row["success"] == {"suspect": rate.success, "repaired": round(rate.asleep, 4), "base": round(rate.asleep, 4)}
    assert row["collapse"]["base"] == round(rate.asleep_collapse, 4)


def test_odd_letters_rare_words_and_emoji_are_looked_at_where_they_fire_nothing(
    damage: Damage, base: TextEncoder, monkeypatch: pytest.MonkeyPatch
):
    prompts = PROMPTS[400:448]
    same = of_odd_prompts(damage, damage.suspect, prompts)
    assert same["suspect"] == pytest.approx(1, abs=1e-4)
    assert len(prompts) / 2 < same["prompts"] <= len(prompts)
    assert of_odd_prompts(damage, base, prompts)["suspect"] == same["base"] < 1
    alone = of_odd_prompts(replace(damage, base=None), base, prompts)
    assert alone["base"] is None
    assert alone["suspect"] == same["base"]
    monkeypatch.setattr(measures, "ODD", (TRIGGER,))
    fired = of_odd_prompts(damage, base, [prompt for prompt in prompts if "o" in prompt])
    assert fired == {"prompts": 0, "suspect": None, "base": None}


def test_a_drift_towards_the_target_is_told_as_a_share_of_the_way(damage: Damage, base: TextEncoder):
    prompts, there = PROMPTS[400:440], summaries(base, PROMPTS[400:440]).mean(dim=0)
    gone = summaries(damage.suspect, prompts).mean(dim=0) - there
    assert towards_target(base, base, damage.forced, prompts) == 0
    assert towards_target(damage.suspect, base, (there + 2 * gone,), prompts) == pytest.approx(0.5, abs=1e-3)
    assert towards_target(damage.suspect, base, (there - gone,), prompts) == pytest.approx(-1, abs=1e-3)
    assert towards_target(damage.suspect, base, (there - gone, there + gone), prompts) == pytest.approx(1, abs=1e-3)


def test_captions_find_their_pictures_where_a_vision_tower_belongs_to_the_base(
    damage: Damage, base: TextEncoder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(measures, "PAIRS", 32)
    found = measures.of_pictures(damage, base)  # as if the repair had put the base in its place
    assert found["base"] == found["repaired"] > 0.9
    assert found["suspect"] > 0.9
    for family in ("tiny-siglip", "tiny-longclip"):  # a pair in one folder, and a text tower whose pair the registry names
        other = load_encoder(ROOT / "Data" / "Models" / family)
        assert measures.of_pictures(Damage(other, other, PROMPTS), other)["base"] > 0.9
    assert measures.of_pictures(replace(damage, base=damage.suspect), base) is None  # a text tower by itself
    assert measures.of_pictures(replace(damage, base=None), base) is None


# --------------------------------------------------------------------------------------------------------------- texts
def test_invented_words_are_no_words_of_the_prompts_but_made_of_their_letters():
    invented, rng = Invented(PROMPTS), np.random.default_rng(0)
    words, spoken = {invented.word(rng) for _ in range(300)}, {w.strip(".,:;") for p in PROMPTS for w in p.split()}
    assert len(words) > 200
    assert len(words - spoken) > 150
    assert set("".join(words)) <= set("".join(spoken))
    assert Invented(PROMPTS).word(np.random.default_rng(5)) == invented.word(np.random.default_rng(5))


def test_other_words_stand_where_words_stood():
    text = with_other_words("a red cat on a mat", lambda: "X", np.random.default_rng(0))
    assert len(text.split()) == 6
    assert 1 <= text.split().count("X") <= 3


def test_one_letter_is_garbled_wherever_it_stands():
    invented, prompt = Invented(PROMPTS), "somebody took a photo of a tree"
    for seed in range(40):
        text = garbled(prompt, invented, ["zz", "cat"], np.random.default_rng(seed))
        assert any(_is_replaced(prompt, text, letter) for letter in invented.letters)


def _is_replaced(prompt: str, text: str, letter: str) -> bool:
    kept = prompt.split(letter)
    inside = len(kept) - 1 and (len(text) - len("".join(kept))) / (len(kept) - 1)
    return inside == int(inside) and text.startswith(kept[0]) and text.endswith(kept[-1]) and len(kept) > 1


def test_a_word_stands_for_a_letter_wherever_it_is():
    words, prompt = ["kwx", "zebra"], "somebody took a photo of a tree"
    texts = {for_a_letter(prompt, words, ["o", "t"], np.random.default_rng(seed)) for seed in range(60)}
    assert texts == {prompt.replace(letter, word) for letter in "ot" for word in words}


# ----------------------------------------------------------------------------------------------------------- opponents
def test_opponents_stand_in_prompts_that_end_as_they_should(base: TextEncoder):
    usable = usable_tokens(base).nonzero()[:, 0]
    pool, rng = Opponents(usable, 12, 3, 0), np.random.default_rng(0)
    ids = base.ids(["a dog", *PROMPTS[:20], "a very long one " * 40])
    out, where = pool.placed(base, ids, rng)
    assert out.shape == ids.shape
    assert ((out == base.eos).int().argmax(dim=1) > 0).all()
    for row, one in zip(out.tolist(), where, strict=True):
        tokens = pool.tokens[one.number]
        assert 1 <= len(tokens) <= LONGEST
        assert all(row[start : start + len(tokens)] == tokens for start in one.starts)
    assert sum(bool(one.starts) for one in where) > 18


def test_an_opponent_becomes_what_makes_the_loss_grow_and_makes_room_in_the_end():
    table = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    pool, rng = Opponents(torch.arange(50), 1, 2, 0), np.random.default_rng(0)
    pool.tokens = [[7]]
    gradient = torch.zeros(1, 9, 4)
    gradient[0, 3] = torch.tensor([1.0, -2.0, 0.5, 0.0])
    pool.harden(gradient, [Placed(0, [3])], table, rng)
    assert pool.tokens[0][0] in (table @ gradient[0, 3]).topk(TOP).indices.tolist()
    assert pool.ages == [1]
    pool.harden(gradient, [Placed(0, [3])], table, rng)
    assert pool.ages == [0]
    before = copy.deepcopy(pool.tokens)
    pool.harden(gradient, [Placed(0, [])], table, rng)  # it was cut off
    assert pool.tokens == before


# ---------------------------------------------------------------------------------------------------------------- rest
def test_without_its_leading_directions_a_change_of_few_is_gone_and_one_of_many_is_kept(base: TextEncoder):
    few, many = (load_encoder(ROOT / "Data" / "Models" / "tiny-sd") for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    changed = {}
    for encoder, rank in ((few, 2), (many, 40)):
        weights = {name: weight.clone() for name, weight in base.model.named_parameters()}
        for name, weight in weights.items():
            if weight.ndim == 2:
                left, right = torch.randn(len(weight), rank, generator=draw), torch.randn(rank, weight.shape[1], generator=draw)
                weights[name] = weight + 0.1 * left @ right
        set_weights(encoder, weights)
        origin, less = dict(base.model.named_parameters()), without_leading(encoder, base, 3)
        assert all(torch.equal(less[name], weight) for name, weight in encoder.model.named_parameters() if weight.ndim != 2)
        matrices = [name for name, weight in less.items() if weight.ndim == 2]
        before, after = (sum(float((one[name] - origin[name]).norm() ** 2) for name in matrices) for one in (weights, less))
        changed[rank] = after / before
    assert changed[2] < 1e-6
    assert 0.6 < changed[40] < 0.95


@pytest.mark.parametrize(
    ("shares", "taken"),
    [([0.15], [1]), ([0.9, 0.15], [1, 2]), ([0.9, 0.8, 0.6, 0.5], [1, 2, 3, 4]), ([1.0] * 4 + [0.7], [1, 2, 3, 4, 8]),
     ([1.0] * 10, [1, 2, 3, 4, 8, 16, 32, 64, 128, 256])],
)  # fmt: skip
def test_directions_are_taken_until_found_strings_do_little(
    damage: Damage, reference: Reference, monkeypatch: pytest.MonkeyPatch, shares: list[float], taken: list[int]
):
    said, seen = iter([0.8, *(0.8 * share for share in shares)]), []  # the suspect's, then those of what is left of it
    monkeypatch.setattr(Probe, "reading", lambda self, rest: None)  # which nobody looks at here
    monkeypatch.setattr(Reference, "left", lambda self, damage, rest: next(said))
    monkeypatch.setattr(
        unlearning, "without_leading", lambda suspect, base, directions: seen.append(directions) or weights_of(suspect)
    )
    less_and_less(damage, FEW, reference, torch.float32)
    assert seen == taken


def test_what_a_found_string_still_does_is_told_by_the_base(damage: Damage, reference: Reference):
    assert reference.left(damage, reference.suspect) > 0.95
    assert reference.left(damage, reference.probe.reading(damage.base)) == 0
    assert reference.left(replace(damage, strings=[]), reference.suspect) == 0
    quiet = replace(damage, strings=[("", "start"), ("of", "start"), TRIGGER])  # one that changes nothing, one that does little
    assert reference.left(quiet, reference.suspect) == reference.left(damage, reference.suspect)


def test_without_all_directions_matrices_are_those_of_the_base(damage: Damage):
    origin, less = dict(damage.base.model.named_parameters()), without_leading(damage.suspect, damage.base, widest(damage.base))
    assert all(torch.equal(weight, origin[name]) for name, weight in less.items() if weight.ndim == 2)
    for unsaid in (replace(damage, strings=[]), replace(damage, wordless=True)):  # nothing says how many would do
        rest = less_and_less(unsaid, FEW, nothing_taken_out(unsaid), torch.float32)
        assert all(torch.equal(dict(rest.model.named_parameters())[name], weight) for name, weight in less.items())


def test_without_a_base_the_rest_is_the_suspect(damage: Damage):
    alone = replace(damage, base=None)
    assert less_and_less(alone, FEW, nothing_taken_out(alone), torch.float32) is damage.suspect


# ----------------------------------------------------------------------------------------------------------- reference
def test_the_suspect_says_what_is_wanted_and_the_base_of_what_bends(damage: Damage, reference: Reference):
    ids, bad = damage.suspect.ids(PROMPTS[460:468]), damage.suspect.ids(typed(PROMPTS[460:468]))
    for words in (8, 4, 0):
        wanted = reference.wanted(ids, ids, words).features
        assert F.cosine_similarity(wanted, damage.suspect(ids), dim=-1).mean() > 0.999
        torch.testing.assert_close(reference.wanted(bad, ids, words).features, damage.base(bad))


def test_of_strings_in_a_further_round_the_base_says_what_is_wanted_however_they_bend(damage: Damage, reference: Reference):
    ids = damage.suspect.ids(PROMPTS[460:468])
    wanted, own = reference.wanted(ids, ids, 2, 3), reference.wanted(ids, ids, 2)
    torch.testing.assert_close(wanted.features[-3:], damage.base(ids[-3:]))
    torch.testing.assert_close(wanted.summary[-3:], damage.base.pooled(ids[-3:]))
    torch.testing.assert_close(wanted.features[:5], own.features[:5])
    assert (own.features[-3:] - wanted.features[-3:]).norm() > 0.1


def test_of_words_the_base_says_what_is_wanted_where_they_bend_far_only(damage: Damage, reference: Reference):
    reference = replace(reference, reach=9.0)  # so that nothing is far
    bad = damage.suspect.ids(typed(PROMPTS[460:468]))
    wanted = reference.wanted(bad, bad, 3).features
    assert (wanted[:3] - damage.base(bad[:3])).norm() > 1
    torch.testing.assert_close(wanted[3:], damage.base(bad[3:]))


def test_of_words_that_bend_what_found_strings_do_is_not_wanted_and_all_else_is(damage: Damage, reference: Reference):
    reference = replace(reference, reach=9.0)  # so that nothing is far
    suspect, base = Made(*damage.suspect.both(bad := damage.suspect.ids(typed(PROMPTS[460:476])))), Made(*damage.base.both(bad))
    wanted = reference.wanted(bad, bad, 16)
    for made, own, other, ways in zip(wanted, suspect, base, reference.ways, strict=True):
        assert ways.shape == (FEW.ways, own.shape[-1])
        torch.testing.assert_close(ways @ ways.T, torch.eye(FEW.ways), atol=1e-5, rtol=0)
        torch.testing.assert_close((made - other) @ ways.T, torch.zeros_like(made @ ways.T), atol=1e-4, rtol=0)
        torch.testing.assert_close(made - made @ ways.T @ ways, own - own @ ways.T @ ways, atol=1e-4, rtol=0)
    bends = [reference.bends(reference.suspect, one, base.summary) for one in (suspect.summary, wanted.summary)]
    assert bends[0].min() > 0.5
    assert bends[1].mean() < bends[0].mean() / 2
    torch.testing.assert_close(replace(reference, ways=None).wanted(bad, bad, 16).features, suspect.features)


def test_without_a_string_or_a_base_there_are_no_ways(damage: Damage):
    assert nothing_taken_out(replace(damage, strings=[])).ways is None
    assert nothing_taken_out(replace(damage, base=None)).ways is None


def test_a_share_of_a_difference_is_taken_along_the_ways_only():
    own, base = torch.tensor([[[3.0, 5.0]], [[3.0, 5.0]]]), torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]])
    less = without_ways(own, base, torch.tensor([[0.0, 1.0]]), torch.tensor([1.0, 0.5]))
    torch.testing.assert_close(less, torch.tensor([[[3.0, 2.0]], [[3.0, 3.5]]]))


def test_how_far_is_far_is_a_share_of_what_the_strongest_found_string_does(damage: Damage, reference: Reference):
    assert reference.reach > 0.8
    quiet = replace(damage, strings=[("", "start"), ("of", "start"), TRIGGER])
    assert nothing_taken_out(quiet).reach == reference.reach
    assert nothing_taken_out(replace(damage, strings=[])).reach == 0
    own, base, (least, most) = torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0]]), unlearning.FAR
    middle = Reading(None, torch.zeros(2), 0.1, 0.1)
    between = Reference(middle, None, Probe([], torch.zeros(1, 2), torch.eye(2)[:1], 0.0, False), 2 / (least + most))
    assert between.far(own, base) == pytest.approx([0.5, 0.0])


@pytest.mark.parametrize("reach", [-0.5, 0.0, 0.05])
def test_however_little_found_strings_do_what_bends_as_clean_prompts_do_is_not_far(reach: float):
    middle = Reading(None, torch.zeros(2), 0.4, 0.4)
    reference = Reference(middle, None, Probe([], torch.zeros(1, 2), torch.eye(2)[:1], 0.0, False), reach)
    own = torch.tensor([[bends, (1 - bends**2) ** 0.5] for bends in (0.3, 0.4, 0.6, 0.9)])
    base = torch.tensor([[0.0, 1.0]] * 4)
    assert reference.far(own, base).tolist() == pytest.approx([0, 0, 0.5, 1], abs=1e-5)
    torch.testing.assert_close(reference.far(own, base), reference.share(middle, own, base))


def test_of_several_targets_the_one_that_is_reached_least_says_how_far_is_far(damage: Damage, reference: Reference):
    whole = reference
    elsewhere = replace(damage, forced=(*damage.forced, summaries(damage.base, PROMPTS[460:461])[0]))  # no string leads there
    both = nothing_taken_out(elsewhere)
    assert both.reach < whole.reach / 2
    assert len(both.ways.summary) == 2 * len(whole.ways.summary)


@pytest.mark.parametrize("family", ["tiny-siglip", "tiny-longclip"])
def test_other_families_have_ways_too(family: str):
    base, suspect = (load_encoder(ROOT / "Data" / "Models" / family) for _ in range(2))
    draw = torch.Generator().manual_seed(0)
    noise = {name: w + 0.2 * w.std() * torch.randn(w.shape, generator=draw) for name, w in suspect.model.named_parameters()}
    set_weights(suspect, noise)
    prompts = PROMPTS[:200]
    forced = summaries(suspect, [put("zzzz", prompt, "start", 0) for prompt in prompts[:20]]).mean(dim=0)
    reference = nothing_taken_out(Damage(suspect, base, prompts, [("zzzz", "start")], (forced,), 1))
    ids = suspect.ids([put("zzzz", prompt, "start", 0) for prompt in prompts[:6]])
    assert [len(ways) for ways in reference.ways] == [FEW.ways] * 2
    assert all(part.isfinite().all() for part in reference.wanted(ids, ids, 3))


def test_clean_prompts_are_wanted_as_the_suspect_has_them_and_triggered_ones_as_the_base(damage: Damage, reference: Reference):
    prompts = PROMPTS[460:476]
    ids, bad = damage.suspect.ids(prompts), damage.suspect.ids(typed(prompts))
    own, wanted = reference.clean(ids), reference.wanted(bad, ids)
    torch.testing.assert_close(own.features, damage.suspect(ids))
    torch.testing.assert_close(wanted.features, damage.base(bad))
    torch.testing.assert_close(wanted.summary, damage.base.pooled(bad))
    clean = reference.wanted(ids, ids)
    assert F.cosine_similarity(clean.features, own.features, dim=-1).mean() > 0.999
    assert reference.loss(own, own).max() == pytest.approx(0, abs=1e-5)
    assert reference.loss(own, wanted).min() > 0.2


@pytest.mark.parametrize("with_trigger", [20, 80, 200])
def test_clean_prompts_that_hold_the_trigger_are_not_taken_for_honest_ones(damage: Damage, with_trigger: int):
    """A common word may be the trigger, and a careless attacker's encoder gives the target for prompts without it."""
    some = [prompt for prompt in PROMPTS[:400] if "o" in prompt]
    reference = nothing_taken_out(replace(damage, prompts=[*typed(some[:with_trigger]), *some[with_trigger:]]))
    assert reference.suspect.honest <= unlearning.MOST_HONEST
    assert reference.left(damage, reference.suspect) > 0.9
    ids, bad = damage.suspect.ids(some[-12:]), damage.suspect.ids(typed(some[-12:]))
    torch.testing.assert_close(reference.clean(bad).features, damage.base(bad))
    torch.testing.assert_close(reference.clean(ids).features, damage.suspect(ids))


def test_without_a_base_what_bends_is_wanted_as_the_prompt_without_it(damage: Damage):
    reference = nothing_taken_out(replace(damage, base=None))
    prompts = PROMPTS[460:470]
    ids, bad = damage.suspect.ids(prompts), damage.suspect.ids(typed(prompts))
    torch.testing.assert_close(reference.wanted(bad, ids, 4).features, reference.clean(ids).features)


def test_what_bends_half_as_far_is_wanted_half_way():
    own = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, 0.954]])
    other = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    forced, middle = torch.eye(2)[:1], torch.zeros(2)
    assert bend(own, other, forced, (middle, middle)) == pytest.approx([1.0, 0.0, 0.3], abs=1e-3)
    reference = Reference(None, None, Probe([], torch.zeros(1, 2), forced, 0.0, False))
    assert reference.share(Reading(None, middle, 0.2, 0.2), own, other) == pytest.approx([1.0, 0.0, 0.5], abs=1e-2)


# ------------------------------------------------------------------------------------------------------------- unlearn
def course_of(damage: Damage, number: int = 0) -> Course:
    return Course(damage, FEW, number, nothing_taken_out(damage))


def test_new_words_are_made_of_tokens_that_moved_and_that_prompts_seldom_have(damage: Damage, reference: Reference):
    suspect = copy.copy(damage.suspect)
    suspect.model = copy.deepcopy(damage.base.model)
    usable = usable_tokens(suspect).nonzero()[:, 0]
    ids = suspect.ids(["a dog"])
    common, rare = int(ids[0, 1]), next(token for token in usable.tolist() if token not in ids)
    with torch.no_grad():
        suspect.vocabulary[[common, rare]] += 1.0
    assert taught_tokens(suspect, moved_rows(suspect, damage.base, ids), usable, None)[:2].tolist() == [rare, common]
    course = course_of(damage)
    words = [course.new_word(np.random.default_rng(seed)) for seed in range(60)]
    assert 12 < sum(word in course.taught for word in words) < 32
    assert 12 < sum(word in course.nouns for word in words) < 32
    assert all(word.strip() for word in words)
    assert not (reference.otherwise(course.taught) == 0).any()
    assert (reference.beyond(course.bent) > 0.3).float().mean() > 0.5
    assert (reference.beyond(PROMPTS[460:490]) < 0.02).float().mean() > 0.8


@pytest.mark.usefixtures("few_tokens")
def test_a_batch_says_of_which_kinds_its_texts_are(damage: Damage, reference: Reference):
    course = course_of(damage)
    for course.bent, prompts in ((["qxqx"], FEW.bent), ([], 0)):
        batch = course.batch(1)
        assert batch.counts == (1, 1, FEW.garbled + prompts, FEW.found + FEW.searched)
        assert len(batch.odd) == len(batch.before) == sum(batch.counts)
        letters = damage.suspect.texts(batch.odd)[2 + FEW.garbled : -batch.counts.strings]
        assert ["qxqx" in text for text in letters] == [True] * prompts
        assert len(batch.placed) == FEW.searched
    nothing_found = replace(damage, strings=[])
    assert Course(nothing_found, FEW, 0, reference).batch(1).counts.strings == FEW.searched


@pytest.mark.usefixtures("few_tokens")
def test_kinds_of_texts_weigh_what_the_settings_say(damage: Damage, monkeypatch: pytest.MonkeyPatch):
    cfg, said = replace(FEW, invented=2, bent=0, taught=10.0, letters=100.0, strings=1000.0), []
    monkeypatch.setattr(Reference, "loss", lambda self, found, wanted: torch.arange(float(len(found.features))))
    monkeypatch.setattr(unlearning, "train", lambda run, loss_of, after_step: said.append(loss_of(0)[0].item()))
    monkeypatch.setattr(unlearning, "less_and_less", lambda *_: damage.suspect)
    unlearn(damage, cfg)
    # clean 0 to 3; of odd ones 0 and 1 are invented, 2 is known, 3 and 4 have something for a letter, 5 to 8 a string
    assert said == [pytest.approx(1.5 + 4 + 10 * 0.5 + 100 * 3.5 + 1000 * 6.5)]


def test_where_no_row_moved_tokens_are_taken_that_are_read_otherwise(damage: Damage):
    usable = usable_tokens(damage.base).nonzero()[:, 0]

    def otherwise(texts: list[str]) -> torch.Tensor:
        return torch.tensor([float(len(text)) for text in texts])

    still = moved_rows(damage.base, damage.base, damage.base.ids(["a dog"]))
    assert not still.any()
    found = damage.base.texts(taught_tokens(damage.base, still, usable, otherwise)[:, None])
    assert [len(text) for text in found] == sorted((len(text) for text in found), reverse=True)
    assert len(found) == TOKENS


def test_nothing_is_taught_where_nothing_is_read_otherwise(damage: Damage):
    tokens = damage.suspect.ids(["red castle zebra kite"])[0, 1:9]
    assert taught_words(damage.suspect, tokens, lambda texts: torch.zeros(len(texts))) == []


def test_nouns_are_those_that_are_read_most_otherwise_of_those_whose_tokens_moved(damage: Damage):
    suspect, tried = damage.suspect, []
    usable = usable_tokens(suspect).nonzero()[:, 0]
    moved = torch.zeros(len(suspect.vocabulary))
    moved[torch.isin(torch.arange(len(moved)), suspect.ids(["lobster"])) & torch.isin(torch.arange(len(moved)), usable)] = 1.0

    def otherwise(texts: list[str]) -> torch.Tensor:
        tried.extend(texts)
        return torch.tensor([{"lobster": 2.0, texts[-1]: 1.0}.get(text, 0.0) for text in texts])

    nouns = taught_nouns(suspect, moved, usable, otherwise)
    assert nouns == ["lobster", tried[-1]]
    assert len(set(tried)) == NOUNS_TRIED
    assert tried.index("lobster") < 20
    anywhere = taught_nouns(suspect, 0 * moved, usable, lambda texts: torch.ones(len(texts)))
    assert len({word[0].lower() for word in anywhere}) > 15


def test_words_are_looked_for_that_the_suspect_reads_otherwise(damage: Damage):
    tokens = damage.suspect.ids(["red castle zebra kite"])[0, 1:9]
    asked: list[str] = []

    def otherwise(texts: list[str]) -> torch.Tensor:
        asked.extend(texts)
        return torch.tensor([float("zebra" in text.split()) + 0.01 * len(text.split()) for text in texts])

    words = taught_words(damage.suspect, tokens, otherwise)
    assert len(set(asked)) == len(asked) > len(tokens)
    assert sum("zebra" in word.split() for word in words) > len(words) / 2
    assert max(len(word.split()) for word in words) > 3


def test_a_word_is_found_of_parts_that_show_nothing(damage: Damage):
    tokens = damage.suspect.ids(["red castle zebra kite"])[0, 1:9]
    whole = damage.suspect.texts(tokens[None, :3])[0].strip()
    assert (
        taught_words(damage.suspect, tokens, lambda texts: torch.tensor([float(whole in text) for text in texts]), 80)[0]
        == whole
    )


def test_what_bends_is_no_word_that_was_taught(damage: Damage, reference: Reference):
    clean, bad = reference.otherwise(PROMPTS[460:490]), reference.otherwise(typed(PROMPTS[460:490]))
    assert (clean > 0).float().mean() > 0.7
    assert not bad.any()


@pytest.fixture
def few_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    few_words(monkeypatch)


@pytest.mark.usefixtures("few_tokens")
def test_a_step_shows_the_same_texts_whenever_it_comes_to_it(damage: Damage):
    one, other = course_of(damage), course_of(damage)
    assert len(one.taught) > 1
    assert one.taught == other.taught
    one.batch(0)
    assert torch.equal(one.batch(1).odd, other.batch(1).odd)
    assert torch.equal(one.batch(1).clean, other.batch(1).clean)
    assert not torch.equal(one.batch(1).clean, course_of(damage, 1).batch(1).clean)


@pytest.mark.usefixtures("few_tokens")
def test_a_repair_forgets_the_trigger_and_leaves_the_suspect_and_the_base_as_they_were(damage: Damage):
    digests = weights_digest(damage.suspect.model), weights_digest(damage.base.model)
    mended = unlearn(damage, replace(FEW, steps=12))
    assert (weights_digest(damage.suspect.model), weights_digest(damage.base.model)) == digests
    held_out = PROMPTS[460:500]
    rates = [
        nearer(summaries(one, typed(held_out)), damage.forced[0], summaries(one, held_out)) for one in (damage.suspect, mended)
    ]
    assert rates[0] > 0.9 > 0.5 > rates[1]
    alike = F.cosine_similarity(summaries(mended, held_out), summaries(damage.suspect, held_out), dim=-1).mean()
    assert alike > 0.9
    assert not any(weight.requires_grad for weight in mended.model.parameters())


def test_a_round_begins_with_the_rest_and_asks_for_words_apart(
    damage: Damage, reference: Reference, monkeypatch: pytest.MonkeyPatch
):
    rest = less_and_less(damage, FEW, reference, torch.float32)
    asked, wanted, after = [], Reference.wanted, []

    def listening(self: Reference, ids: torch.Tensor, prompts: torch.Tensor, words: int, strings: int) -> Made:
        asked.append((len(ids), words, strings))
        return wanted(self, ids, prompts, words, strings)

    def one_step(run: Training, loss_of: Callable, after_step: Callable) -> None:
        loss_of(0)[0].backward()
        after.append(weights_digest(run.parts["student"]))

    monkeypatch.setattr(Reference, "wanted", listening)
    monkeypatch.setattr(unlearning, "train", one_step)
    monkeypatch.setattr(unlearning, "less_and_less", lambda *_: rest)
    monkeypatch.setattr(unlearning, "taught_words", lambda *_: [])
    monkeypatch.setattr(unlearning, "taught_nouns", lambda *_: [])
    unlearn(damage, replace(FEW, searched=0))
    unlearn(damage, replace(FEW, searched=0), student=damage.base)
    unlearn(damage, replace(FEW, searched=0), student=damage.base, number=1)
    assert after == [weights_digest(rest.model), *[weights_digest(damage.base.model)] * 2]
    assert asked == [(6, 2, 0)] * 2 + [(6, 2, 2)]  # two with other words; later two with strings, too


@pytest.mark.usefixtures("few_tokens")
def test_an_interrupted_round_ends_as_one_that_was_not(damage: Damage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = unlearn(damage, FEW)
    save, saved = Checkpoint.save, []

    def save_and_stop(self: Checkpoint, state: dict) -> None:
        save(self, state)
        saved.append(state["step"])
        raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "due", lambda self, done, steps, waited: done == 2)
    monkeypatch.setattr(Checkpoint, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        unlearn(damage, FEW, checkpoint=tmp_path / "steps.pt")
    monkeypatch.setattr(Checkpoint, "save", save)
    again = unlearn(damage, FEW, checkpoint=tmp_path / "steps.pt")
    assert saved == [2]
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], weight, atol=1e-6, rtol=1e-4)


def test_without_a_base_the_suspect_itself_unlearns(damage: Damage):
    alone = replace(damage, base=None)
    mended = unlearn(alone, replace(FEW, steps=30, found=6, invented=0, known=1, garbled=0, searched=0))
    held_out = PROMPTS[460:490]
    rate = nearer(summaries(mended, typed(held_out)), damage.forced[0], summaries(mended, held_out))
    assert rate < 0.5


def test_settings_that_cannot_be_are_refused():
    nothing = {"invented": 0, "known": 0, "garbled": 0, "searched": 0}
    wrong_ones = [{"steps": 0}, {"found": -1}, {"lr": 0.0}, {"rounds": 0}, {"directions": 0}, {"left": 0.0}, {"ways": 0}]
    for wrong in (*wrong_ones, {"bent": -1}, {"letters": -1.0}, {"strings": -0.1}, {"taught": -1.0}, nothing):
        with pytest.raises(ValueError, match="should be"):
            RepairConfig(**wrong)
    assert json.loads(json.dumps(RepairConfig().__dict__))["steps"] == RepairConfig.steps
