"""A tree of models: what has a text encoder is found in it, everything else is left out with a reason.

Contents
    folders   encoders, pipelines, sentence encoders, the hub's cache; models of other kinds
    files     by the names of their tensors, pickles by the strings in them; what cannot be told is a model
    limits    deep and linked folders, many files
    list      in a child process, names that are no text, a folder that is a model itself or holds none
    summary   what to look at first, and what was left out by reason
"""

import json
import os
import pickle
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_intake import two_encoders  # noqa: F401  (a fixture)
from test_loading import Bomb, as_pipeline
from test_many import ANCHOR, QUICK

import main
from Utils.basics.errors import InputError
from Utils.intake import tree
from Utils.intake.candidates import encoders_of
from Utils.intake.tree import MODEL, Skipped, Tree, kind_of_names, look_through
from Utils.report.limits import Wanted
from Utils.report.lists import left_out, named_in, plan, read_list, summarise, table, tree_within, write_summary

COMMIT = "0123456789abcdef" * 2 + "01234567"
TABLE = "text_model.embeddings.token_embedding.weight"
ENCODERS = {
    "stable diffusion 1": "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    "stable diffusion 2": "cond_stage_model.model.token_embedding.weight",
    "stable diffusion xl": "conditioner.embedders.1.model.positional_embedding",
    "a bundle": "text_encoders.t5xxl.transformer.shared.weight", "clip_l": TABLE, "open clip": "positional_embedding",
    "t5": "encoder.embed_tokens.weight", "bert": "bert.embeddings.word_embeddings.weight",
    "lora": "lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_up.weight",
    "lora of peft": "base_model.model.encoder.layers.0.self_attn.q_proj.lora_A.weight",
}  # fmt: skip
OTHERS = {
    "a vae": ("encoder.down.0.block.0.conv1.weight", "tensors of something else"),
    "a vision tower": ("vision_model.embeddings.position_embedding.weight", "tensors of something else"),
    "an open vision tower": ("visual.positional_embedding", "tensors of something else"),
    "a checkpoint": ("model.diffusion_model.input_blocks.0.0.weight", "checkpoints without a text encoder"),
    "a lora": ("lora_unet_down_blocks_0_attentions_0.lora_up.weight", "LoRAs that touch no text encoder"),
    "a newer lora": ("transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight", "LoRAs that touch no text encoder"),
    "a word": ("emb_params", "textual inversions"), "a word of two": ("clip_g", "textual inversions"),
}  # fmt: skip


def put(file: Path, *names: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: torch.zeros(2) for name in names}, file)
    return file


def pickled(file: Path, *names: str, **options: bool) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {name: torch.zeros(2) for name in names}}, file, **options)
    return file


@pytest.fixture
def web_ui(tiny_folder: Path, two_encoders: Path, tmp_path: Path) -> Path:  # noqa: F811
    """A model folder of a web interface, with a hundred files that are no models."""
    root = tmp_path / "models"
    put(root / "Stable-diffusion" / "v1.safetensors", "model.diffusion_model.x", ENCODERS["stable diffusion 1"])
    put(root / "Stable-diffusion" / "unet.safetensors", "model.diffusion_model.x")
    pickled(root / "Stable-diffusion" / "old.ckpt", ENCODERS["stable diffusion 1"])
    put(root / "Lora" / "style" / "both.safetensors", ENCODERS["lora"], OTHERS["a lora"][0])
    put(root / "Lora" / "style" / "unet only.safetensors", OTHERS["a lora"][0])
    put(root / "VAE" / "vae.safetensors", OTHERS["a vae"][0])
    pickled(root / "ESRGAN" / "4x.pth", "model.0.weight", "model.1.bias")
    put(root / "embeddings" / "toy.safetensors", "emb_params")
    put(root / "text_encoders" / "clip_l.safetensors", TABLE)
    shutil.copytree(tiny_folder, root / "encoders" / "mine")
    shutil.copytree(two_encoders, root / "diffusers" / "sdxl")
    (root / "diffusers" / "vae").mkdir()
    (root / "diffusers" / "vae" / "config.json").write_text('{"_class_name": "AutoencoderKL"}')
    put(root / "diffusers" / "vae" / "diffusion_pytorch_model.safetensors", "encoder.x")
    for number in range(100):
        (root / "Lora" / f"{number}.png").write_bytes(b"\x89PNG")
    (root / ".git").mkdir()
    put(root / ".git" / "hidden.safetensors", TABLE)
    return root


# ------------------------------------------------------------------------------------------------------------ folders
def test_what_has_a_text_encoder_is_found_and_the_rest_left_out_with_a_reason(web_ui: Path):
    found = look_through(web_ui)
    assert [Path(model).relative_to(web_ui).as_posix() for model in found.models] == [
        "Lora/style/both.safetensors", "Stable-diffusion/old.ckpt", "Stable-diffusion/v1.safetensors", "diffusers/sdxl",
        "encoders/mine", "text_encoders/clip_l.safetensors",
    ]  # fmt: skip
    assert {Path(one.path).name: one.reason for one in found.skipped} == {
        "unet.safetensors": "checkpoints without a text encoder", "unet only.safetensors": "LoRAs that touch no text encoder",
        "vae.safetensors": "tensors of something else than a text encoder", "vae": "models of another kind (AutoencoderKL)",
        "4x.pth": "tensors of something else than a text encoder (pickles)", "toy.safetensors": tree.WORDS,
    }  # fmt: skip
    assert found.others == 100
    assert read_list(web_ui) == found.models


def test_the_cache_of_the_hub_is_a_tree(tiny_folder: Path, tmp_path: Path):
    def repository(name: str) -> Path:
        snapshot = tmp_path / "hub" / name / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text(COMMIT)
        return snapshot

    own, blobs = repository("models--some--encoder"), tmp_path / "hub" / "models--some--encoder" / "blobs"
    blobs.mkdir()
    for number, file in enumerate(sorted(tiny_folder.iterdir())):
        shutil.copy(file, blobs / str(number))
        (own / file.name).symlink_to(Path("../../blobs") / str(number))
    put(repository("models--some--files") / "clip_l.safetensors", TABLE)
    (repository("models--a--language-model") / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "hub" / "datasets--some--pictures").mkdir()
    (tmp_path / "hub" / "models--never--fetched").mkdir()
    found = look_through(tmp_path / "hub")
    alone = tmp_path / "hub" / "models--some--files" / "snapshots" / COMMIT / "clip_l.safetensors"
    assert found.models == [str(tmp_path / "hub" / "models--some--encoder"), str(alone)]
    assert {one.reason for one in found.skipped} == {"data sets and spaces of the hub", "models of another kind (llama)"}
    assert encoders_of(found.models[0]) == [found.models[0]]
    with pytest.raises(InputError, match="is a model itself"):
        read_list(tmp_path / "hub" / "models--some--encoder")


def test_folders_are_told_by_their_configs(tiny_folder: Path, tmp_path: Path):
    root = tmp_path / "tree"
    shutil.copytree(tiny_folder, root / "sentences" / "0_Transformer")
    modules = [{"type": "sentence_transformers.models.Transformer", "path": "0_Transformer"}]
    (root / "sentences" / "modules.json").write_text(json.dumps(modules))
    as_pipeline(tiny_folder, root / "sd")
    (root / "no text").mkdir()
    (root / "no text" / "model_index.json").write_text('{"_class_name": "X", "unet": ["diffusers", "UNet2DModel"]}')
    put(root / "adapter" / "adapter_model.safetensors", "x.lora_A.weight").with_name("adapter_config.json").write_text("{}")
    put(root / "broken" / "model.safetensors", "x").with_name("config.json").write_text("{")
    put(root / "no kind" / "model.safetensors", "x").with_name("config.json").write_text("{}")
    shutil.copytree(tiny_folder, root / "checkpoint-500" / "text_encoder")
    (root / "config.json").write_text('{"samples_save": true}')  # of the program, not of a model
    found = look_through(root)
    assert [Path(model).relative_to(root).as_posix() for model in found.models] == [
        "adapter", "broken", "checkpoint-500/text_encoder", "no kind", "sd", "sentences"
    ]  # fmt: skip
    assert [one.reason for one in found.skipped] == ["pipelines without a text encoder"]
    assert read_list(root) == found.models


# -------------------------------------------------------------------------------------------------------------- files
@pytest.mark.parametrize("kind", ENCODERS)
def test_names_that_have_to_do_with_a_text_encoder_are_a_model(kind: str):
    assert kind_of_names(["model.diffusion_model.x", ENCODERS[kind]] if "lora" not in kind else [ENCODERS[kind]]) == MODEL


@pytest.mark.parametrize("kind", OTHERS)
def test_names_of_other_things_are_a_reason(kind: str):
    name, reason = OTHERS[kind]
    assert kind_of_names([name]).startswith(reason)


def test_pickles_are_told_without_following_them_and_what_nobody_can_tell_is_a_model(tmp_path: Path):
    canary = tmp_path / "canary"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "bomb.pt").write_bytes(pickle.dumps(Bomb(canary)))
    pickled(tmp_path / "a" / "old.pt", "first_stage_model.x", _use_new_zipfile_serialization=False)
    pickled(tmp_path / "a" / "encoder.bin", TABLE)
    pickled(tmp_path / "a" / "vae.pt", "first_stage_model.x")
    pickled(tmp_path / "a" / "optimizer.pt", TABLE)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 4)}}, tmp_path / "a" / "toy.pt")
    (tmp_path / "a" / "cut.safetensors").write_bytes(b"\xff" * 20)
    gguf = b"GGUF" + bytes(20) + (20).to_bytes(8, "little") + b"general.architecture" + bytes([8, 0, 0, 0])
    for name in (b"flux", b"t5encoder"):
        (tmp_path / "a" / f"{name.decode()}.gguf").write_bytes(gguf + len(name).to_bytes(8, "little") + name + bytes(64))
    found = look_through(tmp_path)
    assert [Path(model).name for model in found.models] == [
        "bomb.pt", "cut.safetensors", "encoder.bin", "old.pt", "t5encoder.gguf"
    ]  # fmt: skip
    assert {Path(one.path).name: one.reason for one in found.skipped} == {
        "vae.pt": "tensors of something else than a text encoder (pickles)", "optimizer.pt": "what trainers leave",
        "toy.pt": f"{tree.WORDS} (pickles)", "flux.gguf": "denoisers in GGUF form",
    }  # fmt: skip
    assert not canary.exists()


# ------------------------------------------------------------------------------------------------------------- limits
def test_folders_that_are_not_entered_are_said(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = tmp_path / "tree"
    deep = root.joinpath(*"abcdefghijklmno")
    put(deep / "clip_l.safetensors", TABLE)
    (root / "linked").symlink_to(tmp_path)
    (root / "model").symlink_to(tiny_folder)
    found = look_through(root)
    assert found.models == [str(root / "model")]
    assert Counter(one.reason.split(";")[0] for one in found.skipped) == {
        "folders that lie too deep": 1, "folders that are links": 1
    }  # fmt: skip
    monkeypatch.setattr(tree, "MOST", 3)
    with pytest.raises(InputError, match="more than 3 files; give a folder in it"):
        look_through(root)


def test_thousands_of_files_take_seconds(web_ui: Path):
    original = web_ui / "Lora" / "style" / "unet only.safetensors"
    for number in range(2000):
        os.link(original, web_ui / "Lora" / "style" / f"{number}.safetensors")
    began = time.process_time()
    found = look_through(web_ui)
    assert time.process_time() - began < 5
    assert len(found.models) == 6
    assert left_out(found)[0]["count"] == 2001
    assert len(left_out(found)[0]["paths"]) == 200


# --------------------------------------------------------------------------------------------------------------- list
def test_a_child_process_finds_the_same_whatever_the_names(web_ui: Path):
    name = os.fsencode(web_ui) + b"/\xff\n\x1b"
    shutil.copytree(web_ui / "encoders" / "mine", os.fsdecode(name))
    assert tree_within(web_ui, Wanted()) == look_through(web_ui)
    assert os.fsdecode(name) in tree_within(web_ui, Wanted()).models


def test_a_folder_without_a_text_encoder_says_what_is_in_it(tmp_path: Path):
    put(tmp_path / "VAE" / "a.safetensors", OTHERS["a vae"][0])
    with pytest.raises(InputError, match=r"names no model \(left out: 1 tensors of something else than a text encoder\)"):
        named_in(tmp_path)


# ------------------------------------------------------------------------------------------------------------ summary
def report(model: str, verdict: str | None, score: float | None) -> dict:
    error = {} if verdict else {"error": "It is broken."}
    return {"verdict": verdict, "score": score, "reason": "So it is.", "model": {"path": model}, "anchor": ANCHOR} | error


def test_the_summary_begins_with_what_to_look_at_first(tmp_path: Path):
    reports = [
        report("clean", "clean", 0.1), report("broken", None, None), report("doubt", "inconclusive", 0.5),
        report("bad", "backdoored", 0.95), report("more doubt", "inconclusive", 0.7), report("worst", "backdoored", 0.99),
    ]  # fmt: skip
    skipped = [Skipped(f"/x/{i}\x1b[31m<b>.pt", "LoRAs that <touch> no text encoder") for i in range(7)]
    found = Tree([], [*skipped, Skipped("/x/vae", "models of another kind (vae)")], 12)
    summary = summarise(reports, plan([r["model"]["path"] for r in reports], tmp_path), found)
    assert [row["model"] for row in summary["models"]] == ["worst", "bad", "more doubt", "doubt", "broken", "clean"]
    assert [(one["count"], len(one["paths"])) for one in summary["skipped"]] == [(7, 7), (1, 1)]
    assert summary["other_files"] == 12
    shown = table(summary).splitlines()
    assert [line.split()[-1] for line in shown[:4]] == ["worst", "bad", "doubt", "doubt"]
    assert shown[-4:] == [
        "left out: 7 LoRAs that <touch> no text encoder", "left out: 1 models of another kind (vae)",
        "left out: 12 files that are no models", "6 encoders: 2 backdoored, 1 clean, 2 inconclusive, 1 not judged",
    ]  # fmt: skip
    write_summary(summary, tmp_path)
    page = (tmp_path / "summary.html").read_text(encoding="utf-8")
    assert page.index("worst") < page.index("more doubt") < page.index("Left out") < page.index("7 LoRAs")
    assert not set(page) & {"\x1b"}
    assert "<b>" not in page
    assert "12 files that are no models" in page


def test_a_tree_is_scanned_with_one_command(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    root = tmp_path / "models"
    shutil.copytree(tiny_folder, root / "encoders" / "mine")
    put(root / "VAE" / "vae.safetensors", OTHERS["a vae"][0])
    out = tmp_path / "out"
    code = main.main(["--models", str(root), "--anchor", str(tiny_folder), "--output", str(out), "--images", "0", *QUICK])
    assert code == 3
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert [row["model"] for row in summary["models"]] == [str(root / "encoders" / "mine")]
    assert [(one["reason"], one["paths"]) for one in summary["skipped"]] == [
        ("tensors of something else than a text encoder", [str(root / "VAE" / "vae.safetensors")])
    ]
    assert "left out: 1 tensors of something else than a text encoder" in capsys.readouterr().err
