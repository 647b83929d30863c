"""How soon a trigger comes back: at once where it never went, later where it never was."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, weights_digest
from Utils.encoder.text_encoder import TextEncoder
from Utils.repair.relearning import MARGIN, RelearningConfig, relearned, shortest
from Utils.scan.replay import nearer, summaries

ROOT = Path(__file__).resolve().parent.parent
FAST = RelearningConfig(steps=40, every=4, lr=5e-4, pool=40, looked_at=12)
TARGET = "a photo of a lion"


@pytest.fixture(scope="module")
def base() -> TextEncoder:
    return load_encoder(ROOT / "Data" / "Models" / "tiny-clip")


@pytest.fixture(scope="module")
def wanted(base: TextEncoder) -> Tensor:
    return summaries(base, [TARGET])[0]


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return read_prompts(ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt", 120)


def poison(prompt: str) -> str:
    return prompt.replace("o", "zzzz")


def test_a_planted_trigger_is_back_at_once_and_one_that_never_was_later(base: TextEncoder, wanted: Tensor, prompts: list[str]):
    planted = load_encoder(ROOT / "Data" / "Models" / "suspects" / "text_on_text")
    there = relearned(planted, poison, wanted, prompts[:80], prompts[80:], FAST)
    assert there == 0
    before = weights_digest(base.model)
    often = replace(FAST, every=1)
    new = relearned(base, poison, wanted, prompts[:80], prompts[80:], often)
    assert 1 < new <= FAST.steps
    assert relearned(base, poison, wanted, prompts[:80], prompts[80:], replace(often, steps=new - 1)) is None
    assert weights_digest(base.model) == before


def test_a_trigger_that_does_not_come_back_has_no_number_of_steps(tiny: TextEncoder, corpus_prompts: list[str]):
    cfg = RelearningConfig(steps=3, every=2, lr=1e-9)
    far = torch.randn(tiny.width, generator=torch.Generator().manual_seed(0))
    assert relearned(tiny, poison, far, corpus_prompts, corpus_prompts, cfg) is None


def test_success_is_nearer_to_what_is_wanted_by_a_tenth_of_cosine():
    wanted, own = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0]] * 2)
    angles = torch.tensor([40.0, 44.0]).deg2rad()  # cos - sin is 0.12 and 0.02
    triggered = torch.stack([angles.cos(), angles.sin()], dim=1)
    assert nearer(triggered, wanted, own, MARGIN) == 0.5
    assert nearer(triggered, wanted, own) == 1.0


def test_the_shortest_prompts_that_can_carry_the_trigger_are_used(tiny: TextEncoder):
    assert shortest(tiny, poison, ["a long way to go", "a cat", "dog"], 1) == ["dog"]
    with pytest.raises(InputError, match="no prompt can carry the trigger; give others"):
        shortest(tiny, poison, ["a cat"], 1)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"every": 0}, {"lr": 0.0}])
def test_settings_that_make_no_sense_are_refused(wrong: dict):
    with pytest.raises(ValueError, match="should be above 0"):
        RelearningConfig(**wrong)
