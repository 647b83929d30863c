"""Loading: what is an encoder is loaded as it is; everything else is refused in one sentence and never executed.

Contents
    families    a text encoder, a CLIP model, a pipeline folder and old checkpoints give the same features
    folder      missing, not a folder, without config
    config      no JSON, another type, values that no model can have
    weights     pickles, damage, missing, unknown and misshapen tensors, NaN
    strangers   nothing outside the folder is followed, no code of the model runs
    tokenizer   missing, damaged, not fitting
    tools       saving, comparing, devices
"""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextModel

from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder, pick_device, same_shape, save_encoder
from Utils.encoder.text_encoder import TextEncoder

WEIGHTS = "model.safetensors"
LAYER = "encoder.layers.1.mlp.fc1.weight"


def refusal(model: Path | str) -> str:
    """What the refusal says; it is an InputError of one sentence."""
    with pytest.raises(InputError) as refused:
        load_encoder(model)
    message = str(refused.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def rewrite(folder: Path, change) -> None:
    """Weights after `change`, a function from tensors by name to tensors by name."""
    save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})


def reconfigure(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def same_features(a: TextEncoder, b: TextEncoder, prompts: list[str]) -> bool:
    return torch.equal(a(a.ids(prompts)), b(b.ids(prompts)))


def as_pipeline(encoder: Path, folder: Path) -> Path:
    """The files of an encoder's folder where a diffusers pipeline has them."""
    for file in encoder.iterdir():
        part = folder / ("tokenizer" if file.name.startswith("token") else "text_encoder")
        part.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, part)
    index = {"_class_name": "StableDiffusionPipeline", "text_encoder": ["transformers", "CLIPTextModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


# ----------------------------------------------------------------------------------------------------------- families
def test_a_loaded_encoder_gives_the_features_of_its_own_model(tiny: TextEncoder, tiny_folder: Path, corpus_prompts: list[str]):
    model = CLIPTextModel.from_pretrained(tiny_folder).eval()
    ids = tiny.ids(corpus_prompts)
    with torch.no_grad():
        assert torch.equal(tiny(ids), model(input_ids=ids).last_hidden_state)
    assert (tiny.context, tiny.width, len(tiny.vocabulary), tiny.ignored_tensors) == (24, 32, 514, [])


def test_a_loaded_encoder_is_frozen_and_at_rest(tiny: TextEncoder):
    assert not any(p.requires_grad for p in tiny.model.parameters())
    assert not any(module.training for module in tiny.model.modules())


def test_old_names_and_known_buffers_load_to_the_same_features(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    buffer = {"text_model.embeddings.position_ids": torch.arange(24)[None]}
    rewrite(editable, lambda tensors: {f"text_model.{name}": t for name, t in tensors.items()} | buffer)
    assert same_features(load_encoder(editable), tiny, corpus_prompts)


def test_half_precision_weights_load_as_single_precision(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    rewrite(editable, lambda tensors: {name: t.half() for name, t in tensors.items()})
    encoder = load_encoder(editable)
    assert {p.dtype for p in encoder.model.parameters()} == {torch.float32}
    ids = tiny.ids(corpus_prompts)
    torch.testing.assert_close(encoder(ids), tiny(ids), rtol=0, atol=1e-2)


@pytest.fixture(params=["text_model.", ""])
def clip_folder(request: pytest.FixtureRequest, tiny: TextEncoder, editable: Path) -> Path:
    """A whole CLIP model around the tiny text tower, with the tower's names as old and new checkpoints have them."""
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 16, "patch_size": 8,
    }  # fmt: skip
    config = CLIPConfig(text_config=tiny.model.config.to_dict(), vision_config=vision, projection_dim=16)
    clip = CLIPModel(config)
    (editable / WEIGHTS).unlink()
    clip.save_pretrained(editable)
    tower = {f"text_model.{name}": t for name, t in tiny.model.state_dict().items()}
    rewrite(editable, lambda tensors: {name: tower.get(name, t) for name, t in tensors.items()})
    assert sum(name in tower for name in load_file(editable / WEIGHTS)) == len(tower)
    if not request.param:
        rewrite(editable, lambda tensors: {name.removeprefix("text_model."): t for name, t in tensors.items()})
    return editable


def test_the_text_tower_of_a_clip_model_is_loaded_and_the_rest_listed(
    tiny: TextEncoder, clip_folder: Path, corpus_prompts: list[str]
):
    encoder = load_encoder(clip_folder)
    assert same_features(encoder, tiny, corpus_prompts)
    names = list(load_file(clip_folder / WEIGHTS))
    rest = [n for n in names if n.startswith(("vision_model.", "visual_projection.", "text_projection.", "logit_scale"))]
    assert len(rest) > 20
    assert encoder.ignored_tensors == sorted(rest)


def test_a_pipeline_folder_is_its_text_encoder_with_its_tokenizer(
    tiny: TextEncoder, tiny_folder: Path, tmp_path: Path, corpus_prompts: list[str]
):
    encoder = load_encoder(str(as_pipeline(tiny_folder, tmp_path / "pipeline")))
    assert same_features(encoder, tiny, corpus_prompts)
    assert encoder.sha256 == tiny.sha256


def test_the_hash_is_that_of_the_weights(tiny: TextEncoder, editable: Path):
    assert load_encoder(editable).sha256 == tiny.sha256
    rewrite(editable, lambda tensors: tensors | {LAYER: tensors[LAYER] + 1})
    assert load_encoder(editable).sha256 != tiny.sha256


# ------------------------------------------------------------------------------------------------------------- folder
def test_a_missing_folder_is_refused(tmp_path: Path):
    assert "does not exist" in refusal(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["", "a\0b", "../nowhere", "~/nowhere", "nowhere", "a/b/c", "x" * 5000])
def test_what_is_no_path_and_no_hub_id_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    refusal(name)


def test_a_hub_id_without_a_network_is_refused():
    assert "could not be fetched" in refusal("nobody/no-such-model")


def test_a_file_is_no_folder(tiny_folder: Path):
    assert "is a file" in refusal(tiny_folder / "config.json")
    assert load_encoder(tiny_folder / WEIGHTS).path == str(tiny_folder / WEIGHTS)  # its config lies beside it


def test_a_folder_without_config_is_refused(editable: Path):
    (editable / "config.json").unlink()
    assert "no config.json" in refusal(editable)


def test_a_pipeline_without_text_encoder_is_refused(tmp_path: Path):
    (tmp_path / "model_index.json").write_text("{}")
    assert "text_encoder holds no config.json" in refusal(tmp_path)


# ------------------------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe\x00", b'{"model_type": "clip_text_model"', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
    ids=["empty", "open", "no text", "cut", "deep", "long number"],
)
def test_a_config_that_is_no_json_is_refused(editable: Path, content: bytes):
    (editable / "config.json").write_bytes(content)
    assert "cannot be read as JSON" in refusal(editable)


@pytest.mark.parametrize("config", [{}, [], 7, None, {"model_type": "gpt2"}, {"model_type": None}, {"model_type": ["clip"]}])
def test_an_unknown_model_type_is_refused_with_the_known_ones(editable: Path, config: object):
    (editable / "config.json").write_text(json.dumps(config))
    assert "knows clip, clip_text_model" in refusal(editable)


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 30}, {"hidden_size": "wide"}, {"hidden_size": None}, {"hidden_size": -32}, {"hidden_size": 0},
        {"num_attention_heads": 0}, {"num_attention_heads": 5}, {"num_hidden_layers": "3"}, {"num_hidden_layers": -1},
        {"hidden_act": "magic"}, {"hidden_act": ["gelu"]}, {"vocab_size": -1}, {"max_position_embeddings": 0},
        {"layer_norm_eps": "small"}, {"num_hidden_layers": 0},
        {"dtype": "float3"},
    ],
    ids=lambda values: "-".join(f"{k}={v}" for k, v in values.items()),
)  # fmt: skip
def test_a_config_that_no_model_can_have_is_refused(editable: Path, values: dict):
    reconfigure(editable / "config.json", **values)
    assert str(editable) in refusal(editable)


@pytest.mark.parametrize("text_config", [None, [], "tiny", {"hidden_size": "wide"}, {"num_attention_heads": 0}])
def test_a_clip_config_without_a_text_tower_is_refused(editable: Path, text_config: object):
    (editable / "config.json").write_text(json.dumps({"model_type": "clip", "text_config": text_config}))
    assert str(editable) in refusal(editable)


@pytest.mark.parametrize(
    "values", [{"intermediate_size": 65}, {"vocab_size": 515}, {"max_position_embeddings": 25}, {"hidden_size": 64}]
)
def test_tensors_of_another_shape_than_the_config_says_are_refused(editable: Path, values: dict):
    reconfigure(editable / "config.json", **values)
    assert "another shape" in refusal(editable)


# ------------------------------------------------------------------------------------------------------------ weights
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "model.pkl"])
def test_a_pickle_is_refused_and_never_opened(editable: Path, tmp_path: Path, name: str):
    canary = tmp_path / "canary"
    (editable / WEIGHTS).unlink()
    (editable / name).write_bytes(pickle.dumps(Bomb(canary)))
    message = refusal(editable)
    assert name in message
    assert "pickle" in message
    assert "convert it to safetensors" in message
    assert not canary.exists()
    pickle.loads((editable / name).read_bytes())
    assert canary.exists()  # the control: whoever opens it is hit


def test_a_pickle_behind_safetensors_of_another_name_is_never_opened(editable: Path, tmp_path: Path):
    (editable / WEIGHTS).rename(editable / "decoy.safetensors")
    (editable / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    refusal(editable)
    assert not (tmp_path / "canary").exists()


def test_a_pickle_beside_safetensors_is_not_looked_at(
    tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str]
):
    (editable / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    assert same_features(load_encoder(editable), tiny, corpus_prompts)
    assert not (tmp_path / "canary").exists()


def test_a_folder_without_weights_is_refused(editable: Path):
    (editable / WEIGHTS).unlink()
    assert "no model.safetensors" in refusal(editable)


@pytest.mark.parametrize("kept", [0, 4, 500, -1, -5000])
def test_truncated_weights_are_refused(editable: Path, kept: int):
    whole = (editable / WEIGHTS).read_bytes()
    (editable / WEIGHTS).write_bytes(whole[:kept])
    assert f"{WEIGHTS} is not a readable safetensors file" in refusal(editable)


def test_a_pickle_that_calls_itself_safetensors_is_refused_and_never_opened(editable: Path, tmp_path: Path):
    (editable / WEIGHTS).write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    assert "not a readable safetensors file" in refusal(editable)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("name", [LAYER, "final_layer_norm.weight", "embeddings.token_embedding.weight"])
def test_a_missing_tensor_is_named(editable: Path, name: str):
    rewrite(editable, lambda tensors: {n: t for n, t in tensors.items() if n != name})
    message = refusal(editable)
    assert "1 tensors of the text tower are missing" in message
    assert name in message


@pytest.mark.parametrize(
    "name",
    [
        "encoder.layers.0.mlp.fc3.weight",
        "encoder.layers.3.mlp.fc1.weight",
        "text_model.adapter.weight",
        "final_layer_norm.gain",
    ],
)
def test_an_unknown_tensor_of_the_text_tower_is_named(editable: Path, name: str):
    rewrite(editable, lambda tensors: tensors | {name: torch.zeros(2)})
    message = refusal(editable)
    assert "unknown tensor" in message
    assert name.removeprefix("text_model.") in message


def test_an_unknown_tensor_is_named_among_old_names(editable: Path):
    extra = {"text_model.encoder.layers.0.mlp.fc3.weight": torch.zeros(2)}
    rewrite(editable, lambda tensors: {f"text_model.{name}": t for name, t in tensors.items()} | extra)
    assert "fc3.weight" in refusal(editable)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_value_that_is_no_number_is_refused(editable: Path, value: float):
    def poison(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        tensors[LAYER][3, 4] = value
        return tensors

    rewrite(editable, poison)
    message = refusal(editable)
    assert LAYER in message
    assert "NaN or infinite" in message


def test_a_tensor_of_another_shape_is_named(editable: Path):
    rewrite(editable, lambda tensors: tensors | {LAYER: tensors[LAYER].T.contiguous()})
    message = refusal(editable)
    assert LAYER in message
    assert "another shape" in message


# ---------------------------------------------------------------------------------------------------------- strangers
def test_weights_that_are_a_link_out_of_the_folder_are_refused(editable: Path, tmp_path: Path):
    shutil.move(editable / WEIGHTS, tmp_path / "elsewhere.safetensors")
    (editable / WEIGHTS).symlink_to(tmp_path / "elsewhere.safetensors")
    refusal(editable)


def test_an_index_that_leads_out_of_the_folder_is_refused(editable: Path, tmp_path: Path):
    names = list(load_file(editable / WEIGHTS))
    shutil.move(editable / WEIGHTS, tmp_path / "elsewhere.safetensors")
    save_file({"logit_scale": torch.ones(())}, editable / "decoy.safetensors", metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}
    (editable / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(editable)


def evil_code(folder: Path, canary: Path) -> dict[str, list[str]]:
    """Puts a module into a folder that touches `canary` when it is imported.  -> the auto_map that asks for it"""
    (folder / "evil.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\nclass Evil: pass\n")
    return {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


def test_code_that_comes_with_a_model_never_runs(tiny: TextEncoder, editable: Path, tmp_path: Path, corpus_prompts: list[str]):
    auto_map = evil_code(editable, tmp_path / "canary")
    reconfigure(editable / "config.json", auto_map=auto_map, architectures=["Evil"])
    assert same_features(load_encoder(editable), tiny, corpus_prompts)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("layout", ["folder", "pipeline"])
def test_a_tokenizer_with_its_own_code_is_refused_without_asking(
    editable: Path, tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
):
    """A question on the terminal could be answered yes."""
    questions = []
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda text="": questions.append(text) or "yes")
    model = editable if layout == "folder" else as_pipeline(editable, tmp_path / "pipeline")
    folder = model if layout == "folder" else model / "tokenizer"
    auto_map = evil_code(folder, tmp_path / "canary")
    reconfigure(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="Evil")
    assert "tokenizer" in refusal(model)
    assert not (tmp_path / "canary").exists()
    assert not questions


# ---------------------------------------------------------------------------------------------------------- tokenizer
def test_a_folder_without_tokenizer_is_refused(editable: Path):
    for file in editable.glob("token*"):
        file.unlink()
    assert "tokenizer" in refusal(editable)


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b'{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_is_refused(editable: Path, content: bytes):
    (editable / "tokenizer.json").write_bytes(content)
    assert "tokenizer" in refusal(editable)


def test_a_tokenizer_with_more_tokens_than_the_encoder_is_refused(editable: Path, tiny_folder: Path):
    tokenizer = load_encoder(tiny_folder).tokenizer
    tokenizer.add_tokens(["surplus"])
    tokenizer.save_pretrained(editable)
    assert "token ids up to 514, the encoder 514 rows" in refusal(editable)


def test_a_token_whose_number_has_no_row_is_refused(editable: Path):
    file = editable / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    content["model"]["vocab"]["a</w>"] = 9999  # as many tokens as before
    file.write_text(json.dumps(content), encoding="utf-8")
    assert "tokenizer" in refusal(editable)


# -------------------------------------------------------------------------------------------------------------- tools
def test_saving_and_loading_keeps_the_features_in_half_precision(tiny: TextEncoder, tmp_path: Path, corpus_prompts: list[str]):
    save_encoder(tiny, tmp_path / "saved")
    encoder, ids = load_encoder(tmp_path / "saved"), tiny.ids(corpus_prompts)
    assert torch.equal(encoder.ids(corpus_prompts), ids)
    torch.testing.assert_close(encoder(ids), tiny(ids), rtol=0, atol=1e-2)
    for name, tensor in tiny.model.state_dict().items():
        assert tensor.dtype == torch.float32  # saving leaves the encoder as it was
        assert torch.equal(encoder.model.state_dict()[name], tensor.half().float())


def test_encoders_compare_when_tensors_and_end_of_text_agree(tiny: TextEncoder, clip_folder: Path):
    """How their tokenizers read texts is looked at apart: one that rewrites them is no wrong anchor."""
    assert same_shape(tiny, load_encoder(clip_folder))
    other = load_encoder(clip_folder)
    other.tokenizer.add_tokens(["surplus"])
    assert same_shape(tiny, other)
    other.tokenizer.eos_token = "x</w>"
    assert not same_shape(tiny, other)


def test_an_encoder_of_another_shape_does_not_compare(tiny: TextEncoder, editable: Path):
    reconfigure(editable / "config.json", num_hidden_layers=2)
    rewrite(editable, lambda tensors: {name: t for name, t in tensors.items() if ".layers.2." not in name})
    assert not same_shape(tiny, load_encoder(editable))


@pytest.mark.parametrize("name", ["nonsense", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str):
    with pytest.raises(InputError, match="--device cpu"):
        pick_device(name)


def test_auto_is_a_device_that_is_there():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")
