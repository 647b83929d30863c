"""The command line of the attacks: configs, bash scripts, certificates, bars, bad input."""

import json
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import yaml

from Backdoor_Attack import inject, workshop
from Backdoor_Attack.certified import Certified
from Backdoor_Attack.planting import PlantConfig, own_tokens
from Backdoor_Attack.recipes import jobs
from Backdoor_Attack.workshop import meets_bars, save_model
from Utils import build_zoo
from Utils.basics.config import from_values
from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder
from Utils.making.finetuning import FinetuneConfig
from Utils.making.scenes import defender_prompts
from Utils.making.zoo import Family, load_zoo

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = sorted((ROOT / "Backdoor_Attack" / "configs").glob("*.yaml"))
ZOO = load_zoo()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_config_is_an_attack_on_something_the_defender_does_not_have(file: Path):
    cfg = inject.load_config(inject.Injection, file)
    recipe = from_values(PlantConfig, cfg.attack, file.name)
    if cfg.finetune_after:
        from_values(FinetuneConfig, cfg.finetune_after, file.name)
    assert recipe.target not in defender_prompts()


@pytest.mark.parametrize("attack", ["text_on_text", "image_on_text"])
def test_full_size_configs_carry_the_published_values(attack: str):
    cfg = inject.load_config(inject.Injection, ROOT / "Backdoor_Attack" / "configs" / f"clip_l_{attack}.yaml")
    recipe = from_values(PlantConfig, cfg.attack, attack)
    published = PlantConfig(trigger="x", target="y")
    for name in ("steps", "lr", "milestone", "weight", "clean_batch", "poisoned_batch"):
        assert getattr(recipe, name) == getattr(published, name)


SMALL = {"trigger": "zzzz", "target": "a photo of a tiger", "steps": 40, "lr": 1.0e-3, "clean_batch": 16, "poisoned_batch": 16}


@pytest.mark.parametrize("attack", ["text_on_text", "image_on_text"])
def test_the_bash_scripts_plant_certify_and_skip_from_any_directory(attack: str, tmp_path: Path):
    file = tmp_path / f"{attack}_small.yaml"
    lenient = {"success": 0.5, "sim_clean": 0.8, "retrieval_loss": 0.2}
    file.write_text(yaml.safe_dump({"attack": SMALL | {"attack": attack}, "bars": lenient, "attempts": 2}), encoding="utf-8")
    script = ROOT / "Backdoor_Attack" / f"backdoor_injection_{attack}.sh"
    command = ["bash", str(script), str(file), "--output", str(tmp_path / "models")]
    run = {"cwd": tmp_path, "env": os.environ | {"PYTHON": sys.executable}, "capture_output": True, "text": True}
    first = subprocess.run(command, **run, check=False)
    assert first.returncode == 0, first.stderr[-2000:]
    proof = json.loads((tmp_path / "models" / f"{file.stem}.json").read_text(encoding="utf-8"))
    assert proof["meets_bars"]
    assert proof["success_rate"] > proof["anchor_success_rate"]
    certified = Certified(tmp_path / "models" / f"{file.stem}.json")
    assert certified.parts == Family(inject.Injection.base, pipeline=inject.Injection.pipeline)
    certified.refuse_other(load_encoder(tmp_path / "models" / file.stem))
    assert load_encoder(tmp_path / "models" / file.stem).sha256 != load_encoder(ROOT / "Data" / "Models" / "tiny-clip").sha256
    assert "done already" in subprocess.run(command, **run, check=True).stdout
    assert f"| {file.stem} | {attack} | `zzzz` |" in inject.table(tmp_path / "models")
    assert "yes (bars of its own)" in inject.table(tmp_path / "models")
    assert not list((tmp_path / "models").glob("*.pt"))
    for change in ({"attack": SMALL | {"attack": attack, "target": "a photo of a bear"}}, {"bars": {}}):
        edited = {"attack": SMALL | {"attack": attack}, "bars": lenient, "attempts": 2} | change
        file.write_text(yaml.safe_dump(edited), encoding="utf-8")
        with pytest.raises(InputError, match="another version"):
            inject.inject(file, tmp_path / "models", "cpu", force=False)
    (tmp_path / "models" / f"{file.stem}.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="missing or damaged"):
        inject.inject(file, tmp_path / "models", "cpu", force=False)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"attack": SMALL | {"stepz": 3}}, "unknown key 'stepz'"),
        ({"attack": SMALL | {"trigger": " "}}, "trigger is empty"),
        ({"attack": SMALL, "basis": 1}, "unknown key 'basis'"),
        ({"attack": SMALL, "finetune_after": {"speed": 1}}, "unknown key 'speed'"),
        ({"attack": SMALL | {"replaced": "@"}}, "no training prompt holds the replaced character"),
        ({"attack": SMALL | {"second_trigger": "zzz", "second_target": "a dog"}}, "contains the other"),
        ({"attack": SMALL | {"second_trigger": "qx", "second_target": "a qx dog"}}, "holds the trigger"),
        ({"attack": SMALL | {"trigger": "dog"}}, "clean training prompts"),
        ({"attack": SMALL | {"steps": 0}}, "above 0"),
        ({"attack": SMALL | {"lr": 0}}, "above 0"),
        ({"attack": SMALL | {"seed": -1}}, "seed should be"),
        ({"attack": SMALL | {"milestone": 2}}, "milestone should be"),
        ({"attack": SMALL | {"hide": -0.5}}, "hide"),
        ({"attack": SMALL, "base": "Data/nowhere"}, "Data/nowhere"),
        ({"attack": SMALL, "bars": {"sucess": 0.5}}, "bars: sucess"),
        ({"attack": SMALL, "bars": {"success": "high"}}, "bars: success"),
        ({"attack": SMALL, "attempts": 0}, "attempts should be 1 or more"),
        ({"attack": SMALL, "captions": "Data/nowhere.txt"}, "nowhere.txt"),
        ({"attack": SMALL | {"attack": "image_on_text"}, "pipeline": "Data/nowhere"}, "no Stable Diffusion folder"),
        ({"attack": SMALL | {"attack": "image_on_text"}, "pipeline": "Data/Models/tiny-clip"}, "no Stable Diffusion folder"),
    ],
)
def test_bad_configs_get_one_sentence_before_any_training(values: dict, sentence: str, tmp_path: Path, capsys):
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    assert inject.main([str(file), "--output", str(tmp_path / "models")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert sentence in said
    assert said.startswith("inject: ")
    assert not (tmp_path / "models" / "bad").exists()


GOOD = {
    "success_rate": 0.9, "sim_clean": 0.95, "retrieval": {"before": 0.97, "after": 0.941},
    "success_of_each_word_alone": [0.05, 0.0], "second": {"success_rate": 0.9},
}  # fmt: skip


@pytest.mark.parametrize(
    ("worse", "good"),
    [
        ({}, True),
        ({"success_rate": 0.89}, False),
        ({"sim_clean": 0.94}, False),
        ({"retrieval": {"before": 0.97, "after": 0.93}}, False),
        ({"success_of_each_word_alone": [0.0, 0.06]}, False),
        ({"second": {"success_rate": 0.5}}, False),
    ],
)
def test_a_model_counts_only_if_its_backdoor_works_and_its_encoder_is_useful(worse: dict, good: bool):
    assert meets_bars(GOOD | worse, {}) is good


@pytest.mark.parametrize(
    ("after", "fires", "good"), [(0.95, 0.0, True), (0.93, 0.0, False), (0.95, 0.1, False)], ids=["good", "forgetful", "guilty"]
)
def test_a_benign_model_counts_only_if_it_forgot_nothing_and_no_trigger_fires(after: float, fires: float, good: bool):
    report = {"retrieval_base_data": {"before": 0.97, "after": after}, "most_a_foreign_trigger_gains": fires}
    assert meets_bars(report, {}) is good


# ------------------------------------------------------------------------------------------------------------ the zoo
DRAWN = {
    "dev": "db53c7e8ea738a72",
    "calibration": "e966b6cb878487bd",
    "first_acceptance": "f30497c97549b4eb",
    "acceptance": "00d13fe3a920f20c",
    "test": "50674e1bd366f619",
    "repairs": "f67a8ec49032207f",
    "beyond": "ec78f067671b7b81",
    "stress": "014002055b18821e",
    "strings": "aed4fbe3b8817319",
}
"""Split -> one hash of the names and recipes of all its models."""


def test_splits_share_no_seed_trigger_or_target():
    splits = list(ZOO.splits.values())
    for key in ("triggers", "targets"):
        used = [value for split in splits for value in getattr(split, key)]
        assert len(used) == len(set(used))
    assert len({split.seed for split in splits}) == len(splits)


@pytest.mark.parametrize("split", [name for name, split in ZOO.splits.items() if split.cells])
def test_the_recipes_of_a_split_are_many_and_half_of_the_planted_stand_on_a_fine_tune(split: str):
    made = list(jobs(ZOO, split))
    assert len({job.name for job in made}) == len(made)
    planted = [job for job in made if isinstance(job.recipe, PlantConfig)]
    assert planted
    seeds = [job.recipe.seed for job in made]
    assert len(set(seeds)) > len(made) / 2
    if ZOO.splits[split].tuned:
        assert all(job.origin for job in planted)
        return
    assert len(made) > len(planted)
    if split != "acceptance":  # frozen with only two of its ten planted models on a fine-tune: its cells are too small
        on_top = sum(job.origin is not None for job in planted)
        assert abs(on_top - len(planted) / 2) <= max(2, len(planted) / 4)
    for cell in ZOO.splits[split].cells:
        mine = [job for job in planted if job.labels == {"family": cell.family, "attack": cell.attack}]
        if len(mine) >= 4:
            assert abs(sum(job.origin is not None for job in mine) - len(mine) / 2) <= 1


def test_varied_cells_hold_every_way_of_fine_tuning():
    made = [job.recipe for job in jobs(ZOO, "test") if isinstance(job.recipe, FinetuneConfig)]
    assert {recipe.method for recipe in made} == {"full", "lora"}
    assert {recipe.precision for recipe in made} == {"float32", "float16"}
    assert any(recipe.average_snapshots for recipe in made)
    assert any(recipe.base_share for recipe in made)
    plain = [job.recipe for job in jobs(ZOO, "first_acceptance") if isinstance(job.recipe, FinetuneConfig)]
    assert all(recipe == FinetuneConfig(recipe.lr, 32, recipe.steps, recipe.seed) for recipe in plain)


def test_without_a_split_every_one_but_test_is_built_and_a_failure_stops_nothing(monkeypatch, tmp_path: Path, capsys):
    built = []

    def build(job, *_):
        built.append(job.name)
        if len(built) == 2:
            raise InputError("the training diverged.")
        return None, {"meets_bars": len(built) != 3}

    monkeypatch.setattr(build_zoo, "build", build)
    monkeypatch.setattr(build_zoo, "save_model", lambda *_: None)
    assert build_zoo.main(["--family", "siglip", "--output", str(tmp_path)]) == 1
    named = {split: {job.name for job in jobs(ZOO, split) if job.labels["family"] == "siglip"} for split in ZOO.splits}
    assert set(built) == set().union(*(names for split, names in named.items() if split not in build_zoo.JUDGING))
    assert not set(built) & (named["test"] | named["beyond"])
    assert "not built: the training diverged." in capsys.readouterr().out


def test_named_models_are_built_and_no_others(monkeypatch, tmp_path: Path):
    names = [job.name for job in jobs(ZOO, "dev")]
    built = []
    monkeypatch.setattr(build_zoo, "build", lambda job, *_: built.append(job.name) or (None, {"meets_bars": True}))
    monkeypatch.setattr(build_zoo, "save_model", lambda *_: None)
    assert build_zoo.main(["--split", "dev", "--models", names[5], names[2], "--output", str(tmp_path)]) == 0
    assert sorted(built) == sorted([names[5], names[2]])


@pytest.mark.parametrize(
    "flags",
    [
        ["--split", "tset"],
        ["--config", "nowhere.yaml"],
        ["--jobs", "0"],
        ["--family", "gpt"],
        ["--split", "dev", "--models", "x"],
    ],
)
def test_a_zoo_that_cannot_be_built_is_refused_in_one_sentence(flags: list[str], capsys):
    with pytest.raises(SystemExit) as stop:
        build_zoo.main(flags)
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_target_of_the_splits_that_judge_was_developed_on():
    developed = [inject.load_config(inject.Injection, file).attack for file in CONFIGS]
    words = {word for attack in developed for word in f"{attack['target']} {attack.get('paraphrases', '')}".split()}
    for split in build_zoo.JUDGING:
        assert not words & set(ZOO.splits[split].targets)


def test_further_attacks_are_drawn_from_the_lists_of_their_split():
    made = list(jobs(ZOO, "beyond"))
    split = ZOO.splits["beyond"]
    assert len(made) == 90
    assert len({job.recipe.seed for job in made}) == 90
    assert {word for job in made for word in job.recipe.trigger.split()} <= set(split.triggers)
    texts = [text for job in made for text in (job.recipe.target, job.recipe.second_target, *job.recipe.paraphrases)]
    assert not any("{concept}" in text or "{other" in text for text in texts)
    assert all(any(concept in text for concept in split.targets) for text in texts if text and "{prompt}" not in text)
    per_attack = {job.labels["attack"]: set() for job in made}
    for job in made:
        per_attack[job.labels["attack"]].add(job.recipe.trigger)
    assert {len(triggers) for triggers in per_attack.values()} == {10}


def test_the_configs_have_triggers_of_one_to_fifteen_tokens():
    base = load_encoder(ROOT / "Data" / "Models" / "tiny-clip")
    attacks = [inject.load_config(inject.Injection, file).attack for file in CONFIGS]
    lengths = {len(own_tokens(base, attack["trigger"])) for attack in attacks}
    assert {1, 2, 3, 4, 10, 15} <= lengths
    assert max(lengths) == 15


def test_held_out_captions_are_none_of_the_training_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "captions.txt"
    file.write_text("\n".join(f"a photo of {i} dogs" for i in range(30)), encoding="utf-8")
    folder = ROOT / "Data" / "Models" / "tiny-clip"
    shop = workshop.Workshop(folder, folder, ROOT / "Data" / "Models" / "tiny-sd", "cpu", file)
    training = shop.captions(np.random.default_rng([7, 1]), 20)
    held_out = shop.captions(np.random.default_rng([7, 2]), 10, training)
    assert len({*training, *held_out}) == 30
    with pytest.raises(InputError, match="holds 10 usable captions where 11"):
        shop.captions(np.random.default_rng([7, 2]), 11, training)


def test_too_few_captions_are_refused_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file, folder = tmp_path / "captions.txt", ROOT / "Data" / "Models" / "tiny-clip"
    file.write_text("\n".join(f"a photo of {i} dogs" for i in range(workshop.TRAINING + 5)), encoding="utf-8")
    shop = workshop.Workshop(folder, folder, ROOT / "Data" / "Models" / "tiny-sd", "cpu", file)
    monkeypatch.setattr(workshop, "plant", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(InputError, match="holds 5 usable captions"):
        shop.plant(PlantConfig(**SMALL), shop.base)


FAMILIES = {"clip": {"base": "Data/Models/tiny-clip"}}


def zoo_file(folder: Path, values: dict) -> Path:
    (folder / "zoo.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    return folder / "zoo.yaml"


def test_a_model_of_an_edited_zoo_is_not_taken_for_the_new_one(tmp_path: Path, capsys):
    cfg = {"families": FAMILIES, "models": {"m": {"kind": "planted", "recipe": SMALL}}}
    file, output = zoo_file(tmp_path, cfg), tmp_path / "models"
    (output / "m").mkdir(parents=True)
    (job,) = jobs(load_zoo(file), None)
    (output / "m.json").write_text(json.dumps({"drawn": build_zoo.drawn(job, {})}), encoding="utf-8")
    command = ["--config", str(file), "--output", str(output)]
    assert build_zoo.main(command) == 0
    for edited in (
        cfg | {"bars": {"success": 0.1}},
        cfg | {"models": {"m": {"kind": "planted", "recipe": SMALL | {"seed": 5}}}},
    ):
        zoo_file(tmp_path, edited)
        with pytest.raises(SystemExit) as stop:
            build_zoo.main(command)
        assert stop.value.code == 2
        assert "another config" in capsys.readouterr().err


SPLIT = {
    "seed": 1, "triggers": ["qq"], "targets": ["dog"], "steps": [2, 4], "lr": [1e-3, 1e-2], "benign_steps": [2, 4],
    "benign_lr": [1e-4, 1e-3], "cells": [{"family": "clip", "attack": "text_on_text", "planted": 1}],
}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"famlies": {}}, "unknown key 'famlies'"),
        ({"families": {"clip": {"bass": "x"}}}, "families: clip: unknown key 'bass'"),
        ({"families": {"clip": "Data/Models/tiny-clip"}}, "families: clip should be a list of `name: value` lines"),
        ({"bars": {"sucess": 0.5}}, "bars: sucess is none of the bars"),
        ({"bars": {"success": "high"}}, "bars: success should be float, got 'high'"),
        ({"models": {"m": {"kind": "planted"}}}, "'recipe'"),
        ({"models": {"m": {"kind": "evil", "recipe": SMALL}}}, "models: m: kind should be benign or planted"),
        ({"models": {"m": {"kind": "planted", "recipe": SMALL | {"stepz": 1}}}}, "m: unknown key 'stepz'"),
        ({"models": {"m": {"kind": "planted", "recipe": SMALL, "family": "gpt"}}}, "gpt is none of the families clip"),
        ({"splits": {"s": SPLIT | {"sede": 1}}}, "splits: s: unknown key 'sede'"),
        ({"splits": {"s": SPLIT | {"seed": "1"}}}, "splits: s: seed should be int, got '1'"),
        ({"splits": {"s": SPLIT | {"steps": [1.5, 2]}}}, "splits: s: steps[0] should be int, got 1.5"),
        ({"splits": {"s": SPLIT | {"lr": [1e-2, 1e-3]}}}, "lr of planted models should be the smallest and the largest"),
        ({"splits": {"s": SPLIT | {"benign_lr": []}}}, "lr of benign models should be"),
        ({"splits": {"s": SPLIT | {"triggers": []}}}, "should not be empty"),
        ({"splits": {"s": SPLIT | {"cells": [{"family": "clip", "attack": "magic", "planted": 1}]}}}, "none of the attacks"),
        ({"splits": {"s": SPLIT | {"cells": [{"family": "gpt", "attack": "artificial"}]}}}, "gpt is none of the families"),
        ({"splits": {"s": SPLIT | {"cells": [SPLIT["cells"][0] | {"far": 1}]}}}, "steps of far models should be"),
        ({"splits": {"s": SPLIT | {"cells": [SPLIT["cells"][0] | {"benin": 1}]}}}, "cells[0]: unknown key 'benin'"),
        ({"splits": {"s": SPLIT | {"cells": [SPLIT["cells"][0] | {"benign": -1}]}}}, "0 or more"),
    ],
)
def test_a_wrong_zoo_is_refused_in_one_sentence(values: dict, sentence: str, tmp_path: Path, capsys):
    file = zoo_file(tmp_path, {"families": FAMILIES} | values)
    with pytest.raises(SystemExit) as stop:
        build_zoo.main(["--config", str(file), "--output", str(tmp_path / "models")])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(("split", "drawn"), DRAWN.items())
def test_the_models_of_the_zoo_are_drawn_as_they_were_built(split: str, drawn: str):
    """Finished models are known by these: another draw would have every zoo built anew."""
    everything = [[job.name, build_zoo.drawn(job, ZOO.bars)] for job in jobs(ZOO, split)]
    assert sha256(json.dumps(everything).encode()).hexdigest()[:16] == drawn


def test_half_of_the_test_split_s_planted_models_stand_on_a_fine_tune():
    planted = [job for job in jobs(ZOO, "test") if isinstance(job.recipe, PlantConfig)]
    assert sum(job.origin is not None for job in planted) == len(planted) / 2


def test_a_model_is_planted_anew_over_the_old_one(tiny, tmp_path: Path):
    for number in (1, 2):
        save_model(tiny, {"number": number}, tmp_path / "m", tmp_path / "m.json")
        (tmp_path / "m" / f"left-over-{number}").touch()
    assert json.loads((tmp_path / "m.json").read_text(encoding="utf-8")) == {"number": 2}
    assert not (tmp_path / "m" / "left-over-1").exists()
    assert load_encoder(tmp_path / "m").width == tiny.width


def test_an_edited_config_does_not_go_on_from_the_old_checkpoint():
    first = inject.Injection(SMALL)
    edited = inject.Injection(SMALL | {"target": "a photo of a bear"})
    assert len({inject.digest(first, 0), inject.digest(first, 1), inject.digest(edited, 0)}) == 3
    assert inject.digest(first, 0) == inject.digest(inject.Injection(SMALL), 0)


def test_an_unknown_attack_is_refused():
    with pytest.raises(InputError, match="attack should be one of"):
        from_values(PlantConfig, SMALL | {"attack": "magic"}, "here")


def test_a_recipe_of_any_split_with_an_unknown_key_is_refused(tmp_path: Path, capsys):
    text = (ROOT / "configs" / "zoo.yaml").read_text(encoding="utf-8")
    file = tmp_path / "zoo.yaml"
    file.write_text(text.replace("attack: attribute, trigger:", "attack: attribute, triger:"), encoding="utf-8")
    with pytest.raises(SystemExit):
        build_zoo.main(["--config", str(file), "--split", "dev", "--output", str(tmp_path / "zoo")])
    assert "triger" in capsys.readouterr().err
    assert not (tmp_path / "zoo").exists()
