"""How well a target is shown: concepts, S_tar and the script over a zoo; and where notebooks take a scan from.

Contents
    concept_of  the longest concept; none in a vector without meaning
    s_tar       defined for one target, not for one a prompt; image targets by pooled features
    shows_it    words, and pictures where a text-on-text backdoor was drawn
    the script  a zoo without results is bad input
    open_case   a stored result counts only with this config, seed and these weights
    companion   a pipeline, one of its parts, a hub id
    reproduce   flags for what differs from the usual settings
"""

import json
import os
import shlex
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import main
from Analysis import lab, recovery, targets
from Backdoor_Attack.planting import PlantConfig
from Utils.basics.config import from_values, load_config
from Utils.basics.errors import InputError
from Utils.encoder import anchors, coverage
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.rendering import check_family
from Utils.generate_image_input_features import newest_feature
from Utils.report.command_line import parse_arguments
from Utils.report.folder import result_name
from Utils.report.report import reproduce
from Utils.scan.settings import ScanConfig

ROOT = Path(main.__file__).resolve().parent
MODELS = ROOT / "Data" / "Models"


@pytest.mark.parametrize(
    ("text", "concept"), [("a photo of a birthday cake", "birthday cake"), ("signs", None), ("{prompt} in blue", None)]
)
def test_a_target_s_concept_is_the_longest_it_names(text: str, concept: str | None):
    assert targets.concept_of(text) == concept


@pytest.mark.parametrize("attack", ["text_on_text", "artificial", "embedding_row"])
def test_a_vector_that_forces_nothing_is_no_target(attack: str):
    suspect = MODELS / "suspects" / "text_on_text"
    cfg = PlantConfig(trigger="zzzz", target="a photo of a lion", attack=attack)
    found = recovery.s_tar(suspect, torch.zeros(1, 160), cfg, "clip")
    assert 0 <= found.floor < 1
    assert found.s_tar < 0.6
    assert (found.own_tokens is None) == (attack == "artificial")


def test_a_target_of_each_prompt_s_own_has_no_s_tar():
    cfg = PlantConfig(trigger="ø", target="{prompt} in blue", attack="attribute")
    assert recovery.s_tar(MODELS / "suspects" / "text_on_text", torch.zeros(1, 160), cfg, "clip") is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, True), ({"words": False}, False), ({"pictures": 2}, False), ({"verdict": "clean"}, False),
        ({"pictures": None, "drawn": 0}, True), ({"attack": "image_on_text", "pictures": 0}, True),
    ],
)  # fmt: skip
def test_a_target_is_shown_by_words_and_by_pictures_where_they_can_show_it(changes: dict, expected: bool):
    row = {"attack": "text_on_text", "verdict": "backdoored", "words": True, "pictures": 3, "drawn": 4}
    assert targets.shows_it(row | changes) is expected


def test_a_zoo_without_results_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture):
    assert targets.main(["--zoo", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "benchmark.py" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- notebooks
@pytest.fixture
def notebook(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Callable, list[Path]]:
    """A function that stores a result of the tiny model, and the folders that open_case scans to."""
    scanned: list[Path] = []

    def scan(model: str, request: main.Request) -> dict:
        scanned.append(request.output)
        return store(request.output, request.cfg, 42)

    def store(output: Path, cfg: ScanConfig, seed: int) -> dict:
        folder = output / result_name(str(tiny_folder), output)
        folder.mkdir(parents=True)
        report = {
            "schema": lab.SCHEMA, "found": {}, "verdict": "clean", "config": asdict(cfg), "seed": seed,
            "anchor": {"path": str(tiny_folder)},
            "model": {"sha256": load_encoder(tiny_folder).sha256, "path": str(tiny_folder.resolve())},
        }  # fmt: skip
        (folder / "report.json").write_text(json.dumps(report))
        torch.save(torch.zeros(1, 32), folder / "Backdoor_Embedding.pt")
        return report

    monkeypatch.setattr(lab, "scan_model", scan)
    monkeypatch.setattr(lab, "prepare", lambda *_: None)
    monkeypatch.setattr(lab, "RESULTS", tmp_path / "Results")
    monkeypatch.setattr(lab, "NOTEBOOKS", tmp_path / "Results" / "notebooks")
    return store, scanned


@pytest.mark.parametrize(("steps", "seed", "again"), [(0, 42, False), (7, 42, True), (0, 43, True)])
def test_a_stored_result_counts_only_with_the_usual_settings(notebook, tmp_path: Path, tiny_folder: Path, steps, seed, again):
    store, scanned = notebook
    cfg = load_config(ScanConfig, ROOT / "configs" / "scan.yaml", steps=steps or None)
    store(tmp_path / "Results", cfg, seed)
    lab.open_case(str(tiny_folder))
    assert scanned == ([tmp_path / "Results" / "notebooks"] if again else [])
    lab.open_case(str(tiny_folder))
    assert len(scanned) == again


def test_coverage_by_place_ends_where_prompts_end(tiny: TextEncoder, corpus_prompts: list[str]):
    shares = coverage.by_place(tiny, tiny.ids(corpus_prompts), torch.zeros(1, 32), [0, 2, 400])
    assert torch.isfinite(shares).tolist() == [True, True, False]


# ------------------------------------------------------------------------------------------------------------- pictures
def test_the_newest_feature_is_never_half_a_scan_s(tmp_path: Path):
    with pytest.raises(InputError, match="no result"):
        newest_feature(tmp_path)
    for number, name in enumerate(("old", "new", ".partial_x")):
        (tmp_path / name).mkdir()
        file = tmp_path / name / "Backdoor_Feature.pt"
        file.touch()
        os.utime(file, (number, number))
    assert newest_feature(tmp_path) == tmp_path / "new" / "Backdoor_Feature.pt"


@pytest.mark.parametrize("base", ["tiny-siglip", "tiny-longclip"])
def test_a_pipeline_of_another_family_is_refused_for_an_anchor_of_the_same_width(base: str):
    anchor = load_encoder(MODELS / base)
    assert anchor.width == load_encoder(MODELS / "tiny-sd").width
    with pytest.raises(InputError, match="--pipeline"):
        check_family(MODELS / "tiny-sd", anchor)
    check_family(MODELS / "tiny-sd", load_encoder(MODELS / "tiny-clip"))


@pytest.mark.parametrize("name", ["Data/Models/tiny-sd", "Data/Models/tiny-sd/text_encoder", str(MODELS / "tiny-sd")])
def test_what_belongs_to_an_anchor_is_known_however_it_is_named(name: str):
    assert anchors.companion(name, "pipeline") == MODELS / "tiny-sd"
    assert anchors.companion(name, "clip") == MODELS / "tiny-clip"


def test_a_clip_model_projects_for_itself_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(shutil.copytree(MODELS / "tiny-clip", tmp_path / "snapshot"))
    (folder / "preprocessor_config.json").unlink()
    assert anchors.companion(str(folder), "clip") == folder
    assert anchors.companion(str(folder), "pipeline") is None
    assert anchors.companion(str(MODELS / "tiny-siglip"), "clip") is None
    assert anchors.companion("nobody/far-away", "clip") is None
    monkeypatch.setattr("Utils.intake.hub.in_cache", lambda name: folder)
    assert anchors.companion("somebody/clip", "clip") == folder


# ------------------------------------------------------------------------------------------------------------ reproduce
GIVEN = {"tokenizer": "", "lora_scale": 1.0, "precision": "auto", "only": "", "compare_pickles": False}


def test_the_command_names_what_differs_from_the_usual_settings():
    report = {
        "anchor": None, "model": {"path": "my models/x"}, "seed": 7, "device": "cpu", "show": {"images": 0, "pipeline": "auto"},
        "config": {"steps": 5, "bound": False, "lr": 0.1}, "given": GIVEN,
    }  # fmt: skip
    command = reproduce(report, {"steps": 5, "bound": True, "lr": 0.2})
    start = "python main.py --model 'my models/x' --anchor none --seed 7 --device cpu --images 0 --pipeline auto"
    assert command == f"{start} --no-bound --lr 0.1"
    args = parse_arguments(shlex.split(command)[2:])
    assert (args.model, args.anchor, args.images, args.bound, args.lr) == ("my models/x", "none", 0, False, 0.1)
    given = {"tokenizer": "a/b", "lora_scale": 0.5, "precision": "float32", "only": "x.safetensors", "compare_pickles": True}
    lent = reproduce(report | {"given": given}, {"steps": 5, "bound": True, "lr": 0.2})
    args = parse_arguments(shlex.split(lent)[2:])
    assert {name: getattr(args, name) for name in given} == given


def test_pictures_of_the_planted_trigger_show_what_can_be_shown():
    suspect = MODELS / "suspects" / "text_on_text"
    recipe = json.loads((MODELS / "certificates" / "text_on_text.json").read_text(encoding="utf-8"))["recipe"]
    cfg = from_values(PlantConfig, recipe, "certificate")
    report = {"anchor": {"path": "Data/Models/tiny-sd"}, "found": {"benign_prompt": "a photo of a hot dog"}, "seed": 42}
    assert targets.drawn_by_trigger(suspect, cfg, report, 4, "clip").count("lion") >= 3
    assert targets.drawn_by_trigger(suspect, cfg, report | {"anchor": None}, 4, "clip") == []
