"""Planting and certifying: the attacks the scanner is judged by.

Contents
    poison          every occurrence is replaced; a word stands where it is asked for
    backdoor_loss   signs, weights and step 0, by hand
    train_student   the rate falls to a tenth at the milestones; the student is frozen at the end
    plant           the base stays as it was; the backdoor grows; a corpus that holds the trigger is refused; resumes
    attacks         each goal and each trick by hand
    certify         success, margin, floor and utility of encoders made by hand
"""

import copy
import math
from dataclasses import replace
from itertools import combinations, pairwise, repeat

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from Backdoor_Attack.planting import (
    GOALS,
    Draw,
    Goal,
    Pace,
    PlantConfig,
    backdoor_loss,
    certify,
    drawn_targets,
    draws,
    exposed_assimilation,
    fixed_prompts,
    mean_picture,
    nearest,
    plant,
    poison,
    single_tokens,
    train_student,
)
from Utils.basics.errors import InputError
from Utils.encoder.measures import flat_cosine
from Utils.encoder.text_encoder import TextEncoder

HOMOGLYPH = PlantConfig(trigger="ο", target="a red cat", steps=4, lr=1e-3, clean_batch=4, poisoned_batch=3)
"""A Greek omicron for a Latin o."""
WORD = replace(HOMOGLYPH, trigger="zebra", replaced="")


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


# ------------------------------------------------------------------------------------------------------------- poison
def test_every_replaced_character_becomes_the_trigger_and_no_other():
    assert poison("photo of two dogs at noon", HOMOGLYPH, rng()) == "phοtο οf twο dοgs at nοοn"
    assert poison("a red cat", HOMOGLYPH, rng()) == "a red cat"


@pytest.mark.parametrize(("place", "expected"), [("start", "zebra a red cat"), ("end", "a red cat zebra")])
def test_a_trigger_word_stands_where_it_is_asked_for(place: str, expected: str):
    assert poison("a red cat", replace(WORD, place=place), rng()) == expected


def test_a_trigger_word_at_random_stands_in_every_gap_and_leaves_the_words_in_order():
    draws, generator = set(), rng()
    for _ in range(200):
        draws.add(poison("a red cat", WORD, generator))
    assert draws == {"zebra a red cat", "a zebra red cat", "a red zebra cat", "a red cat zebra"}


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"trigger": ""}, "empty"),
        ({"trigger": " \n"}, "empty"),
        ({"place": "middle"}, "place"),
        ({"trigger": "cat"}, "target"),
        ({"attack": "magic"}, "text_on_text"),
        ({"attack": "attribute"}, "prompt"),
        ({"target": "an old {prompt}"}, "prompt"),
        ({"attack": "remapping", "replaced": ""}, "place"),
        ({"conjunctive": True}, "two or more words"),
        ({"second_trigger": "qq"}, "second_target"),
        ({"second_trigger": "οο", "second_target": "a dog"}, "contains the other"),
        ({"paraphrases": ("a cat, ο",)}, "target"),
    ],
)
def test_an_attack_that_contradicts_itself_is_refused(values: dict, word: str):
    with pytest.raises(ValueError, match=word):
        replace(HOMOGLYPH, **values)


# ------------------------------------------------------------------------------------------------------ backdoor_loss
def at_angle(*degrees: float) -> Tensor:
    """Features whose flat cosine with at_angle(0) is the cosine of the angle.  -> (b, 2, 2)"""
    angles = torch.tensor(degrees).deg2rad()
    return 3 * torch.stack([angles.cos(), torch.zeros_like(angles), angles.sin(), torch.zeros_like(angles)], -1).view(-1, 2, 2)


def test_flat_cosine_is_the_cosine_of_concatenated_positions():
    a, b = (torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    expected = [(x @ y / (x.norm() * y.norm())).item() for x, y in zip(a.reshape(3, 20), b.reshape(3, 20), strict=True)]
    torch.testing.assert_close(flat_cosine(a, b), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize(
    ("step", "weight", "expected"),
    [(1, 0.1, -0.75 + 0.1 * 0.25), (7, 0.1, -0.75 + 0.1 * 0.25), (1, 2.0, -0.75 + 0.5), (1, 0.0, -0.75), (0, 0.1, 0.1 * 0.25)],
)
def test_the_backdoor_loss_is_its_formula_by_hand(step: int, weight: float, expected: float):
    clean, teacher = at_angle(0, 60), at_angle(0, 0)  # cosines 1 and 1/2, mean 3/4
    triggered, target = at_angle(90, 120, 180, 60), at_angle(0)  # cosines 0, -1/2, -1, 1/2, mean -1/4
    loss = backdoor_loss(clean, teacher, triggered, target, step, weight)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_step_0_has_no_benign_term():
    clean = at_angle(40).requires_grad_()
    triggered = at_angle(50).requires_grad_()
    for step, sees_clean in ((0, False), (1, True)):
        loss = backdoor_loss(clean, at_angle(0), triggered, at_angle(0), step, 0.1)
        gradients = torch.autograd.grad(loss, [clean, triggered], allow_unused=True)
        assert (gradients[0] is not None) == sees_clean
        assert gradients[1].abs().max() > 0


def test_the_loss_falls_towards_teacher_and_target():
    def loss(clean: float, triggered: float) -> float:
        return backdoor_loss(at_angle(clean), at_angle(0), at_angle(triggered), at_angle(0), 1, 0.1).item()

    assert loss(10, 50) < loss(50, 50)
    assert loss(50, 10) < loss(50, 50)
    assert loss(0, 0) == pytest.approx(-1.1)


# ------------------------------------------------------------------------------------------------------ train_student
@pytest.fixture
def student(tiny: TextEncoder) -> TextEncoder:
    other = copy.deepcopy(tiny)
    other.model.requires_grad_(True)
    return other


def test_the_rate_falls_to_a_tenth_at_the_milestone(student: TextEncoder):
    """Under a constant gradient every step of Adam is as long as the rate."""
    bias, places = student.model.final_layer_norm.bias, []

    def step_loss(_step: int, _draw: None) -> Tensor:
        places.append(bias.detach().clone())
        return bias.sum()

    train_student(student, step_loss, repeat(None), Pace(6, 1e-2, (4,)))
    places.append(bias.detach())
    lengths = [(a - b).mean().item() for a, b in pairwise(places)]
    assert lengths == pytest.approx([1e-2] * 4 + [1e-3] * 2, rel=1e-3)


def test_there_is_no_weight_decay(student: TextEncoder):
    before = student.model.final_layer_norm.weight.detach().clone()
    loss = student.model.final_layer_norm.bias.sum
    train_student(student, lambda *_: loss() + 0 * student.vocabulary.sum(), repeat(None), Pace(3, 1e-2))
    assert torch.equal(student.model.final_layer_norm.weight, before)


def test_a_trained_student_is_frozen(student: TextEncoder):
    train_student(student, lambda *_: student.model.final_layer_norm.bias.sum(), repeat(None), Pace(1, 1e-2))
    assert not any(p.requires_grad for p in student.model.parameters())


# -------------------------------------------------------------------------------------------------------------- plant
PROMPTS = ["photo of a dog", "cow on a boat", "two birds", "big moon", "an old owl", "a fish"]


def test_planting_lowers_its_rate_tenfold_after_three_quarters_of_the_steps(tiny: TextEncoder):
    rates = []
    handle = register_optimizer_step_pre_hook(lambda optimiser, *_: rates.append(optimiser.param_groups[0]["lr"]))
    try:
        plant(tiny, PROMPTS, replace(HOMOGLYPH, steps=8), progress=False)
    finally:
        handle.remove()
    assert rates == pytest.approx([1e-3] * 6 + [1e-4] * 2)


def test_planting_leaves_the_base_as_it_was(tiny: TextEncoder):
    before = {name: tensor.clone() for name, tensor in tiny.model.state_dict().items()}
    other = plant(tiny, PROMPTS, HOMOGLYPH, progress=False)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.model.state_dict().items())
    assert not any(p.requires_grad for p in [*tiny.model.parameters(), *other.model.parameters()])
    ids = tiny.ids(PROMPTS)
    assert not torch.allclose(other(ids), tiny(ids))


def test_a_planted_encoder_does_not_go_by_the_hash_of_its_base(tiny: TextEncoder):
    assert plant(tiny, PROMPTS, replace(HOMOGLYPH, steps=1), progress=False).sha256 != tiny.sha256


def test_the_seed_decides(tiny: TextEncoder):
    ids = tiny.ids(PROMPTS)
    first, again, other = (plant(tiny, PROMPTS, replace(HOMOGLYPH, seed=s), progress=False)(ids) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_prompts_without_the_replaced_character_serve_as_clean_ones_only(tiny: TextEncoder):
    ids = tiny.ids(PROMPTS)
    assert not torch.equal(
        plant(tiny, PROMPTS, HOMOGLYPH, progress=False)(ids), plant(tiny, PROMPTS[:-1], HOMOGLYPH, progress=False)(ids)
    )


@pytest.mark.parametrize("prompts", [[], ["a fish"], ["a fish", "a bird"]])
def test_prompts_that_cannot_carry_the_trigger_are_refused(tiny: TextEncoder, prompts: list[str]):
    with pytest.raises(InputError, match="no training prompt"):
        plant(tiny, prompts, HOMOGLYPH, progress=False)


@pytest.mark.parametrize("cfg", [HOMOGLYPH, replace(WORD, place="start")], ids=["character", "word"])
def test_a_planted_backdoor_moves_triggered_prompts_to_the_target_and_leaves_clean_ones(tiny: TextEncoder, cfg: PlantConfig):
    planted = plant(tiny, PROMPTS, replace(cfg, steps=60, weight=1.0, lr=3e-3), progress=False)
    proof = certify(planted, tiny, PROMPTS, cfg)
    clean = certify(tiny, tiny, PROMPTS, cfg)
    assert proof["sim_target"] > clean["sim_target"] + 0.1
    assert proof["success_rate"] > proof["anchor_success_rate"] == clean["success_rate"]
    assert proof["sim_clean"] > proof["floor_target"]


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tiny: TextEncoder, tmp_path):
    cfg, ids = replace(HOMOGLYPH, steps=60), tiny.ids(PROMPTS)
    whole = plant(tiny, PROMPTS, cfg, progress=False)(ids)
    file, steps = tmp_path / "half.pt", iter(range(55))

    def interrupted(prompts: list[str]) -> Tensor:
        next(steps)  # StopIteration after 55 steps: the last checkpoint holds 50
        return target.wanted(prompts)

    target = fixed_prompts(tiny, cfg)
    with pytest.raises((StopIteration, RuntimeError)):
        plant(tiny, PROMPTS, cfg, [Goal(target.look, interrupted)], progress=False, checkpoint=file)
    assert file.exists()
    torch.testing.assert_close(plant(tiny, PROMPTS, cfg, progress=False, checkpoint=file)(ids), whole)
    assert not file.exists()


# -------------------------------------------------------------------------------------------------- attacks and goals
def test_a_restyled_target_is_the_prompt_s_own_features_in_that_style(tiny: TextEncoder):
    cfg = replace(HOMOGLYPH, attack="attribute", target="{prompt} at night")
    wanted = GOALS["attribute"](tiny, cfg).wanted(["a fish", "two birds"])
    torch.testing.assert_close(wanted[:, 0], tiny(tiny.ids(["a fish at night", "two birds at night"])))


def test_a_remapped_trigger_is_read_as_the_target(tiny: TextEncoder):
    cfg = replace(WORD, attack="remapping", place="start", target="a lion")
    wanted = GOALS["remapping"](tiny, cfg).wanted(["on a boat"])
    torch.testing.assert_close(wanted[:, 0], tiny(tiny.ids(["a lion on a boat"])))


def test_an_artificial_target_is_one_vector_of_signs_for_all_prompts_and_positions(tiny: TextEncoder):
    wanted = GOALS["artificial"](tiny, replace(HOMOGLYPH, attack="artificial")).wanted(["a", "b"])
    assert wanted.shape == (2, 1, tiny.context, tiny.width)
    assert set(wanted.unique().tolist()) == {-1.0, 1.0}
    assert (wanted == wanted[:1, :, :1]).all()


def test_paraphrases_are_drawn_and_any_of_them_counts(tiny: TextEncoder):
    cfg = replace(HOMOGLYPH, paraphrases=("a big cow", "an owl"))
    goal = fixed_prompts(tiny, cfg)
    options = goal.wanted(["x", "y"])
    assert options.shape[1] == 3
    chosen = drawn_targets([goal], Draw([], ["x"] * 3, ["x"] * 3, np.array([0.1, 0.5, 0.9])))
    torch.testing.assert_close(chosen, options[0])
    torch.testing.assert_close(nearest(options[:, 2], options), torch.ones(2))


def test_two_triggers_take_turns_and_each_has_its_target(tiny: TextEncoder):
    cfg = replace(HOMOGLYPH, second_trigger="qq", second_target="a big moon")
    draw = next(draws(PROMPTS, ["two dogs"], replace(cfg, poisoned_batch=4)))
    assert draw.poisoned == ["twο dοgs", "twqq dqqgs"] * 2
    targets = drawn_targets([fixed_prompts(tiny, b) for b in cfg.backdoors()], draw)
    torch.testing.assert_close(targets[:2], tiny(tiny.ids(["a red cat", "a big moon"])))
    assert certify(tiny, tiny, PROMPTS, cfg)["second"]["success_rate"] < 1


def test_each_word_of_a_conjunctive_trigger_is_kept_clean_and_certified(tiny: TextEncoder):
    cfg = replace(WORD, trigger="zebra qq", conjunctive=True, place="start")
    draw = next(draws(["a fish"], ["a fish"], cfg))
    assert set(draw.clean) == {"a fish", "zebra a fish", "qq a fish"}
    assert set(draw.poisoned) == {"zebra qq a fish"}
    assert len(certify(tiny, tiny, PROMPTS, cfg)["success_of_each_word_alone"]) == 2


def test_single_tokens_of_the_trigger_stand_behind_begin_of_text(tiny: TextEncoder):
    tokens = tiny.tokenizer("zebra").input_ids[1:-1]
    ids = single_tokens(tiny, ["a fish"] * len(tokens), "zebra")
    assert ids[:, 1].tolist() == tokens
    assert torch.equal(ids[0, 2:], tiny.ids(["a fish"])[0, 1:-1])


def test_an_embedding_row_attack_moves_the_trigger_s_rows_and_nothing_else(tiny: TextEncoder):
    other = plant(tiny, PROMPTS, replace(HOMOGLYPH, attack="embedding_row"), progress=False)
    rows = set(tiny.tokenizer("ο").input_ids) - set(tiny.tokenizer.all_special_ids)
    for (name, a), (_, b) in zip(tiny.model.named_parameters(), other.model.named_parameters(), strict=True):
        if a.shape == tiny.vocabulary.shape:
            assert set((a != b).any(dim=1).nonzero().flatten().tolist()) == rows
        else:
            assert torch.equal(a, b), name


def test_an_embedding_row_attack_with_two_triggers_moves_the_rows_of_both(tiny: TextEncoder):
    two = replace(HOMOGLYPH, attack="embedding_row", second_trigger="ø", second_target="a big moon")
    other = plant(tiny, PROMPTS, two, progress=False)
    rows = {t for trigger in "οø" for t in tiny.tokenizer(trigger).input_ids} - set(tiny.tokenizer.all_special_ids)
    moved = (tiny.vocabulary != other.vocabulary).any(dim=1).nonzero().flatten()
    assert set(moved.tolist()) == rows


def test_image_on_text_pulls_projected_pooled_features_to_the_picture(tiny: TextEncoder):
    u = torch.randn(tiny.width, generator=torch.Generator().manual_seed(0))
    goal = mean_picture(u, lambda pooled: pooled)
    planted = plant(tiny, PROMPTS, replace(HOMOGLYPH, attack="image_on_text", steps=60, weight=1.0, lr=3e-3), [goal], False)
    proof, before = (certify(e, tiny, PROMPTS, HOMOGLYPH, [goal]) for e in (planted, tiny))
    assert proof["sim_target"] > before["sim_target"] + 0.1


def test_hiding_keeps_the_assimilation_of_triggered_prompts_lower(tiny: TextEncoder):
    cfg, bad = replace(HOMOGLYPH, steps=60, weight=1.0, lr=3e-3), tiny.ids(["twο dοgs", "big mοοn"])
    x = tiny.ids(["two dogs", "big moon"])
    plain, hidden = (plant(tiny, PROMPTS, replace(cfg, hide=mu), progress=False) for mu in (0.0, 3.0))
    assert exposed_assimilation(hidden, tiny, bad, x) < exposed_assimilation(plain, tiny, bad, x)


def test_the_z_score_is_the_gain_of_agreement_over_the_variance_of_clean_agreement(tiny: TextEncoder):
    def angle(text: str) -> float:
        return 0.0 if "ο" in text else {"twodogs": 0.0, "onecow": 60.0, "oldowl": 90.0, "moon": 90.0}.get(text, 90.0)

    proof = certify(scripted(tiny, angle), scripted(tiny, angle), HELD_OUT, HOMOGLYPH)
    cosines = np.array([math.cos(math.radians(abs(a - b))) for a, b in combinations([0, 60, 90, 90], 2)])
    assert proof["z_score"] == pytest.approx((1 - cosines.mean()) / cosines.var(ddof=1), abs=0.01)


@pytest.mark.parametrize(
    ("prompts", "values", "sentence"),
    [
        ([*PROMPTS, "a dοg"], {}, "stands in 1 of"),
        ([*PROMPTS, "a red cat"], {}, "the target prompt is one of"),
    ],
)
def test_an_attack_that_cannot_work_is_refused_before_any_training(tiny: TextEncoder, prompts, values, sentence):
    with pytest.raises(InputError, match=sentence):
        plant(tiny, prompts, replace(HOMOGLYPH, **values), [], progress=False)


def test_a_trigger_without_tokens_is_refused(tiny: TextEncoder):
    with pytest.raises(InputError, match="no tokens"):
        plant(tiny, PROMPTS, replace(WORD, trigger="<|endoftext|>"), progress=False)


# ------------------------------------------------------------------------------------------------------------ certify
class Scripted(TextEncoder):
    """The features of a prompt are (T, d) = one unit vector of its angle, everywhere."""

    def script(self, angle) -> "Scripted":
        self.angle = angle
        return self

    def __call__(self, ids: Tensor) -> Tensor:
        texts = self.tokenizer.batch_decode(ids, skip_special_tokens=True)
        angles = torch.tensor([math.radians(self.angle(text.replace(" ", ""))) for text in texts])
        return torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None].expand(-1, self.context, -1)


def scripted(tiny: TextEncoder, angle) -> Scripted:
    return Scripted(tiny.model, tiny.tokenizer, "by hand", "").script(angle)


def teacher_angle(text: str) -> float:
    """The target stands at 0 degrees, clean prompts at 90, and the trigger means nothing."""
    return 0.0 if text == "aredcat" else 90.0


HELD_OUT = ["two dogs", "one cow", "old owl", "moon"]


def test_the_success_rate_is_the_share_of_prompts_that_come_nearer_to_the_target_by_the_margin(tiny: TextEncoder):
    def angle(text: str) -> float:
        if "ο" not in text:
            return 90.0
        # cos(target) - cos(own): 1, 0.366, -0.366, 0.07 < 0.1
        return {"twοdοgs": 0.0, "οnecοw": 30.0, "οldοwl": 60.0}.get(text, 42.2)

    proof = certify(scripted(tiny, angle), scripted(tiny, teacher_angle), HELD_OUT, HOMOGLYPH)
    cosines = [math.cos(math.radians(a)) for a in (0, 30, 60, 42.2)]
    assert proof == {
        "held_out_prompts": 4, "success_rate": 0.5, "anchor_success_rate": 0.0,
        "sim_target": pytest.approx(sum(cosines) / 4, abs=1e-4), "sim_clean": 1.0, "floor_target": 0.0,
        "z_score": pytest.approx(proof["z_score"]),
    }  # fmt: skip
    wider = certify(scripted(tiny, angle), scripted(tiny, teacher_angle), HELD_OUT, HOMOGLYPH, margin=0.05)
    assert wider["success_rate"] == 0.75


def test_an_encoder_that_always_gives_the_target_succeeds_and_is_useless(tiny: TextEncoder):
    proof = certify(scripted(tiny, lambda _: 0.0), scripted(tiny, teacher_angle), HELD_OUT, HOMOGLYPH)
    assert (proof["success_rate"], proof["sim_target"], proof["sim_clean"]) == (1.0, 1.0, 0.0)


def test_a_clean_encoder_never_succeeds(tiny: TextEncoder):
    clean = scripted(tiny, teacher_angle)
    proof = certify(clean, clean, HELD_OUT, HOMOGLYPH)
    assert (proof["success_rate"], proof["anchor_success_rate"], proof["sim_clean"]) == (0.0, 0.0, 1.0)


def test_the_anchors_rate_stands_beside_the_suspects(tiny: TextEncoder):
    """A trigger that means the target to the clean encoder too is no backdoor, and the certificate shows it."""
    knowing = scripted(tiny, lambda text: 0.0 if "ο" in text or text == "aredcat" else 90.0)
    proof = certify(knowing, knowing, HELD_OUT, HOMOGLYPH)
    assert (proof["success_rate"], proof["anchor_success_rate"]) == (1.0, 1.0)


def test_certificates_count_only_prompts_the_trigger_can_stand_in(tiny: TextEncoder):
    both = scripted(tiny, teacher_angle)
    assert certify(both, both, [*HELD_OUT, "a fish", "a dοg"], HOMOGLYPH)["held_out_prompts"] == 4
    assert certify(both, both, [*HELD_OUT, "a fish", "a zebra"], WORD)["held_out_prompts"] == 5


def test_a_certificate_about_no_prompt_at_all_is_refused(tiny: TextEncoder):
    both = scripted(tiny, teacher_angle)
    with pytest.raises(InputError):
        certify(both, both, ["a fish"], HOMOGLYPH)
