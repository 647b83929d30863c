"""The search for strings: where tokens are put, what is tried together, what counts as a proof."""

import copy

import pytest
import torch

import main
from Utils.basics.files import ROOT
from Utils.scan import trigger
from Utils.scan.finding import Verdict
from Utils.scan.proof import with_strings
from Utils.scan.replay import Rate


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


RATE = Rate("start", 1.0, 0.0, 0.95, 0.1, 0.5, torch.zeros(2))


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "backdoored"), ({"success": 0.85}, "clean"), ({"asleep": 0.2}, "clean"), ({"collapse": 0.7}, "clean"),
        ({"asleep_collapse": 0.7}, "clean"), ({"apart": 0.1}, "clean"),
    ],
)  # fmt: skip
def test_only_a_string_that_fires_alone_in_the_suspect_and_makes_prompts_one_is_a_proof(change: dict, verdict: str):
    rate = Rate(**{**vars(RATE), **change})
    trial = trigger.Trial(None, None, trigger.TriggerConfig(), [], torch.zeros(1), torch.zeros(1))
    strings = trigger.Strings([trigger.Fired("zz", rate, 120, trial.proves(rate))], rate.effect)
    quiet = Verdict("clean", "Nothing.", 0.1, [])
    assert with_strings(quiet, strings, 0.01).verdict == verdict
    assert with_strings(quiet, strings, 0.9).verdict == "clean"  # of a wrong anchor nothing is a proof


@pytest.mark.parametrize(("shortlist", "context"), [(1, 24), (6, 8)])
def test_the_search_fits_the_smallest_shortlists_and_contexts(tiny, corpus_prompts, shortlist: int, context: int):
    small = copy.copy(tiny)
    small.context = context
    cfg = trigger.TriggerConfig(searches=6, steps=1, candidates=4, top=4, shortlist=shortlist, prompts=2)
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
