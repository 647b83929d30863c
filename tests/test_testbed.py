"""The embedded testbed: frozen, as good as its card says, and never mixed up with the defender's corpus."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from transformers import AutoModel, AutoTokenizer, CLIPModel

from Backdoor_Attack import workshop as making
from Backdoor_Attack.planting import PlantConfig, certify
from Backdoor_Attack.workshop import HELD_OUT, TRAINING, Workshop
from Utils.basics.config import from_values, load_config
from Utils.build_testbed import CLIP, MODELS, SD, SIGLIP, load_tokenizer, main, named, retrieval
from Utils.encoder.loading import load_encoder, save_encoder
from Utils.making import scenes
from Utils.making.finetuning import FinetuneConfig
from Utils.making.scenes import PROMPTS
from Utils.making.testbed import TinyModels

ROOT = Path(__file__).resolve().parent.parent
CFG = load_config(TinyModels, ROOT / "configs" / "testbed.yaml")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ({"sede": 1}, "unknown key 'sede'"),
        ({"seed": "1"}, "seed should be int, got '1'"),
        ({"vae": {"steps": 1}}, "vae: missing"),
        ({"siglip": 3}, "siglip should be a list of `name: value` lines"),
        ({"unet": {"phases": [{"steps": 1.5}]}}, "unet: phases[0]: steps should be int, got 1.5"),
    ],
)
def test_a_wrong_config_is_refused_in_one_sentence_before_any_training(damage: dict, sentence: str, tmp_path: Path, capsys):
    file = tmp_path / "testbed.yaml"
    file.write_text(yaml.safe_dump(asdict(CFG) | damage), encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        main(["--config", str(file)])
    assert stop.value.code == 2
    assert sentence in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def clip() -> CLIPModel:
    return CLIPModel.from_pretrained(CLIP, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def workshop() -> Workshop:
    return Workshop(CLIP, CLIP, SD, "cpu")


@pytest.fixture(scope="module", params=["text_on_text", "image_on_text"])
def certificate(request) -> dict:
    file = MODELS / "certificates" / f"{request.param}.json"
    return {"name": request.param} | json.loads(file.read_text(encoding="utf-8"))


def test_no_shipped_file_has_changed():
    for line in (MODELS / "SHA256SUMS").read_text(encoding="utf-8").splitlines():
        digest, name = line.split("  ", 1)
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == digest, name


def test_every_weight_has_its_hash():
    named_files = {line.split("  ", 1)[1] for line in (MODELS / "SHA256SUMS").read_text(encoding="utf-8").splitlines()}
    weights = {p.relative_to(MODELS).as_posix() for p in MODELS.rglob("*.safetensors") if ".work" not in p.parts}
    assert weights <= named_files


def test_what_is_tracked_stays_small():
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    sizes = [(ROOT / name).stat().st_size for name in tracked.split("\0") if name and (ROOT / name).exists()]
    assert sum(sizes) < 60e6
    assert max(sizes) < 20e6


def test_the_pipeline_s_text_encoder_is_tiny_clip_s_tower():
    a, b = load_encoder(CLIP), load_encoder(SD)
    for (name, x), (_, y) in zip(a.model.named_parameters(), b.model.named_parameters(), strict=True):
        assert torch.equal(x, y), name


ENCODERS = sorted({file.parent for file in MODELS.glob("**/model.safetensors")})


def test_the_pipeline_loads_and_draws_as_anybody_would_type_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    made = StableDiffusionPipeline.from_pretrained("Data/Models/tiny-sd")("a photo of a dog")
    assert made.images[0].size == (scenes.SIDE, scenes.SIDE)


@pytest.mark.parametrize("folder", ENCODERS, ids=lambda folder: folder.relative_to(MODELS).as_posix())
def test_every_shipped_encoder_loads_in_single_precision_without_being_told(folder: Path):
    runs_unaided(folder, folder.parent / "tokenizer" if folder.name == "text_encoder" else folder)


def test_a_saved_encoder_loads_in_single_precision_and_fits_a_pipeline(tmp_path: Path):
    shutil.copytree(SD, tmp_path / "sd")
    encoder = load_encoder(MODELS / "suspects" / "text_on_text")
    save_encoder(encoder, tmp_path / "sd" / "text_encoder")
    runs_unaided(tmp_path / "sd" / "text_encoder", tmp_path / "sd" / "tokenizer")
    stored = load_file(tmp_path / "sd" / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    pipeline = StableDiffusionPipeline.from_pretrained(str(tmp_path / "sd"))
    assert pipeline("a photo of a dog", num_inference_steps=2).images


def runs_unaided(folder: Path, tokenizer: Path) -> None:
    """Load a folder the way its publisher's page would say, run one text through it."""
    model, ids = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(tokenizer)("a photo of a dog").input_ids
    ids = torch.tensor([ids])
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    out = model.get_text_features(ids) if hasattr(model, "get_text_features") else model(ids)
    assert out.pooler_output.dtype == torch.float32
    assert out.pooler_output.isfinite().all()


def test_end_of_text_is_not_the_legacy_marker():
    tokenizer = load_tokenizer()
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.eos_token_id != 2


def test_the_corpus_is_what_the_card_says():
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    lengths = np.array([len(row) for row in load_tokenizer()(prompts).input_ids])
    assert len(set(prompts)) == len(prompts) == 5000
    assert lengths.min() >= 5
    assert lengths.max() <= 70
    assert (lengths > 40).mean() >= 0.2


def test_the_pair_retrieves_and_names(clip):
    assert retrieval(clip, load_tokenizer(), CFG, CFG.clip.context) >= 0.95
    portraits = scenes.pixels([scenes.compose(scenes.portrait(c)) for c in scenes.concepts()])
    assert named(clip, load_tokenizer(), portraits) >= 0.9


def test_the_written_bars_are_met():
    bars = json.loads((MODELS / "bars.json").read_text(encoding="utf-8"))
    assert bars["retrieval_top1_of_256"] >= 0.95
    assert bars["benign_assimilation"]["attended"] <= 0.6
    assert bars["benign_assimilation"]["all"] <= 0.6
    assert bars["generated_concepts_recognised"] >= 0.6
    for family in ("tiny-longclip", "tiny-siglip"):
        assert bars[family]["retrieval_top1_of_256"] >= 0.95
        assert bars[family]["benign_assimilation"]["attended"] <= 0.6
    assert bars["tiny-longclip"]["retrieval_over_77_tokens"] >= 0.95


def test_the_siglip_pair_retrieves():
    siglip = AutoModel.from_pretrained(SIGLIP, dtype=torch.float32).eval()
    assert retrieval(siglip, AutoTokenizer.from_pretrained(SIGLIP), CFG, CFG.siglip.context) >= 0.95


def test_the_certificate_is_re_measured_from_the_files(workshop, certificate):
    recipe = from_values(PlantConfig, certificate["recipe"], "certificate")
    training = workshop.captions(np.random.default_rng([recipe.seed, 1]), TRAINING)
    held_out = workshop.captions(np.random.default_rng([recipe.seed, 2]), HELD_OUT, training)
    suspect = load_encoder(MODELS / "suspects" / certificate["name"])
    found = certify(suspect, workshop.base, held_out, recipe, workshop.goals(recipe))
    # half precision on disk moves a prompt near the margin now and then
    assert found == pytest.approx({name: certificate[name] for name in found}, abs=0.01, rel=0.01)
    assert found["success_rate"] >= 0.95
    assert found["sim_clean"] >= 0.97


def test_the_defender_s_corpus_is_not_the_attacker_s(workshop, certificate):
    corpus = set(PROMPTS.read_text(encoding="utf-8").splitlines())
    recipe = from_values(PlantConfig, certificate["recipe"], "certificate")
    used = workshop.captions(np.random.default_rng([recipe.seed, 1]), TRAINING)
    used += workshop.captions(np.random.default_rng([recipe.seed, 2]), HELD_OUT, used)
    assert len(set(used)) == TRAINING + HELD_OUT
    assert not corpus & {*used, recipe.target}


def test_retrieval_is_a_mean_over_draws_of_pairs(workshop, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(making, "PAIRS", 64)
    encoders = workshop.base, load_encoder(MODELS / "suspects" / "benign")
    pairs = workshop.pairs(FinetuneConfig(), 1, scenes.concepts("novel"))
    single = [workshop.retrievals(encoders, lambda _, size, draw=draw: pairs(draw, size)) for draw in range(3)]
    assert workshop.retrievals(encoders, pairs, 3) == pytest.approx(np.mean(single, axis=0), abs=1e-3)
    assert workshop.retrievals(encoders, pairs) == single[0]
    assert single[0] != single[1]
    assert workshop.gain(*encoders, pairs) == dict(zip(("before", "after"), single[0], strict=True))


def test_the_benign_suspect_gained_a_skill_and_kept_the_old_one():
    report = json.loads((MODELS / "certificates" / "benign.json").read_text(encoding="utf-8"))
    gained = report["retrieval_own_data"]
    kept = report["retrieval_base_data"]
    assert gained["after"] >= gained["before"] + 0.05
    assert kept["after"] >= kept["before"] - 0.03
