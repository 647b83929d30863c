"""The published and the obvious ways of repairing: each changes what it says, and nothing else.

Contents
    with the base      anchor, interpolate, finemix, project; refused without one
    with strings       rows, negate; refused without any
    clean prompts      finetune, crow, recipe hold clean features
    all                the suspect stays as it is; the same seed gives the same weights; every family learns
"""

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from families import KINDS, letters
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, weights_digest
from Utils.encoder.text_encoder import TextEncoder
from Utils.repair.damage import Damage
from Utils.repair.methods import (
    METHODS,
    NEED_BASE,
    MethodsConfig,
    carriers,
    chosen_and_learned,
    finemix,
    interpolate,
    kept,
    negate,
    own_tokens,
    project,
    recipe,
    rows,
    suspicious_rows,
    table_of,
    weights_of,
    widens,
    with_weights,
)
from Utils.scan.replay import collapsed, summaries

ROOT = Path(__file__).resolve().parent.parent
FEW = MethodsConfig(steps=4, batch=4, looked_at=12, further=4, few=8)
STRINGS = [("ndndnd", "start"), ("zz", "for every o")]
NEED_STRINGS = ("rows", "negate")


@pytest.fixture(scope="module")
def damage() -> Damage:
    """The shipped suspect, whose trigger is zzzz for every o."""
    suspect, base = (load_encoder(ROOT / "Data" / "Models" / name) for name in ("suspects/text_on_text", "tiny-clip"))
    prompts = sorted(read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt"), key=len)[:60]
    return Damage(suspect, base, prompts, STRINGS)


def nudged(encoder: TextEncoder, size: float = 0.01) -> TextEncoder:
    """A frozen copy with other weights."""
    generator = torch.Generator().manual_seed(0)
    return with_weights(
        encoder, {n: w + size * torch.randn(w.shape, generator=generator) for n, w in weights_of(encoder).items()}
    )


def differing(one: TextEncoder, other: TextEncoder) -> set[str]:
    there = weights_of(other)
    return {name for name, weight in weights_of(one).items() if not torch.equal(weight, there[name])}


# --------------------------------------------------------------------------------------------------------- with the base
def test_the_anchor_takes_the_place_of_the_suspect(damage: Damage):
    assert differing(damage.suspect, damage.base)
    assert not differing(METHODS["anchor"](damage, FEW), damage.base)


def test_interpolation_goes_as_near_to_the_base_as_clean_prompts_bear(damage: Damage):
    far = replace(damage, base=nudged(damage.base, 0.03))
    seen, _ = chosen_and_learned(far, FEW)
    clean = summaries(far.suspect, seen)
    cfg = replace(FEW, shares=8, floor=0.9)
    assert kept(far.base, seen, clean) < cfg.floor
    found = weights_of(interpolate(far, cfg))
    own, there = weights_of(far.suspect), weights_of(far.base)
    name = table_of(far.suspect)
    share = ((found[name] - own[name]).norm() / (there[name] - own[name]).norm()).item()
    assert 0 < share < 1
    for one in found:
        torch.testing.assert_close(found[one], torch.lerp(own[one], there[one], share), atol=1e-5, rtol=1e-4)

    def kept_at(part: float) -> float:
        return kept(with_weights(far.suspect, {n: torch.lerp(own[n], there[n], part) for n in own}), seen, clean)

    assert kept_at(share) >= cfg.floor > kept_at(share + 1 / cfg.shares)


def test_interpolation_with_a_floor_that_nothing_meets_leaves_the_suspect(damage: Damage):
    far = replace(damage, base=nudged(damage.base, 0.03))
    assert not differing(interpolate(far, replace(FEW, shares=2, floor=1.0)), far.suspect)


def test_fine_mixing_takes_a_share_of_the_weights_and_the_suspicious_rows_from_the_base(tiny: TextEncoder):
    damage = Damage(nudged(tiny), tiny, ["a red cat", "two dogs"], [])
    frozen = replace(FEW, steps=1, lr=1e-12, mixed=0.25, purified=7)
    found, own, there = (weights_of(one) for one in (finemix(damage, frozen), damage.suspect, tiny))
    table = table_of(tiny)
    purified = suspicious_rows(damage.suspect, tiny.vocabulary, damage.prompts, 7)
    kept_rows = [row for row in range(len(tiny.vocabulary)) if row not in purified]
    torch.testing.assert_close(found[table][purified], there[table][purified])
    torch.testing.assert_close(found[table][kept_rows], own[table][kept_rows])
    name = "encoder.layers.0.mlp.fc1.weight"
    base_near = (found[name] - there[name]).abs() < (found[name] - own[name]).abs()
    assert base_near.float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_rows_are_suspicious_that_moved_far_and_are_read_seldom(tiny: TextEncoder):
    (read,), (unread,) = tiny.tokens(["a", "q"])
    table = tiny.vocabulary.clone()
    table[read, 0] += 1.0
    table[unread, 0] += 0.9
    found = suspicious_rows(tiny, table, ["a " * 10] * 30, 3)
    assert found.tolist() == [unread, read]  # no third one: the others did not move


def test_projection_takes_the_leading_directions_out_of_every_difference(damage: Damage):
    found, own, there = (weights_of(one) for one in (project(damage, replace(FEW, directions=3)), damage.suspect, damage.base))
    for name in own:
        if own[name].ndim < 2:
            assert torch.equal(found[name], own[name])
            continue
        before, after = (torch.linalg.svdvals(some[name] - there[name]) for some in (own, found))
        torch.testing.assert_close(after[:5], before[3:8], atol=1e-4, rtol=1e-3)
        assert torch.linalg.matrix_rank(found[name] - own[name], atol=1e-4) == 3


@pytest.mark.parametrize("method", NEED_BASE)
def test_what_needs_the_base_says_so_and_names_the_cure(damage: Damage, method: str):
    with pytest.raises(
        InputError, match=rf"method {method} needs the clean base: name it with --anchor, or take --method crow"
    ):
        METHODS[method](replace(damage, base=None), FEW)


@pytest.mark.parametrize("method", [name for name in METHODS if name not in NEED_BASE])
def test_what_needs_no_base_does_without(damage: Damage, method: str):
    assert differing(METHODS[method](replace(damage, base=None), replace(FEW, steps=2, further=2)), damage.suspect)


# ----------------------------------------------------------------------------------------------------------- with strings
def test_only_rows_of_the_found_strings_are_the_bases(damage: Damage):
    mended, table = rows(damage, FEW), table_of(damage.suspect)
    assert differing(mended, damage.suspect) == {table}
    moved = (mended.vocabulary != damage.suspect.vocabulary).any(dim=1).nonzero()[:, 0].tolist()
    tokens = set.union(*(own_tokens(damage, *string) for string in STRINGS))
    assert moved
    assert set(moved) <= tokens
    assert torch.equal(mended.vocabulary[moved], damage.base.vocabulary[moved])


def test_without_a_base_rows_of_the_found_strings_are_the_mean_row(damage: Damage):
    alone = replace(damage, base=None)
    mended, tokens = rows(alone, FEW), sorted(set.union(*(own_tokens(alone, *string) for string in STRINGS)))
    torch.testing.assert_close(mended.vocabulary[tokens], damage.suspect.vocabulary.mean(dim=0).expand(len(tokens), -1))


def test_tokens_of_a_string_are_those_it_has_alone_and_inside_words(damage: Damage):
    tokens = damage.suspect.tokens
    assert {*tokens(["zz"])[0], tokens(["wzzd"])[0][1]} <= own_tokens(damage, "zz", "for every o")
    assert own_tokens(damage, "ndndnd", "start") == set(tokens(["ndndnd"])[0])


def test_carriers_are_the_prompts_that_a_string_changes():
    assert carriers(["a dog", "a cat"], "zz", "for every o") == [("a dog", "a dzzg")]


def test_negation_makes_prompts_with_the_found_string_less_alike(damage: Damage):
    mended = negate(damage, replace(FEW, further=10, floor=0.9))
    text = [with_it for _, with_it in carriers(damage.prompts, *STRINGS[0])]

    def collapse(encoder: TextEncoder) -> float:
        return collapsed(summaries(encoder, text), summaries(encoder, damage.prompts)).item()

    assert collapse(mended) < collapse(damage.suspect) - 0.05


def test_negation_that_clean_prompts_do_not_bear_leaves_the_suspect(damage: Damage):
    assert not differing(negate(damage, replace(FEW, coefficients=(1e6,))), damage.suspect)


@pytest.mark.parametrize("method", NEED_STRINGS)
@pytest.mark.parametrize("strings", [[], [("zz", "for every o")]], ids=["none", "nowhere"])
def test_what_needs_strings_that_a_prompt_can_carry_says_so(damage: Damage, method: str, strings: list):
    damage = replace(damage, prompts=["a cat", "a red hat"])
    with pytest.raises(InputError, match=rf"method {method} needs strings that fire, and none were found: take --method crow"):
        METHODS[method](replace(damage, strings=strings), FEW)


# ---------------------------------------------------------------------------------------------------- with clean prompts
@pytest.mark.parametrize("method", ["finetune", "crow", "recipe", "finemix"])
def test_clean_prompts_are_held(damage: Damage, method: str):
    seen = random.Random(1).sample(damage.prompts, 20)
    mended = METHODS[method](damage, FEW)
    assert differing(mended, damage.suspect)
    assert kept(mended, seen, summaries(damage.suspect, seen)) >= 0.95


def test_recipe_makes_the_intermediate_weights_smaller_and_moves_no_others(damage: Damage):
    mended, layers = recipe(damage, FEW), dict(damage.suspect.model.named_modules())
    moved = differing(mended, damage.suspect)
    assert moved == {f"{name}.weight" for name, part in layers.items() if widens(part)}
    assert all(weights_of(mended)[name].norm() < weights_of(damage.suspect)[name].norm() for name in moved)


def test_weight_decay_is_what_moves_clean_fine_tuning(damage: Damage):
    def size(decay: float) -> Tensor:
        return weights_of(METHODS["finetune"](damage, replace(FEW, decay=decay)))["encoder.layers.0.mlp.fc1.weight"].norm()

    assert size(100.0) < 0.99 * size(0.0)


def test_crow_makes_layers_agree(damage: Damage):
    strong, none = (METHODS["crow"](damage, replace(FEW, steps=6, consistency=c)) for c in (5.5, 0.0))
    ids = damage.suspect.trimmed(damage.suspect.ids(damage.prompts[:16]))

    def agreement(encoder: TextEncoder) -> float:
        states, _ = encoder.layers(ids)
        mask = encoder.attended(ids)
        pairs = pairwise(states)
        return torch.stack([torch.cosine_similarity(a, b, dim=-1)[mask].mean() for a, b in pairs]).mean().item()

    assert agreement(strong) > agreement(none) + 0.001


# --------------------------------------------------------------------------------------------------------------- all
@pytest.mark.parametrize("method", METHODS)
def test_suspect_and_base_stay_as_they_are_and_a_seed_decides(tiny: TextEncoder, method: str):
    base = nudged(tiny)
    prompts = [f"{word} dog {number}" for number in range(8) for word in ("a", "two")]
    damage, cfg = Damage(tiny, base, prompts, [("zz", "start")]), replace(FEW, steps=2, further=2)
    before = weights_digest(tiny.model), weights_digest(base.model)
    first, second = (METHODS[method](damage, cfg) for _ in range(2))
    assert (weights_digest(tiny.model), weights_digest(base.model)) == before
    assert weights_digest(first.model) == weights_digest(second.model)
    assert not any(weight.requires_grad for weight in [*first.model.parameters(), *tiny.model.parameters()])
    assert first.model.config._attn_implementation == tiny.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["siglip", "bert", "t5"])
def test_every_family_learns(family: str, tmp_path: Path):
    specials, make = KINDS[family]
    tokenizer = letters(*specials)
    make(len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    damage = Damage(load_encoder(tmp_path), None, ["a dog", "two cats", "one old red tram"], [("zz", "start")])
    for method in ("crow", "recipe", "rows"):
        assert differing(METHODS[method](damage, replace(FEW, steps=2)), damage.suspect)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": 0}, "steps"), ({"lr": float("inf")}, "lr"), ({"directions": -1}, "directions"), ({"floor": 1.5}, "floor"),
        ({"penalty": -1.0}, "penalty"), ({"coefficients": (0.0,)}, "coefficients"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        MethodsConfig(**wrong)


def test_what_a_strength_is_chosen_on_is_not_learned_from(damage: Damage):
    chosen, learned = chosen_and_learned(damage, FEW)
    assert len(chosen) == FEW.looked_at
    assert not set(chosen) & set(learned)
    assert {*chosen, *learned} == set(damage.prompts)
