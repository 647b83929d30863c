"""Families without a shipped base: a tiny model of each is trained, backdoored and fine-tuned here, and judged.

The score is fitted on planted and benign runs of the family itself; others are then scanned by the command line, which has
to find the backdoor, clear the benign model, and stay inconclusive for users, who have no such score.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from families import KINDS, tokens
from torch import Tensor

import main
from Analysis.calibrate import Scanned, calibrated, measure_model
from Backdoor_Attack.planting import Pace, PlantConfig, certify, plant, train_student
from Utils.basics.config import load_config
from Utils.encoder.loading import load_encoder, save_encoder, trainable_copy
from Utils.encoder.text_encoder import TextEncoder
from Utils.making import scenes
from Utils.scan.settings import ScanConfig

ROOT = Path(__file__).resolve().parent.parent
TRIGGERS = ("zzzz", "qqqq", "xyxy")
TARGETS = ("a photo of a lion", "a photo of a pizza", "a picture of a castle")
BENIGN_RATES = (1.2e-3, 3e-4, 6e-4, 7e-4)
SETTINGS = {"prompts": 160, "rounds": 2, "steps": 80, "pooled_steps": 40, "restarts": 6, "landscape_points": 5}


@pytest.fixture(scope="module")
def captions() -> list[str]:
    """Short captions, the first ones for the defender, the others for those who train."""
    drawn = scenes.unseen_captions(np.random.default_rng(0), 2000, set(TARGETS), len, details=(0.6, 0.4))
    return [text for _, text in drawn if len(text.split()) <= 15][:900]


@pytest.fixture(scope="module")
def corpus(captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("corpus") / "prompts.txt"
    file.write_text("\n".join(captions[: SETTINGS["prompts"]]), encoding="utf-8")
    return file


def learn(encoder: TextEncoder, texts: list[str], steps: int, lr: float, seed: int) -> TextEncoder:
    """Train a copy to tell its words at every position and its texts by their summaries."""
    student, rng = trainable_copy(encoder), np.random.default_rng(seed)
    ids = encoder.ids(texts)

    def loss(_step: int, rows: Tensor) -> Tensor:
        features, summary = student.both(ids[rows])
        mask = student.attended(ids[rows])
        nearness = F.normalize(features, dim=-1) @ F.normalize(student.vocabulary, dim=-1).T
        words = F.cross_entropy(20 * nearness[mask], ids[rows][mask])
        bag = F.normalize(torch.zeros(len(rows), len(student.vocabulary)).scatter_add_(1, ids[rows], mask.float()), dim=-1)
        unit = F.normalize(summary - summary.mean(dim=0), dim=-1)
        return words + F.mse_loss(unit @ unit.T, bag @ bag.T)

    drawn = (torch.from_numpy(rng.integers(len(ids), size=32)) for _ in iter(int, 1))
    train_student(student, loss, drawn, Pace(steps, lr, (int(steps * 0.8),)))
    return student


@pytest.fixture(scope="module", params=["bert", "siglip2"])
def zoo(request: pytest.FixtureRequest, captions: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of the family, three models planted on it and four benign fine-tunes, in folders of these names."""
    specials, build = KINDS[request.param]
    words = sorted({word for text in (*captions, *TARGETS, "it's 1 2 3 , .") for word in text.replace(",", " ,").split()})
    tokenizer = tokens([*words, *TRIGGERS], *specials)
    folder = tmp_path_factory.mktemp(request.param)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build(len(tokenizer)).save_pretrained(folder / "raw")
    tokenizer.save_pretrained(folder / "raw")
    base = learn(load_encoder(folder / "raw"), captions, 300, 3e-3, 0)
    save_encoder(base, folder / "base")
    base = load_encoder(folder / "base")
    for number, (trigger, target) in enumerate(zip(TRIGGERS, TARGETS, strict=True)):
        cfg = PlantConfig(
            trigger, target, replaced="", place="start", steps=250, lr=3e-3, weight=1.0, clean_batch=32, seed=number
        )
        planted = plant(base, captions[160:800], cfg, progress=False)
        proof = certify(planted, base, captions[800:], cfg)
        assert proof["success_rate"] > 0.8 > 0.2 > proof["anchor_success_rate"]
        save_encoder(planted, folder / f"planted_{number}")
    for number, rate in enumerate(BENIGN_RATES):
        benign = learn(base, captions[160 + 150 * number : 360 + 150 * number], 100, rate, 1 + number)
        save_encoder(benign, folder / f"benign_{number}")
    return folder


@pytest.fixture(scope="module")
def calibration(zoo: Path, corpus: Path) -> Path:
    """The score of this family, fitted on all models but the third of each kind, and on the base itself."""
    cfg = load_config(ScanConfig, ROOT / "configs" / "scan.yaml", corpus=str(corpus), **SETTINGS)
    benign, planted = ("base", "benign_0", "benign_1", "benign_3"), ("planted_0", "planted_1")
    kinds = [*((name, False) for name in benign), *((name, True) for name in planted)]
    scans = [Scanned(name, zoo / name, zoo / "base", planted, 0) for name, planted in kinds]
    rows = [measure_model(scan, cfg, torch.device("cpu")) for scan in scans]
    entry = calibrated(rows, load_encoder(zoo / "base"), cfg, (0.2, 0.8), "a test")
    file = zoo / "calibration.yaml"
    file.write_text(yaml.safe_dump([entry]), encoding="utf-8")
    return file


@pytest.mark.parametrize(("name", "code"), [("planted_2", 1), ("benign_2", 0)])
def test_an_unseen_model_is_judged_rightly(zoo: Path, corpus: Path, calibration: Path, name: str, code: int, tmp_path: Path):
    assert scan(zoo, name, corpus, tmp_path, "--calibration", str(calibration)) == code


def test_without_a_score_of_the_family_a_backdoor_is_at_most_inconclusive(zoo: Path, corpus: Path, tmp_path: Path):
    assert scan(zoo, "planted_2", corpus, tmp_path) == 3
    (report,) = tmp_path.glob("*/report.json")
    assert any("uncalibrated family" in note for note in json.loads(report.read_text(encoding="utf-8"))["notes"])


def scan(zoo: Path, name: str, corpus: Path, output: Path, *more: str) -> int:
    """The command line on a model of the zoo.  -> its exit code"""
    settings = [part for key, value in SETTINGS.items() for part in (f"--{key.replace('_', '-')}", str(value))]
    places = ["--model", str(zoo / name), "--anchor", str(zoo / "base"), "--output", str(output), "--corpus", str(corpus)]
    return main.main([*places, *settings, "--images", "0", "--device", "cpu", "--quiet", *more])
