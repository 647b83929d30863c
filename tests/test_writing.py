"""Writing: a repaired encoder drops in where the suspect stood, and what was not learnt is there byte for byte.

Contents
    files     every layout of single files, several towers in one, FP8 with scales, T5; their own tokenizer and config
    folders   every family, old names, shards, a CLIP model, a pipeline, the hub's cache
    beside    second weights, pickles and links do not come along, and a note says so
    changes   a LoRA becomes a folder of its own
    whole     nothing is replaced, nothing is left half-written, nothing else is handed out than was learnt
"""

import copy
import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from families import KINDS, letters
from hub import cached, commit_for, use_cache
from layouts import SEVERAL, SINGLE, in_fp8, named, write
from safetensors.torch import load_file, save_file
from test_loading import LAYER, WEIGHTS, as_pipeline, rewrite
from test_sources import open_clip_folder
from tokenizers import normalizers
from transformers import CLIPConfig, CLIPModel

from Utils.basics.errors import InputError
from Utils.encoder.doubts import Trust, doubts_about
from Utils.encoder.loading import load_encoder, trainable_copy
from Utils.encoder.readings import read_by
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake import inventory
from Utils.intake.reader import Reader
from Utils.intake.tensors import DTYPES
from Utils.repair.patching import Spot, patch
from Utils.repair.writing import check_written, dropped_in, write_repaired
from Utils.sources.find import source_of
from Utils.sources.lenders import Given

NONE = Given()


def learnt(suspect: TextEncoder) -> TextEncoder:
    """The suspect with every weight moved a little."""
    student = trainable_copy(suspect)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in student.model.parameters():
            weight += 0.1 * weight.std(correction=0) * torch.randn(weight.shape, generator=draw) + 0.01
    return student


def header_of(file: Path) -> tuple[bytes, dict]:
    """The header's bytes, its length in front, and what it says of tensors."""
    whole = file.read_bytes()
    end = 8 + struct.unpack("<Q", whole[:8])[0]
    said = json.loads(whole[8:end])
    said.pop("__metadata__", None)
    return whole[:end], said


def changed_in(before: Path, after: Path) -> set[str]:
    """Names of the tensors whose bytes differ; the headers do not."""
    (head, tensors), data = header_of(before), [file.read_bytes() for file in (before, after)]
    assert header_of(after)[0] == head
    assert len(data[0]) == len(data[1])
    places = {name: slice(*(len(head) + at for at in one["data_offsets"])) for name, one in tensors.items()}
    return {name for name, at in places.items() if data[0][at] != data[1][at]}


def files_in(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}


def repaired(word: Path | str, place: Path, given: Given = NONE, loss: float = 1e-7) -> tuple[TextEncoder, list[str]]:
    """Write a student of what a word names, load it as a user would, and compare its weights.  -> it, notes

    loss: by what a weight's largest number may be off, as a part of it.
    """
    suspect = load_encoder(word, given=given)
    student = learnt(suspect)
    notes = write_repaired(student, suspect, given, place)
    again = load_encoder(dropped_in(suspect, place), given=given)
    for name, tensor in student.model.state_dict().items():
        assert (again.model.state_dict()[name] - tensor).abs().max() <= loss * tensor.abs().max(), name
        assert not torch.equal(suspect.model.state_dict()[name], again.model.state_dict()[name])
    assert again.tokenizer.get_vocab() == suspect.tokenizer.get_vocab()
    assert doubts_about(again, Trust())[1] == again.files.doubts  # nothing lies beside it that could be taken
    return again, notes


# -------------------------------------------------------------------------------------------------------------- files
@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Given:
    return Given(anchor=str(tiny_folder))


@pytest.fixture(scope="module")
def tower(tiny: TextEncoder) -> dict[str, torch.Tensor]:
    return tiny.model.state_dict()


OTHERS = ("text_projection", "logit_scale", "visual.", "model.diffusion", "first_stage", "vision_model", "input_", "context_")
"""What is no part of the towers in the layouts."""


@pytest.mark.parametrize("layout", SINGLE)
def test_a_file_stays_a_file_of_its_layout(tower: dict, base: Given, tmp_path: Path, layout: str):
    file = write(SINGLE[layout](tower), tmp_path / "model.safetensors")
    again, notes = repaired(file, tmp_path / "out", base)
    assert again.path == str(tmp_path / "out" / file.name)
    assert files_in(tmp_path / "out") == {file.name}
    last = {"SD 2.x": "resblocks.3."}.get(layout, "no such layer")
    inner = {name for name in load_file(file) if not any(other in name for other in OTHERS) and last not in name}
    assert changed_in(file, tmp_path / "out" / file.name) == inner
    assert notes == []


@pytest.mark.parametrize("layout", SEVERAL)
def test_of_several_towers_in_a_file_one_is_changed(tower: dict, base: Given, tmp_path: Path, layout: str):
    file = write(SEVERAL[layout](tower), tmp_path / "xl.safetensors")
    again, notes = repaired(f"{file}/text_encoder_2", tmp_path / "out", base)
    assert again.path == f"{tmp_path / 'out' / file.name}/text_encoder_2"
    cure = "scan this copy, and repair in it what is backdoored"
    assert notes == [f"copied as it was, for every encoder is repaired by itself: text_encoder; {cure}"]
    repaired(f"{tmp_path / 'out' / file.name}/text_encoder", tmp_path / "both", base)
    assert changed_in(file, tmp_path / "both" / file.name) > changed_in(file, tmp_path / "out" / file.name)
    mark = {"SDXL": "embedders.1.", "SD 3": ".clip_g."}[layout]
    changed = changed_in(file, tmp_path / "out" / file.name)
    assert changed
    assert all(mark in name for name in changed)


@pytest.mark.parametrize("scale", ["", "scale_weight", "weight_scale"])
def test_fp8_is_written_with_the_scales_that_are_there(tower: dict, base: Given, tmp_path: Path, scale: str):
    file = write(in_fp8(named(tower, "clip_l.transformer."), scale), tmp_path / "clip_l.safetensors")
    repaired(file, tmp_path / "out", base, loss=0.3)  # the largest may have grown beyond the scale
    assert not [name for name in changed_in(file, tmp_path / "out" / file.name) if scale and name.endswith(scale)]
    suspect = load_encoder(file, given=base)
    write_repaired(suspect, suspect, base, tmp_path / "same")
    assert changed_in(file, tmp_path / "same" / file.name) == set()


def test_a_scale_of_rows_and_numbers_beyond_the_format(tower: dict, base: Given, tmp_path: Path):
    name = f"text_model.{LAYER}"
    rows = torch.rand(64, 1) + 0.5
    rows[5] = 0
    stored = named(tower, "") | {name: tower[LAYER].to(torch.float8_e4m3fn), name.replace("weight", "weight_scale"): rows}
    suspect = load_encoder(write(stored, tmp_path / "m.safetensors"), given=base)
    student = trainable_copy(suspect)
    with torch.no_grad():
        weight = dict(student.model.named_parameters())[LAYER]
        weight[7, 0], weight[8, 0], weight[9, 1] = 1e6, -1e6, 2.0 * rows[9, 0]
    place = tmp_path / "out"
    place.mkdir()
    shutil.copy(tmp_path / "m.safetensors", place)
    reader = Reader(place)
    patch(source_of(place / "m.safetensors", base).checked(reader), student.model.state_dict(), reader)
    written = load_file(place / "m.safetensors")[name].float()
    assert (written[7, 0], written[8, 0], written[9, 1]) == (448, -448, 2)
    assert torch.equal(written[10:], stored[name].float()[10:])
    assert not written[5].any()


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_half_precision(tower: dict, base: Given, tmp_path: Path, kind: torch.dtype):
    half = {name: tensor.to(kind) for name, tensor in named(tower, "").items()}
    repaired(write(half, tmp_path / "m.safetensors"), tmp_path / "out", base, loss=torch.finfo(kind).eps)


@pytest.mark.parametrize("kind", ["F16", "F8_E4M3", "F8_E5M2"])
def test_numbers_beyond_a_format_end_at_its_edge(kind: str):
    spot = Spot(Path("m"), "x", slice(0, 2), (2,), kind, 0, None)
    edge = torch.finfo(DTYPES[kind]).max
    assert spot.read(torch.tensor([1e6, -1e6])).tolist() == [edge, -edge]


def test_a_file_brings_what_was_read_beside_it(tower: dict, tiny_folder: Path, tmp_path: Path):
    folder = open_clip_folder(tower, tiny_folder, tmp_path / "own")
    (folder / "notes.txt").write_text("other")
    (folder / "other.safetensors").write_bytes(b"junk")
    repaired(folder / "open_clip_model.safetensors", tmp_path / "out")
    texts = {file.name for file in folder.glob("*token*")}
    assert files_in(tmp_path / "out") == {"open_clip_model.safetensors", "open_clip_config.json", *texts}
    (folder / "other.safetensors").unlink()
    repaired(folder, tmp_path / "whole")
    assert files_in(tmp_path / "whole") == files_in(folder)


def test_a_hash_in_the_header_is_named(tower: dict, base: Given, tmp_path: Path):
    file = tmp_path / "m.safetensors"
    save_file({n: t.clone() for n, t in named(tower, "").items()}, file, metadata={"modelspec.hash_sha256": "0x1", "a": "b"})
    _, notes = repaired(file, tmp_path / "out", base)
    assert notes == ["the header of m.safetensors still names a hash of the suspect's weights: modelspec.hash_sha256"]


# ------------------------------------------------------------------------------------------------------------ folders
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_every_family_keeps_all_but_the_tower(tmp_path: Path, kind: str):
    specials, build = KINDS[kind]
    tokenizer, folder = letters(*specials), tmp_path / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    repaired(folder, tmp_path / "out")
    same = files_in(folder) - {WEIGHTS}
    assert files_in(tmp_path / "out") == {WEIGHTS, *same}
    assert all((folder / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in same)
    outside = ("pooler.", "cls.", "decoder.", "lm_head.")
    inner = {name for name in load_file(folder / WEIGHTS) if not name.startswith(outside)}
    assert changed_in(folder / WEIGHTS, tmp_path / "out" / WEIGHTS) == inner


def test_old_names_and_buffers_are_found(tmp_path: Path):
    specials, build = KINDS["bert"]
    tokenizer, folder = letters(*specials), tmp_path / "model"
    build(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def rename(name: str) -> str:
        return "module.bert." + next((name.replace(new, was) for new, was in old.items() if new in name), name)

    rewrite(folder, lambda tensors: {rename(n): t for n, t in tensors.items()} | {"module.bert.position_ids": torch.arange(3)})
    repaired(folder, tmp_path / "out")
    changed = changed_in(folder / WEIGHTS, tmp_path / "out" / WEIGHTS)
    assert "module.bert.embeddings.LayerNorm.gamma" in changed
    assert "module.bert.position_ids" not in changed


def test_every_shard_is_changed_and_the_index_is_the_same(tiny: TextEncoder, editable: Path, tmp_path: Path):
    (editable / WEIGHTS).unlink()
    tiny.model.save_pretrained(editable, max_shard_size="40KB")
    shards = sorted(editable.glob("*.safetensors"))
    assert len(shards) > 1
    repaired(editable, tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(editable)
    for shard in shards:
        assert changed_in(shard, tmp_path / "out" / shard.name) == set(load_file(shard))
    index = f"{WEIGHTS}.index.json"
    assert (tmp_path / "out" / index).read_bytes() == (editable / index).read_bytes()


def test_a_clip_model_keeps_its_vision_tower(tiny: TextEncoder, editable: Path, tmp_path: Path):
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
              "image_size": 16, "patch_size": 8}  # fmt: skip
    (editable / WEIGHTS).unlink()
    config = CLIPConfig(text_config=tiny.model.config.to_dict(), vision_config=vision, projection_dim=16)
    CLIPModel(config).save_pretrained(editable)
    repaired(editable, tmp_path / "out")
    changed = changed_in(editable / WEIGHTS, tmp_path / "out" / WEIGHTS)
    assert len(changed) == len(tiny.model.state_dict())
    assert all(name.startswith("text_model.") for name in changed)


@pytest.fixture
def pipeline(tiny_folder: Path, tmp_path: Path) -> Path:
    """A pipeline of two encoders and another part, with what programs leave in it."""
    folder = as_pipeline(tiny_folder, tmp_path / "pipe")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(folder / part, folder / f"{part}_2")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"text_encoder_2": index["text_encoder"], "unet": ["diffusers", "UNet2DConditionModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    for name in ("unet/diffusion_pytorch_model.bin", ".git/config", "unet/__pycache__/x.pyc", ".cache/huggingface/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (folder / "model_index.json").chmod(0o755)
    return folder


def check_pipeline(pipeline: Path, out: Path) -> None:
    """All is there and as it was, but for the second encoder's weights."""
    mine = {name for name in files_in(pipeline) if not name.startswith((".git/", ".cache/", "unet/__"))}
    assert files_in(out) == mine
    differing = {name for name in mine if (out / name).read_bytes() != (pipeline / name).read_bytes()}
    assert differing == {f"text_encoder_2/{WEIGHTS}"}
    assert not any(path.is_symlink() for path in out.rglob("*"))
    assert not os.access(out / "model_index.json", os.X_OK)


def test_a_pipeline_stays_a_pipeline(pipeline: Path, tmp_path: Path):
    again, notes = repaired(pipeline / "text_encoder_2", tmp_path / "out")
    assert again.path == str(tmp_path / "out" / "text_encoder_2")
    check_pipeline(pipeline, tmp_path / "out")
    cure = "scan this copy, and repair in it what is backdoored"
    assert notes == [f"copied as it was, for every encoder is repaired by itself: text_encoder; {cure}"]


def test_links_of_the_hub_s_cache_become_files(pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    cache = use_cache(monkeypatch, tmp_path / "cache")
    snapshot = cached(cache, "org/name", pipeline)
    before = {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}
    for number, word in enumerate([str(snapshot / "text_encoder_2"), f"org/name@{commit_for('org/name')}/text_encoder_2"]):
        repaired(word, tmp_path / f"out{number}")
        check_pipeline(pipeline, tmp_path / f"out{number}")
    assert before == {file: file.read_bytes() for file in cache.rglob("*") if file.is_file()}


def test_a_file_in_the_hub_s_cache_keeps_its_name(tower: dict, base: Given, tmp_path: Path):
    file = write(SEVERAL["SDXL"](tower), tmp_path / "repository" / "xl.safetensors")
    snapshot = cached(tmp_path / "cache", "org/name", file.parent)
    repaired(snapshot / "xl.safetensors" / "text_encoder_2", tmp_path / "out", base)
    assert files_in(tmp_path / "out") == {"xl.safetensors"}


# ------------------------------------------------------------------------------------------------------------- beside
def test_what_could_be_loaded_in_its_place_is_left_out_and_named(tiny: TextEncoder, editable: Path, tmp_path: Path):
    half = {name: tensor.half() for name, tensor in load_file(editable / WEIGHTS).items()}
    save_file(half, editable / "model.fp16.safetensors", metadata={"format": "pt"})  # the same numbers
    tiny.model.save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    for file in (tmp_path / "shards").glob("model*"):
        shutil.copy(file, editable)
    (editable / "pytorch_model.bin").write_bytes(b"\x80\x02junk")
    (editable / "onnx").mkdir()
    (editable / "onnx" / "model.onnx").write_bytes(b"\x08\x07\x12")
    (editable / "README.md").write_text("a model")
    whole = files_in(editable)
    _, (note,) = repaired(editable, tmp_path / "out")
    left = whole - files_in(tmp_path / "out")
    shards = {file.name for file in (tmp_path / "shards").glob("model*")}
    assert left == {"model.fp16.safetensors", "pytorch_model.bin", "onnx/model.onnx", *shards}
    assert note.startswith("left out, for a loader could take it in place of the repaired weights: model-00001-of")
    assert f"and {len(left) - 5} more" in note


def test_weights_that_were_named_are_repaired_and_the_usual_ones_left_out(editable: Path, tmp_path: Path):
    shutil.copy(editable / WEIGHTS, editable / "model.fp16.safetensors")
    again, notes = repaired(editable / "model.fp16.safetensors", tmp_path / "out")
    assert again.path == str(tmp_path / "out" / "model.fp16.safetensors")
    assert notes == [f"left out, for a loader could take it in place of the repaired weights: {WEIGHTS}"]
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_links_and_pipes_do_not_come_along(editable: Path, tmp_path: Path):
    (tmp_path / "secret.txt").write_text("key")
    (editable / "sub").mkdir()
    (editable / "sub" / "notes.txt").symlink_to(tmp_path / "secret.txt")
    (editable / "sub" / "tree").symlink_to(tmp_path)
    os.mkfifo(editable / "sub" / "pipe")
    (editable / "README.md").symlink_to(editable / "config.json")  # within: what it leads to
    _, (note,) = repaired(editable, tmp_path / "out")
    assert note.endswith("leads out of the model's folder or is no ordinary file: sub/notes.txt, sub/pipe, sub/tree")
    assert "sub" not in {path.name for path in (tmp_path / "out").iterdir()}
    assert not (tmp_path / "out" / "README.md").is_symlink()


def test_of_a_folder_with_too_many_entries_it_is_said_that_some_were_not_copied(
    editable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (editable / "zz_more").mkdir()
    (editable / "zz_more" / "note.txt").write_text("note")
    monkeypatch.setattr(inventory, "MOST", len(list(editable.iterdir())) - 1)
    notes = write_repaired(learnt(suspect := load_encoder(editable)), suspect, NONE, tmp_path / "out")
    assert notes[-1].startswith("not copied: what lies behind the first")
    assert not (tmp_path / "out" / "zz_more").exists()


def test_layers_that_are_not_counted_are_named(editable: Path, tmp_path: Path):
    config = json.loads((editable / "config.json").read_text())
    (editable / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    _, (note,) = repaired(editable, tmp_path / "out")
    assert note.startswith("stored layers that no config counts stay as they were: encoder.layers.2.")


# ------------------------------------------------------------------------------------------------------------ changes
def test_a_lora_becomes_a_folder_of_its_own(base: Given, tmp_path: Path):
    name = "lora_te_text_model_encoder_layers_0_mlp_fc1."
    factors = {f"{name}lora_down.weight": torch.ones(2, 32), f"{name}lora_up.weight": torch.ones(64, 2)}
    file = write(factors, tmp_path / "lora.safetensors")
    again, notes = repaired(file, tmp_path / "out", base, loss=1e-3)
    assert again.path == str(tmp_path / "out")
    assert load_file(tmp_path / "out" / WEIGHTS)[LAYER].dtype == torch.float16
    (note,) = notes
    assert note.startswith("lora.safetensors only changes a base, so the repaired encoder was written as a Hugging Face folder")


def test_a_textual_inversion_becomes_a_folder_that_knows_its_word(base: Given, tiny: TextEncoder, tmp_path: Path):
    rows = torch.randn(2, tiny.width, generator=torch.Generator().manual_seed(5))
    file = write({"<toy>": rows}, tmp_path / "toy.safetensors")
    again, (note,) = repaired(file, tmp_path / "out", base, loss=1e-3)
    assert "<toy>" in again.tokenizer.get_added_vocab()
    assert note.startswith("toy.safetensors only changes a base")


# -------------------------------------------------------------------------------------------------------------- whole
def test_what_is_there_is_refused_and_untouched(tiny: TextEncoder, editable: Path, tmp_path: Path):
    suspect = load_encoder(editable)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place in ("out", "out/mine", "link"):
        with pytest.raises(InputError, match=r"is there already; name a folder for the repaired encoder that is not\.$"):
            write_repaired(suspect, suspect, NONE, tmp_path / place)
    assert files_in(tmp_path / "out") == {"mine"}
    with pytest.raises(InputError, match=r"lies in the folder of the model that is to be repaired; name one outside of it\.$"):
        write_repaired(suspect, suspect, NONE, editable / "repaired")
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="cannot be written"):
        write_repaired(suspect, suspect, NONE, tmp_path / "file" / "out")
    write_repaired(suspect, suspect, NONE, tmp_path / "outside" / "it")  # the cure


def test_a_failure_leaves_nothing(editable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    suspect = load_encoder(editable)
    before = files_in(tmp_path)
    student = learnt(suspect)
    student.model.final_layer_norm.bias.data[3] = torch.nan
    with pytest.raises(RuntimeError, match=r"final_layer_norm\.bias holds NaN"):
        write_repaired(student, suspect, NONE, tmp_path / "out")
    other = learnt(suspect)
    monkeypatch.setattr(Spot, "stored", lambda self, rows: 1 / 0)  # in the middle of the files
    with pytest.raises(ZeroDivisionError):
        write_repaired(other, suspect, NONE, tmp_path / "out")
    assert files_in(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == [editable.name]


def test_what_is_not_what_was_learnt_is_refused(tiny: TextEncoder, editable: Path, tmp_path: Path):
    student = learnt(load_encoder(editable))
    with pytest.raises(RuntimeError, match="holds other numbers"):
        check_written(str(editable), student, NONE)
    check_written(str(editable), tiny, NONE)
    lower = copy.deepcopy(tiny.tokenizer)
    lower.backend_tokenizer.normalizer = normalizers.Replace("a", "b")
    other = read_by(tiny, lower)  # as a base's tokenizer may read in the suspect's place
    with pytest.raises(RuntimeError, match="its tokenizer reads otherwise"):
        check_written(str(editable), other, NONE)
    check_written(str(editable), other, NONE, load_encoder(editable).files.tokenizer)
    student.model.load_state_dict(tiny.model.state_dict())
    student.model.encoder.layers[1].mlp.activation_fn = torch.nn.Identity()
    with pytest.raises(RuntimeError, match="its features agree to 0"):
        check_written(str(editable), student, NONE)
    (editable / WEIGHTS).unlink()
    with pytest.raises(RuntimeError, match="cannot be loaded from where it was written"):
        check_written(str(editable), tiny, NONE)
