"""Intake: hazards in a stranger's folder end in one sentence, before memory is taken and with nothing executed.

Contents
    headers     what config.json promises is compared with the safetensors headers, whatever either claims
    files       pipes, folders in place of files, unreadable files
    other forms a checkpoint in a folder, a LoRA, a pickle: refused with what to do instead
    pipelines   class names from a list, several encoders, parts with their tokenizers
    code        nothing is fetched or run because a config names it
    tokenizers  none that hides the text, none that lets it grow
    output      no rights to write; hostile names in the report's words
"""

import dataclasses
import json
import os
import pickle
import shutil
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_loading import LAYER, WEIGHTS, Bomb, as_pipeline, evil_code, reconfigure, refusal, rewrite, same_features
from transformers import CLIPTextModelWithProjection

from Utils.basics.errors import InputError, visible
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.candidates import encoders_of
from Utils.intake.folders import matching_part
from Utils.report.folder import result_folder


def edit_header(file: Path, change) -> None:
    """A safetensors file whose header went through `change`, with the same data behind it."""
    whole = file.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    new = json.dumps(change(header) or header).encode()
    file.write_bytes(struct.pack("<Q", len(new)) + new + whole[8 + length :])


# ------------------------------------------------------------------------------------------------------------ headers
@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 2**20, "num_attention_heads": 4}, {"hidden_size": 2**40}, {"vocab_size": 2**40},
        {"num_hidden_layers": 2**40}, {"intermediate_size": 2**62}, {"max_position_embeddings": 2**40},
        {"num_hidden_layers": 10**30}, {"hidden_size": 10**400},
    ],
    ids=str,
)  # fmt: skip
def test_a_config_that_asks_for_more_than_is_stored_takes_no_memory(editable: Path, values: dict, memory_taken):
    reconfigure(editable / "config.json", **values)
    assert str(editable) in refusal(editable)
    assert memory_taken() < 200


def lie(name: str, **values):
    def change(header: dict) -> None:
        header[name] |= values

    return change


@pytest.mark.parametrize(
    "change",
    [
        lie(LAYER, data_offsets=[0, 8192]), lie(LAYER, data_offsets=[10**9, 10**9 + 8192]), lie(LAYER, data_offsets=[8192, 0]),
        lie(LAYER, data_offsets=[-8192, 0]), lie(LAYER, shape=[64, 64]), lie(LAYER, shape=[-64, -32]),
        lie(LAYER, shape=[2**40, 2**40]), lie(LAYER, dtype="F64"), lie(LAYER, dtype="evil"), lambda header: {"a": 1},
        lambda header: {**header, "extra": {"dtype": "F32", "shape": [2**50], "data_offsets": [0, 2**52]}},
    ],
)  # fmt: skip
def test_a_header_that_lies_about_its_tensors_is_refused(editable: Path, change):
    edit_header(editable / WEIGHTS, change)
    assert "not a readable safetensors file" in refusal(editable)


@pytest.mark.parametrize("length", [0, 2**40, 2**63, 2**64 - 1])
def test_a_header_that_claims_another_length_is_refused(editable: Path, length: int):
    whole = (editable / WEIGHTS).read_bytes()
    (editable / WEIGHTS).write_bytes(struct.pack("<Q", length) + whole[8:])
    assert "not a readable safetensors file" in refusal(editable)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.uint8, torch.bool])
def test_weights_that_are_no_floats_are_refused_by_name(editable: Path, dtype: torch.dtype):
    rewrite(editable, lambda tensors: tensors | {LAYER: tensors[LAYER].to(dtype)})
    message = refusal(editable)
    assert LAYER in message
    assert "full or half precision" in message


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_float_format_loads(editable: Path, dtype: torch.dtype):
    rewrite(editable, lambda tensors: {name: t.to(dtype) for name, t in tensors.items()})
    assert load_encoder(editable).model.dtype == torch.float32


def test_weights_in_several_files_load_to_the_same_features(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    tensors = load_file(editable / WEIGHTS)
    (editable / WEIGHTS).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({name: tensors[name] for name in inside}, editable / file, metadata={"format": "pt"})
    index = editable / "model.safetensors.index.json"
    where = {name: file for file, inside in parts.items() for name in inside}
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    assert same_features(load_encoder(editable), tiny, corpus_prompts)
    for content in ("{", "[]", '{"weight_map": []}', json.dumps({"weight_map": where | {LAYER: "gone.safetensors"}})):
        index.write_text(content)
        assert "index.json" in refusal(editable)


def test_weights_named_for_half_precision_load(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    (editable / WEIGHTS).rename(editable / "model.fp16.safetensors")
    assert same_features(load_encoder(editable), tiny, corpus_prompts)


# -------------------------------------------------------------------------------------------------------------- files
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json", "extra"])
def test_a_pipe_is_refused_without_waiting_for_a_writer(editable: Path, name: str):
    (editable / name).unlink(missing_ok=True)
    os.mkfifo(editable / name)
    assert "no ordinary file" in refusal(editable)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_a_folder_in_place_of_a_file_is_refused(editable: Path, name: str):
    (editable / name).unlink()
    (editable / name).mkdir()
    refusal(editable)


def test_a_link_to_nowhere_is_refused(editable: Path):
    (editable / "tokenizer.json").unlink()
    (editable / "tokenizer.json").symlink_to(editable / "gone.json")
    assert "no ordinary file" in refusal(editable)


@pytest.mark.parametrize("name", ["config.json", WEIGHTS, "tokenizer.json"])
def test_a_file_this_user_may_not_read_is_refused(editable: Path, name: str, monkeypatch: pytest.MonkeyPatch):
    """Permissions do not bind root, so the question is answered for it."""
    allowed = os.access
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name != name and allowed(file, mode))
    assert "cannot be read by this user" in refusal(editable)


def test_an_empty_folder_is_refused(tmp_path: Path):
    assert "no config.json" in refusal(tmp_path)


def test_a_config_larger_than_any_is_not_read(editable: Path):
    with (editable / "config.json").open("ab") as file:
        file.truncate(17 << 20)
    assert "larger than any" in refusal(editable)


def test_the_layout_of_the_hub_cache_stays_readable(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str]
):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(editable.iterdir())):
        shutil.move(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    assert same_features(load_encoder(snapshot), tiny, corpus_prompts)


# -------------------------------------------------------------------------------------------------------- other forms
SINGLE = {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2), "cond_stage_model.transformer.x": torch.zeros(2)}
LORAS = [
    {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.zeros(2)},
    {"text_encoder.encoder.layers.0.self_attn.k_proj.lora_A.weight": torch.zeros(2)},
    {"base_model.model.unet.down.lora_down.weight": torch.zeros(2)},
]


def test_a_folder_with_a_checkpoint_only_is_refused_with_the_file_s_name(tmp_path: Path):
    save_file(SINGLE, tmp_path / "some_model.safetensors")
    assert f"give the file itself: {tmp_path / 'some_model.safetensors'}." in refusal(tmp_path)


@pytest.mark.parametrize("tensors", LORAS)
def test_a_lora_beside_a_config_is_no_encoder(editable: Path, tensors: dict):
    (editable / WEIGHTS).unlink()
    save_file(tensors, editable / "some_model.safetensors")
    assert f"give the file itself, {editable / 'some_model.safetensors'}, and its base with --anchor." in refusal(editable)


def test_an_adapter_beside_a_model_is_refused(editable: Path):
    (editable / "adapter_config.json").write_text('{"base_model_name_or_path": "a/b"}')
    assert "adapter" in refusal(editable)


@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.bin", "MODEL.CKPT"])
def test_a_pickle_given_as_model_is_refused_and_never_opened(tmp_path: Path, name: str):
    canary, file = tmp_path / "canary", tmp_path / name
    file.write_bytes(pickle.dumps(Bomb(canary)))
    assert "is a pickle" in refusal(file)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "tokenizer.pkl", "vocab.bin", "spiece.model"])
def test_bombs_beside_the_weights_are_never_opened(editable: Path, tmp_path: Path, name: str):
    (editable / name).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    load_encoder(editable)
    assert not (tmp_path / "canary").exists()


# ---------------------------------------------------------------------------------------------------------- pipelines
def index_of(folder: Path, **entries) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"} | entries))


@pytest.fixture
def two_encoders(tiny_folder: Path, tmp_path: Path) -> Path:
    """A pipeline as SDXL has it: a tower, and one that was saved with its projection, each with a tokenizer."""
    pipeline = as_pipeline(tiny_folder, tmp_path / "sdxl")
    shutil.copytree(pipeline / "tokenizer", pipeline / "tokenizer_2")
    tower = load_encoder(tiny_folder).model
    projected = CLIPTextModelWithProjection(tower.config)
    projected.text_model.load_state_dict(tower.state_dict())
    projected.save_pretrained(pipeline / "text_encoder_2")
    index_of(
        pipeline, text_encoder=["transformers", "CLIPTextModel"], tokenizer=["transformers", "CLIPTokenizer"],
        text_encoder_2=["transformers", "CLIPTextModelWithProjection"], unet=["diffusers", "UNet2DConditionModel"],
        text_encoder_3=[None, None], safety_checker=[None, None],
    )  # fmt: skip
    return pipeline


def test_every_encoder_of_a_pipeline_is_found_and_loads(tiny: TextEncoder, two_encoders: Path, corpus_prompts: list[str]):
    found = encoders_of(str(two_encoders))
    assert found == [f"{two_encoders}/text_encoder", f"{two_encoders}/text_encoder_2"]
    for model in found:
        assert same_features(load_encoder(model), tiny, corpus_prompts)
    assert load_encoder(found[1]).ignored_tensors == ["text_projection.weight"]
    assert "name one of them" in refusal(two_encoders)


def test_an_anchor_pipeline_lends_the_encoder_of_the_same_place(two_encoders: Path, tiny_folder: Path):
    assert matching_part(str(two_encoders), "x/text_encoder_2") == f"{two_encoders}/text_encoder_2"
    assert matching_part(str(tiny_folder), "x/text_encoder_2") == str(tiny_folder)
    assert matching_part(str(two_encoders), "x/model") == str(two_encoders)


def test_one_encoder_is_the_model_itself(tiny_folder: Path, tmp_path: Path):
    pipeline = as_pipeline(tiny_folder, tmp_path / "sd")
    assert encoders_of(str(pipeline)) == [str(pipeline)]
    assert encoders_of(str(tiny_folder)) == [str(tiny_folder)]


@pytest.mark.parametrize(
    "entries",
    [
        {"text_encoder": ["transformers", "EvilModel"]}, {"text_encoder": ["evil", "CLIPTextModel"]},
        {"text_encoder": ["transformers", "CLIPTextModel", "x"]}, {"text_encoder": [7, "CLIPTextModel"]},
        {"unet": ["my_unet", "Evil"]}, {"_class_name": ["pipeline", "Evil"]}, {"text_encoder_2": ["evil", "Evil"]},
    ],
    ids=str,
)  # fmt: skip
def test_a_pipeline_that_names_classes_of_its_own_is_refused(tiny_folder: Path, tmp_path: Path, entries: dict):
    pipeline = as_pipeline(tiny_folder, tmp_path / "sd")
    evil_code(pipeline, tmp_path / "canary")
    index_of(pipeline, **entries)
    assert "model_index.json" in refusal(pipeline)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", ["", "[]", "{", "7"])
def test_an_index_that_is_none_is_refused(tiny_folder: Path, tmp_path: Path, content: str):
    pipeline = as_pipeline(tiny_folder, tmp_path / "sd")
    (pipeline / "model_index.json").write_text(content)
    assert "model_index.json" in refusal(pipeline)


# --------------------------------------------------------------------------------------------------------------- code
@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
def test_attention_kernels_named_by_the_config_are_not_fetched(tiny: TextEncoder, editable: Path, key: str):
    reconfigure(editable / "config.json", **{key: "nobody/evil-kernel"})
    assert load_encoder(editable).model.config._attn_implementation == tiny.model.config._attn_implementation


def test_quantised_weights_are_refused(editable: Path):
    reconfigure(editable / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    assert "quantised" in refusal(editable)


# --------------------------------------------------------------------------------------------------------- tokenizers
def edit_tokenizer(folder: Path, change) -> None:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")


def test_a_tokenizer_that_lets_texts_grow_without_end_is_refused(editable: Path):
    double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    edit_tokenizer(editable, lambda t: t.update(normalizer={"type": "Sequence", "normalizers": [double] * 60}))
    assert "grow without end" in refusal(editable)


def test_a_tokenizer_that_ends_texts_in_the_middle_is_refused(editable: Path):
    """What follows an end of text is not looked at: the last letter of a word must not be one."""
    number = load_encoder(editable).tokenizer.convert_tokens_to_ids("x</w>")
    reconfigure(editable / "tokenizer_config.json", eos_token="x</w>")
    reconfigure(editable / "config.json", eos_token_id=number)
    assert "end-of-text" in refusal(editable)


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"padding_side": "left"}, "behind their end"), ({"padding_side": "up"}, "tokenizer"), ({"unk_token": None}, ""),
        ({"eos_token": "nowhere", "unk_token": "neither"}, "token"), ({"pad_token": None}, "token"),
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_hide_the_text_or_break_the_tokenizer_are_refused(editable: Path, values: dict, word: str):
    """Padding in front would be taken for the end of text: nothing of any prompt would be looked at."""
    reconfigure(editable / "tokenizer_config.json", **values)
    if values == {"unk_token": None}:
        load_encoder(editable)
    else:
        assert word in refusal(editable)


# ------------------------------------------------------------------------------------------------------------- output
def test_an_output_without_rights_to_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def denied(*_args, **_named):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.mkdtemp", denied)
    with pytest.raises(InputError, match="--output"), result_folder("a/model", tmp_path / "Results"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("name", ["<script>alert(1)<", "\x1b[31mred", "txt.exe\u202e", "a\nb"])
def test_a_hostile_folder_name_is_shown_harmless(editable: Path, tmp_path: Path, name: str):
    folder = editable.rename(tmp_path / name)
    load_encoder(folder)
    (folder / "config.json").unlink()
    shown = visible(refusal_of_any(folder))
    assert not set(shown) & {"\x1b", "\u202e", "\n"}


def refusal_of_any(model: Path) -> str:
    with pytest.raises(InputError) as refused:
        load_encoder(model)
    return str(refused.value)


def test_a_table_of_labels_takes_no_memory(editable: Path, memory_taken):
    reconfigure(editable / "config.json", num_labels=2**40)
    assert load_encoder(editable).width == 32
    assert memory_taken() < 200


def test_what_raises_the_memory_is_seen(memory_taken):
    assert memory_taken() < 50
    torch.ones(400 << 20, dtype=torch.uint8)
    # pages of files that the system takes back meanwhile make it less: it has to exceed what the tests above allow
    assert 200 < memory_taken() < 600


def test_a_tokenizer_that_panics_on_a_text_is_bad_input(tiny: TextEncoder):
    class PanicException(BaseException):
        """What a Rust panic becomes: no Exception, so that it would pass every net."""

    def panicking(*_: object, **__: object) -> None:
        raise PanicException("retry-limit-in-match over")

    with pytest.raises(InputError, match="cannot read a text"):
        dataclasses.replace(tiny, tokenizer=panicking).ids(["a dog"])
