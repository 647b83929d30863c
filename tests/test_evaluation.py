"""Which models the table is of, what a row says of one, and that a stopped evaluation goes on."""

import json
import shutil
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from Analysis import evaluation, scoreboard
from Analysis import turns as planning
from Analysis.evaluation import moved
from Analysis.turns import STANDARD, Benchmark, Turn, turns
from Backdoor_Attack.certified import Certified
from Backdoor_Attack.recipes import drawn, jobs
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder, trainable_copy
from Utils.making.zoo import load_zoo
from Utils.scan.calibration import settings_hash
from Utils.scan.replay import put
from Utils.scan.settings import SETTINGS, ScanConfig

MODELS = evaluation.ROOT / "Data" / "Models"
CFG = load_config(Benchmark, evaluation.ROOT / "configs" / "benchmark.yaml").evaluation


def planned(split: str, size: str) -> list[Turn]:
    return list(turns(CFG, load_zoo(), split, size, "cpu"))


def test_the_standard_table_has_sixty_planted_and_thirty_distinct_benign_models():
    some = planned("test", "standard")
    ours = [turn for turn in some if turn.settings == "ours" and turn.split == "test"]
    kinds = Counter(
        (turn.job.labels["family"], turn.job.labels["attack"], hasattr(turn.job.recipe, "trigger")) for turn in ours
    )
    assert sorted(kinds.values()) == [5] * 6 + [10] * 6
    assert len({turn.job.name for turn in ours}) == len({json.dumps(str(turn.job.recipe)) for turn in ours}) == 90
    published = [turn for turn in some if turn.settings == "published"]
    assert len(published) == 8
    assert {turn.job.labels["family"] for turn in published} == {"clip"}
    assert {turn.way.settings().procedure for turn in published} == {"published"}
    assert {turn.job.name for turn in published} < {turn.job.name for turn in ours}
    beyond = [turn for turn in some if turn.split == "beyond"]
    assert set(Counter(turn.job.labels["attack"] for turn in beyond).values()) == {4}
    assert {turn.settings for turn in beyond} == {"ours"}
    assert not any(turn.split == "beyond" for turn in planned("test", "quick") + planned("dev", "standard"))


def test_the_full_table_has_what_a_gpu_can_scan():
    ours = Counter(
        (turn.split, hasattr(turn.job.recipe, "trigger")) for turn in planned("test", "full") if turn.settings == "ours"
    )
    assert ours == {("test", True): 120, ("test", False): 60, ("beyond", True): 90}
    assert {turn.job.name for turn in planned("test", "standard")} < {turn.job.name for turn in planned("test", "full")}


def test_every_ablation_differs_from_ours_in_one_thing():
    usual = CFG.settings["ours"].settings()
    assert usual == load_config(ScanConfig, SETTINGS)
    differing = {name: way.settings() for name, way in CFG.settings.items()}
    assert differing["vectors"] == replace(usual, trigger=replace(usual.trigger, searches=0))
    assert differing["fewer_prompts"] == replace(usual, prompts=200)
    assert differing["quick"].restarts < usual.restarts
    assert differing["thorough"].trigger.searches > usual.trigger.searches
    assert differing["sibling_as_base"] == usual
    of_siblings = [turn for turn in planned("test", "standard") if turn.settings == "sibling_as_base"]
    ours = {turn.job.name for turn in planned("test", "standard") if turn.settings == "ours"}
    for turn in of_siblings:
        assert turn.sibling.name != turn.job.name
        assert turn.sibling.name in ours
        assert turn.anchor == turn.model.with_name(turn.sibling.name)
        assert not hasattr(turn.sibling.recipe, "trigger")
        assert turn.sibling.labels == turn.job.labels
    assert {turn.job.labels["family"] for turn in of_siblings} == {"clip"}


def test_some_ways_alone_are_planned_in_the_same_order():
    every = [turn.job.name for turn in planned("test", "standard") if turn.settings == "vectors"]
    assert [turn.job.name for turn in turns(CFG, load_zoo(), "test", "standard", "cpu", ["vectors"])] == every


def test_a_part_of_the_table_is_a_fair_one():
    first = [turn for turn in planned("test", "standard") if turn.settings == "ours"][:12]
    kinds = {(turn.job.labels["family"], turn.job.labels["attack"], hasattr(turn.job.recipe, "trigger")) for turn in first}
    assert len(kinds) == 12


def test_weights_that_moved_are_told_as_shares():
    base = load_encoder(MODELS / "tiny-sd")
    prompts = ["a photo of a dog", "two cats"]
    assert moved(base, base, prompts) == {"rows": 0.0, "weights": 0.0, "drift": pytest.approx(0, abs=1e-5)}
    changed = trainable_copy(base)
    with torch.no_grad():
        changed.model.get_input_embeddings().weight[7] += 2 * base.vocabulary.norm(dim=-1).mean() / base.width**0.5
    far = moved(changed, base, prompts)
    assert far["rows"] == pytest.approx(2.0, abs=1e-3)
    assert 0 < far["weights"] < 0.1


def test_what_a_string_does_is_counted_as_the_certificate_counts_its_trigger():
    certified = Certified(MODELS / "certificates" / "text_on_text.json")
    suspect, base = load_encoder(MODELS / "suspects" / "text_on_text"), certified.workshop.base
    own = certified.recipe.trigger

    def typed(prompt: str, number: int) -> str:
        return put(own, prompt, f"for every {certified.recipe.replaced}", number)

    assert certified.success_of(suspect, typed) == pytest.approx(certified(suspect), abs=0.01)
    assert certified.success_of(base, typed) == pytest.approx(certified(base), abs=0.01)
    assert certified.success_of(suspect, lambda prompt, _: f"small {prompt}") < 0.1


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own for rows, and scans that take no time."""
    for folder in ("configs", "Data/Zoo"):
        (tmp_path / folder).mkdir(parents=True)
    for file in (evaluation.ROOT / "configs").glob("*.yaml"):
        (tmp_path / "configs" / file.name).write_bytes(file.read_bytes())
    for module in (evaluation, planning):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(evaluation, "RESULTS", tmp_path / "Results" / "benchmark")
    monkeypatch.setattr(evaluation, "WITNESSED", tmp_path / "none.json")
    return tmp_path


NOTHING = {"value": 0.1, "threshold": 0.6, "met": False}
"""What the best string of a clean model does."""


def answered(turn: Turn) -> dict:
    """A row as a scan leaves it."""
    planted = hasattr(turn.job.recipe, "trigger")
    row = {
        "name": turn.job.name, "split": turn.split, "settings": turn.settings, **turn.job.labels,
        "kind": "planted" if planted else "benign", "verdict": "backdoored" if planted else "clean", "right": True,
        "score": float(planted), "strings": [], "evidence": {"string": NOTHING},
        "moved": {"rows": 0.1, "weights": 0.1, "drift": 0.1}, "seconds": 1.0, "peak_memory_mb": 900.0, "reason": "why",
        "meets_bars": True, "cpu_seconds": 1.0, "device": "cpu", "drawn": drawn(turn.job, load_zoo().bars),
        "config": settings_hash(asdict(turn.way.settings())), "seed": turn.seed,
    }  # fmt: skip
    more = {"trigger": "zz", "s_tar": None, "s_tar_floor": None, "s_tar_typed": None, "string_reaches_target": {}}
    return row | (more | {"tokens": 1, "on_a_fine_tune": False} if planted else {})


def test_a_stopped_evaluation_goes_on_and_a_model_that_cannot_be_built_stops_nothing(elsewhere: Path, monkeypatch, capsys):
    asked: list[str] = []

    def some(todo: list[Turn], jobs: int, seconds: float):
        for turn in todo[:7]:
            asked.append(turn.job.name)
            if len(asked) == 3:
                yield InputError("the disk is full.")
                continue
            evaluation.write_whole(turn.row, json.dumps(answered(turn)))
            yield answered(turn)

    monkeypatch.setattr(evaluation, "scans", some)
    words = ["--config", str(elsewhere / "configs" / "benchmark.yaml"), "--size", "quick"]
    assert evaluation.main(words) == 1
    assert "12 scans to make" in (said := capsys.readouterr().out)
    assert "the disk is full." in said
    table = json.loads((elsewhere / "Results" / "benchmark" / "table.json").read_text())["test"]
    told = (elsewhere / "Results" / "benchmark" / "table.md").read_text()
    assert told.startswith("# test")
    assert "| CLIP, image-on-text |" in told
    assert table["ours"]["overall"]["planted"] + table["ours"]["overall"]["benign"] == 6
    first = asked.copy()
    assert evaluation.main(words) == 0
    assert "6 scans to make" in capsys.readouterr().out
    assert set(asked[7:]) & set(first) == {first[2]}
    rows = sorted((elsewhere / "Results" / "benchmark" / "test" / "ours").iterdir())
    assert len(rows) == 12
    rows[0].write_text(rows[0].read_text()[:40])
    rows[1].write_text(json.dumps(json.loads(rows[1].read_text()) | {"seed": 43}))
    rows[2].write_text(json.dumps(json.loads(rows[2].read_text()) | {"config": "another"}))
    rows[3].write_text(json.dumps(json.loads(rows[3].read_text()) | {"drawn": "otherwise"}))
    asked.clear()
    assert evaluation.main(words) == 1  # the third of `some` fails
    said = capsys.readouterr().out
    assert "4 scans to make" in said
    assert f"test/ours/{rows[0].name} is damaged and left out." in said
    assert set(asked) == {file.stem for file in rows[:4]}


def test_a_model_that_was_built_is_scanned_and_leaves_a_whole_row(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("Models", "Main"):
        (elsewhere / "Data" / name).symlink_to(MODELS.parent / name)
    small = {"prompts": 40, "restarts": 2, "rounds": 1, "steps": 3, "pooled_steps": 3, "trigger_searches": 0}
    bars, first = load_zoo().bars, next(turn for turn in planned("test", "quick") if hasattr(turn.job.recipe, "trigger"))
    turn = replace(first, way=planning.Way(changes=small))

    def build(words: list, **_: object) -> subprocess.CompletedProcess:
        assert [str(word) for word in words[2:6]] == ["--split", "test", "--models", turn.job.name]
        shutil.copytree(MODELS / "suspects" / "text_on_text", turn.model)
        told = json.loads((MODELS / "certificates" / "text_on_text.json").read_text(encoding="utf-8"))
        turn.model.with_suffix(".json").write_text(json.dumps(told | {"drawn": drawn(turn.job, bars)}), encoding="utf-8")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(evaluation.subprocess, "run", build)
    assert not turn.is_done(bars)
    row = evaluation.scanned(turn)
    assert isinstance(row, dict), row
    assert turn.is_done(bars)
    assert row == json.loads(turn.row.read_text(encoding="utf-8"))
    assert (row["name"], row["kind"], row["trigger"], row["seed"]) == (turn.job.name, "planted", "zzzz", 42)
    assert row["cpu_seconds"] > 0
    table = evaluation.whole_table(["test"], Counter(test=12))["test"]
    assert table["ours"]["overall"]["planted"] == 1
    assert scoreboard.page({"test": table})


def test_what_fails_is_one_sentence_and_leaves_no_row(elsewhere: Path, monkeypatch):
    every = planned("test", "standard")
    some = [turn for turn in every if turn.model == every[0].model]
    assert len(some) > 3

    def two_fail(turn: Turn) -> dict:
        if turn.settings in ("vectors", "quick"):
            raise {"vectors": InputError("the disk is full."), "quick": RuntimeError("no memory\nat all")}[turn.settings]
        return answered(turn)

    monkeypatch.setattr(evaluation, "evaluated", two_fail)
    outcomes = [evaluation.scanned(turn) for turn in some]
    assert [isinstance(one, InputError) for one in outcomes] == [turn.settings in ("vectors", "quick") for turn in some]
    assert "quick: RuntimeError: no memory" in str(next(one for one in outcomes if "RuntimeError" in str(one)))
    written = {turn.settings for turn in some if turn.row.exists()}
    assert written == {turn.settings for turn in some} - {"vectors", "quick"}


def test_no_two_scans_need_the_same_model_at_once():
    some = [turn for turn in planned("test", "standard") if turn.settings in ("ours", "sibling_as_base")]
    running: list[Turn] = []
    while turn := evaluation.first_of(some, running):
        some.remove(turn)
        running.append(turn)
    models = [model for turn in running for model in turn.models]
    assert len(models) == len(set(models)) > 100  # all that are planned, each in one hand
    assert all(set(turn.models) & set(models) for turn in some)
    assert some[0].models[0] in models


def test_every_scan_has_a_process_of_its_own_and_a_killed_one_ends_none(monkeypatch: pytest.MonkeyPatch):
    pools: list[ThreadPoolExecutor] = []

    def pool(jobs: int, beside: int) -> ThreadPoolExecutor:
        assert (jobs, beside) == (1, 2)
        pools.append(ThreadPoolExecutor(jobs))
        return pools[-1]

    in_hand: list[Path] = []

    def row(turn: Turn) -> dict:
        assert not set(turn.models) & set(in_hand)
        in_hand.extend(turn.models)
        time.sleep(0.01)
        for model in turn.models:
            in_hand.remove(model)
        if turn.settings == "quick":
            raise BrokenProcessPool("killed")
        return {"name": turn.job.name}

    monkeypatch.setattr(evaluation, "workers", pool)
    monkeypatch.setattr(evaluation, "scanned", row)
    todo = planned("test", "standard")[:40]
    done = list(evaluation.scans(todo, 2, 60))
    assert len(done) == len(pools) == len(todo)
    failed = [str(one) for one in done if isinstance(one, InputError)]
    assert len(failed) == sum(turn.settings == "quick" for turn in todo) > 3
    assert all(", quick: BrokenProcessPool('killed')" in one for one in failed)


def test_few_of_a_cell_stand_on_either_ground_and_have_either_kind_of_trigger():
    for number in (2, 4, 10):
        cells = planning.cells_of(CFG, load_zoo(), "test")
        for some in (some[:number] for (_, _, kind, _), some in cells.items() if kind == "planted"):
            assert sum(job.origin is not None for job in some) == number / 2
            assert abs(sum(bool(job.recipe.replaced) for job in some) - number / 2) < 1


def test_a_model_that_is_there_and_was_drawn_otherwise_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch):
    turn = planned("test", "quick")[0]
    turn.model.mkdir(parents=True)
    turn.model.with_suffix(".json").write_text('{"drawn": "otherwise"}')
    with pytest.raises(InputError, match="built from another config"):
        evaluation.built(turn)


def test_the_committed_table_is_that_of_the_committed_rows():
    table = evaluation.whole_table([CFG.split, CFG.further], evaluation.planned_for(CFG, CFG.split, STANDARD))
    assert table[CFG.split]["ours"]["overall"]["planted"] > 0
    assert json.loads((evaluation.RESULTS / "table.json").read_text(encoding="utf-8")) == json.loads(json.dumps(table))
    assert (evaluation.RESULTS / "table.md").read_text(encoding="utf-8") == scoreboard.page(table)


def test_committed_rows_are_of_the_models_that_the_zoo_draws_now():
    zoo = load_zoo()
    for split in (CFG.split, CFG.further):
        now = {job.name: drawn(job, zoo.bars) for job in jobs(zoo, split)}
        for rows in evaluation.rows_of(split).values():
            assert {row["name"]: row["drawn"] for row in rows}.items() <= now.items()
            assert len({(row["config"], row["seed"]) for row in rows}) == 1  # all were scanned alike


def test_no_scan_is_begun_when_the_minutes_are_over():
    assert list(evaluation.scans(planned("test", "quick"), 1, 0.0)) == []


@pytest.mark.parametrize(
    "words", [["--size", "huge"], ["--split", "tset"], ["--config", "nowhere.yaml"], ["--settings", "theirs"], ["--jobs", "0"]]
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(words: list[str], capsys: pytest.CaptureFixture):
    assert evaluation.main(words) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
