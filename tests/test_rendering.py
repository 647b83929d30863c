"""Pictures from features: the right number under the right names, the same ones again, and clear refusals.

Contents
    load_renderer   nothing is loaded before the class names are checked; safetensors only; no links; whole pipelines
    Renderer        as many pictures as asked for, one seed each, only features that fit
    the script      the newest result without arguments, from any working directory, exit 2 in one sentence
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder
from Utils.found.rendering import Renderer, load_renderer, read_feature, save_pictures
from Utils.found.target import draw_pictures
from Utils.report.run import Run

ROOT = Path(__file__).resolve().parent.parent
SD = ROOT / "Data" / "Models" / "tiny-sd"
CPU = torch.device("cpu")
SCRIPT = ROOT / "Utils" / "generate_image_input_features.py"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return load_renderer(SD, CPU)


@pytest.fixture(scope="module")
def feature() -> torch.Tensor:
    encoder = load_encoder(SD)
    with torch.no_grad():
        return encoder(encoder.ids(["a photo of a pizza", ""]))


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    """A copy of the pipeline's folder that a test may damage."""
    return Path(shutil.copytree(SD, tmp_path / "sd"))


def change_index(pipeline: Path, **entries: object) -> None:
    file = pipeline / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | entries), encoding="utf-8")


# ------------------------------------------------------------------------------------------------------- load_renderer
class Bomb:
    def __reduce__(self):
        return os.abort, ()


def only_a_pickle(pipeline: Path) -> None:
    (pipeline / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (pipeline / "unet" / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))


def a_link_out(pipeline: Path) -> None:
    (pipeline / "vae" / "config.json").unlink()
    (pipeline / "vae" / "config.json").symlink_to(SD / "vae" / "config.json")


def a_tensor_short(pipeline: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = pipeline / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    tensors.pop("conv_in.weight")
    save_file(tensors, file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: change_index(p, _class_name="StableDiffusionXLPipeline"), "StableDiffusionXLPipeline"),
        (lambda p: change_index(p, unet=["my_code", "UNet2DConditionModel"]), "nothing was loaded"),
        (lambda p: change_index(p, unet=["diffusers", "DiffusionPipeline"]), "nothing was loaded"),
        (lambda p: change_index(p, scheduler=["diffusers", "AutoencoderKL"]), "nothing was loaded"),
        (lambda p: change_index(p, vae=[None, None]), "names no vae"),
        (lambda p: (p / "model_index.json").write_text("[", encoding="utf-8"), "cannot be read as JSON"),
        (lambda p: (p / "model_index.json").unlink(), "no model_index.json"),
        (lambda p: shutil.rmtree(p / "unet"), "holds no unet"),
        (lambda p: shutil.rmtree(p / "scheduler"), "holds no scheduler"),
        (lambda p: (p / "unet" / "config.json").write_text("{}", encoding="utf-8"), "cannot be loaded"),
        (lambda p: shutil.rmtree(p), "does not exist"),
        (only_a_pickle, "pickle"),
        (a_tensor_short, "missing"),
        pytest.param(a_link_out, "link", marks=pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")),
    ],
)
def test_a_pipeline_that_is_not_whole_or_not_trusted_is_refused_in_one_sentence(pipeline, damage, words):
    damage(pipeline)
    with pytest.raises(InputError, match=words) as refused:
        load_renderer(pipeline, CPU)
    assert "\n" not in str(refused.value)


# ------------------------------------------------------------------------------------------------------------ Renderer
def test_a_picture_depends_on_its_seed_and_not_on_how_many_are_drawn(renderer, feature):
    three, one = renderer(feature[:1], feature[1:], 3, seed=7), renderer(feature[:1], feature[1:], 1, seed=9)
    assert [picture.size for picture in three] == [(32, 32)] * 3
    # batches of other sizes round otherwise
    assert np.abs(np.asarray(three[2], dtype=int) - np.asarray(one[0], dtype=int)).max() <= 3
    assert np.asarray(three[0]).tolist() != np.asarray(three[1]).tolist()


def test_a_feature_of_another_width_is_refused(renderer):
    with pytest.raises(InputError, match="768 wide") as refused:
        renderer(torch.zeros(1, 77, 768), torch.zeros(1, 77, 768), 1, seed=0)
    assert "--pipeline" in str(refused.value)


def test_a_feature_of_another_length_is_refused(renderer, feature):
    with pytest.raises(InputError, match="248 positions"):
        renderer(torch.zeros(1, 248, 160), feature[1:], 1, seed=0)


def test_pictures_are_numbered_from_one(renderer, feature, tmp_path):
    assert save_pictures(renderer(feature[:1], feature[1:], 2, seed=0), tmp_path / "Images", "found") == [
        "found_1.png", "found_2.png",
    ]  # fmt: skip


@pytest.mark.parametrize("value", [torch.zeros(77, 160), torch.full((1, 2, 3), torch.nan), {"a": torch.zeros(1)}, Bomb()])
def test_a_file_without_a_feature_is_refused(value, tmp_path):
    torch.save(value, tmp_path / "f.pt")
    with pytest.raises(InputError, match=r"f\.pt holds no"):
        read_feature(tmp_path / "f.pt")


def test_a_scan_that_cannot_draw_says_why_and_goes_on(tmp_path, feature):
    anchor, run = load_encoder(SD), Run(tmp_path)
    own, wide = {"backdoor": feature[:1]}, {"backdoor": torch.zeros(1, 77, 768)}
    for base, pipeline, features in ((anchor, str(tmp_path / "none"), own), (None, "auto", own), (anchor, "auto", wide)):
        files, (note,) = draw_pictures(base, pipeline, features, 4, run)
        assert files == {}
        assert note.startswith("no pictures: ")
    assert draw_pictures(anchor, "auto", own, 0, run) == ({}, [])
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------- the script
def script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, encoding="utf-8", timeout=300)


def test_the_script_draws_a_feature_with_a_named_pipeline(tmp_path, feature):
    torch.save(feature[:1], tmp_path / "Backdoor_Feature.pt")
    done = script("--feature", "Backdoor_Feature.pt", "--pipeline", str(SD), "--images", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "Images").iterdir()) == ["backdoor_1.png", "backdoor_2.png"]


def test_the_script_refuses_in_one_sentence(tmp_path):
    torch.save(torch.zeros(1, 77, 768), tmp_path / "Backdoor_Feature.pt")
    done = script("--feature", "Backdoor_Feature.pt", "--pipeline", str(SD), cwd=tmp_path)
    assert done.returncode == 2
    assert len([line for line in done.stderr.splitlines() if "768 wide" in line]) == 1
    assert "Traceback" not in done.stderr
