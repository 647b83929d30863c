"""What is scanned is what people load: everything in a folder is accounted for, and nothing else is judged than was read.

Contents
    beside      harmless things are known by kind; every second thing is a doubt, whatever it is called
    encoders    variants, copies, folders in folders, a root beside a pipeline: each judged, or said to be the same
    loaders     whatever is accepted, transformers and diffusers load to the same features
    bytes       a file that changes meanwhile is refused; the hash is of what was loaded
    config      keys of transformers are known one by one; any other one is a doubt
    numbers     half precision says what single precision says, or is judged as well, or there is a doubt
    verdict     with a doubt nothing is clean
    cures       what a refusal tells to do is done, and gives the original encoder back
"""

import dataclasses
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from hashlib import sha256
from itertools import product
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from safetensors.torch import load_file, save_file
from test_loading import WEIGHTS, Bomb, as_pipeline, reconfigure, refusal, rewrite
from transformers import AutoModel, AutoTokenizer, CLIPTextModel

import main
from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.doubts import Trust, doubts_about
from Utils.encoder.loading import load_encoder
from Utils.encoder.numbers import Format, formats_in_doubt, formats_of
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.show import Show
from Utils.intake import weights
from Utils.intake.candidates import encoders_of
from Utils.intake.digests import files_digest
from Utils.intake.reader import Reader
from Utils.scan.finding import Verdict
from Utils.scan.settings import SETTINGS, ScanConfig
from Utils.sources.lenders import Given

MODELS = ROOT / "Data" / "Models"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)
EMBEDDING = "embeddings.token_embedding.weight"


def doubts(folder: Path | str, only: bool = False) -> list[str]:
    """What is doubtful about an encoder's files."""
    return doubts_about(load_encoder(folder), Trust(WEIGHTS if only else ""))[1]


def put(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def tensors(**values: torch.Tensor) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({name.replace("__", "."): value for name, value in values.items()}, file)

    return write


# ------------------------------------------------------------------------------------------------------------- beside
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", b"# a model"), ("LICENSE", b"free"), (".gitattributes", b"*.bin filter=lfs"), ("preview.png", PNG),
        ("samples/1.jpg", b"\xff\xd8\xff\xe0" + bytes(50)), ("logs/run.txt", "größer".encode()), ("notes", b"plain words"),
        ("training_args.bin", pickle.dumps({})), ("optimizer.pt", pickle.dumps([1])), ("rng_state_0.pth", b"\x80\x02."),
        ("runs/events.out.tfevents.1.x", bytes(range(200))), (".cache/huggingface/download/x.lock", b""),
        ("1_Pooling/config.json", b'{"word_embedding_dimension": 32}'), ("paper.pdf", b"%PDF-1.4" + bytes(30)),
        ("generation_config.json", b"{}"), ("trainer_state.json", b"{}"), ("modeling_own.py", b"import os"), ("empty", b""),
    ],
)  # fmt: skip
def test_harmless_things_raise_no_doubt(editable: Path, name: str, content: bytes):
    put(editable / name, content)
    assert doubts(editable) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("pytorch_model.bin", pickle.dumps({"a": 1})), ("old/model.ckpt", pickle.dumps({"a": 1})),
        ("notes.txt", pickle.dumps({"a": 1})), ("picture.png", pickle.dumps({"a": 1})), ("weights", b"PK\x03\x04" + bytes(50)),
        ("flax_model.msgpack", b"\x81\xa1"), ("tf_model.h5", b"\x89HDF\r\n" + bytes(9)), ("onnx/model.onnx", b"\x08\x07\x12"),
        ("model-q4.gguf", b"GGUF" + bytes(20)), ("README.md", b"GGUF" + bytes(20)), ("data.npz", b"PK\x03\x04" + bytes(9)),
        ("unknown.dat", bytes(range(256))), ("config.4.0.0.json", b"{}"), ("tokenizer.5.1.json", b"{}"),
        ("rust_model.ot", b"PK\x03\x04" + bytes(9)), ("adapter_model.safetensors", bytes(9)), ("x.safetensors", b"junk" * 9),
    ],
)  # fmt: skip
def test_a_second_thing_is_a_doubt_whatever_it_is_called_unless_the_weights_are_named(
    editable: Path, name: str, content: bytes
):
    put(editable / name, content)
    (doubt,) = doubts(editable)
    assert name in doubt
    assert doubts(editable, only=True) == []
    assert doubts(editable / WEIGHTS) == []


@pytest.mark.parametrize(
    ("write", "kind"),
    [
        (tensors(lora_te_x__lora_up__weight=torch.zeros(2)), "a LoRA"),
        (tensors(cond_stage_model__transformer__x=torch.zeros(2)), "a single-file checkpoint"),
    ],
)  # fmt: skip
def test_other_checkpoints_beside_the_weights_are_doubts(editable: Path, write: Callable, kind: str):
    write(editable / "other.safetensors")
    assert kind in doubts(editable)[0]


def test_tensors_of_something_else_raise_no_doubt(editable: Path):
    tensors(vision__conv=torch.zeros(2))(editable / "vision.safetensors")
    assert doubts(editable) == []


@pytest.mark.parametrize("kind", [[], {}, None, 7, "bert"], ids=str)
def test_a_config_of_any_type_may_lie_below(editable: Path, kind: object):
    put(editable / "sub" / "config.json", json.dumps({"model_type": kind}).encode())
    assert doubts(editable) == []
    assert encoders_of(str(editable)) == [str(editable)]


def test_weights_in_a_folder_without_a_config_are_a_doubt(editable: Path):
    (editable / "backup").mkdir()
    shutil.copy(editable / WEIGHTS, editable / "backup" / WEIGHTS)
    assert "backup/model.safetensors (weights of a text encoder)" in doubts(editable)[0]


def test_links_out_of_the_folder_are_not_followed(editable: Path, tmp_path: Path):
    put(tmp_path / "outside.bin", pickle.dumps(Bomb(tmp_path / "canary")))
    (editable / "sub").mkdir()
    (editable / "sub" / "model.bin").symlink_to(tmp_path / "outside.bin")
    assert "leads out of the model folder" in doubts(editable)[0]
    assert not (tmp_path / "canary").exists()


def test_a_tree_without_end_is_a_doubt_and_no_wait(editable: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("Utils.intake.inventory.MOST", 20)
    for number in range(40):
        put(editable / "many" / str(number), b"x")
    assert any("more than 20 entries" in doubt for doubt in doubts(editable))


def test_the_shipped_encoders_raise_no_doubt():
    for model in ("suspects/text_on_text", "suspects/benign", "tiny-sd", "tiny-clip", "tiny-longclip", "tiny-siglip"):
        encoder = load_encoder(MODELS / model)
        assert doubts_about(encoder, Trust())[1] == []
        assert not any(one.differs for one in formats_of(encoder, ["a photo of a dog", "two cats on a green boat at night"]))
        assert encoders_of(str(MODELS / model)) == [str(MODELS / model)]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda values: values, "the same numbers"),
        (lambda values: {n: t.half() for n, t in values.items()}, "the same numbers"),
        (lambda values: {f"text_model.{n}": t for n, t in values.items()}, "the same numbers"),
        (lambda values: {"state_dict": values, "epoch": 3}, "the same numbers"),
        (lambda values: values | {EMBEDDING: values[EMBEDDING] + 1}, "other numbers"),
        (lambda values: {"own": torch.zeros(2)}, "other tensors"), (lambda values: [1, 2], "other tensors"),
        (lambda values: values | {EMBEDDING: (values[EMBEDDING] + 1).to_sparse()}, "other tensors"),
    ],
)  # fmt: skip
def test_a_pickle_is_compared_where_the_user_asks_for_it(editable: Path, change: Callable, kind: str):
    torch.save(change(load_file(editable / WEIGHTS)), editable / "pytorch_model.bin")
    encoder = load_encoder(editable)
    (pickled,), found = doubts_about(encoder, Trust(compare_pickles=True))
    assert kind in pickled.kind
    assert bool(found) == (kind != "the same numbers")
    assert doubts_about(encoder, Trust())[1]


def test_a_pickle_that_would_run_code_is_compared_with_nothing(editable: Path, tmp_path: Path):
    (editable / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "canary")))
    assert "more than tensors" in doubts_about(load_encoder(editable), Trust(compare_pickles=True))[1][0]
    assert not (tmp_path / "canary").exists()


# ----------------------------------------------------------------------------------------------------------- encoders
def disturbed(source: Path, target: Path, by: float = 0.5) -> None:
    """Other weights of the same shapes."""
    values = load_file(source)
    save_file({name: value + by * torch.ones_like(value) for name, value in values.items()}, target, metadata={"format": "pt"})


def names(folder: Path, only: str = "") -> list[str]:
    return [str(Path(encoder).relative_to(folder)) for encoder in encoders_of(str(folder), only)]


@pytest.mark.parametrize("variant", ["model.fp16.safetensors", "model.non_ema.safetensors", "pytorch_model.safetensors"])
def test_another_set_of_weights_is_another_encoder(editable: Path, variant: str):
    disturbed(editable / WEIGHTS, editable / variant)
    assert names(editable) == [".", variant]
    assert names(editable, WEIGHTS) == [WEIGHTS]
    assert names(editable, variant) == [variant]
    assert doubts(editable) == []
    first, second = (load_encoder(encoder) for encoder in encoders_of(str(editable)))
    assert not torch.equal(first.vocabulary, second.vocabulary)
    assert first.sha256 != second.sha256


@pytest.mark.parametrize("form", [torch.float32, torch.float16, torch.bfloat16])
def test_a_copy_of_the_weights_is_no_other_encoder_whichever_of_them_is_rounded(editable: Path, form: torch.dtype):
    values = load_file(editable / WEIGHTS)
    rounded = {name: value.to(form) for name, value in values.items()}
    save_file(rounded, editable / "model.fp16.safetensors", metadata={"format": "pt"})
    assert names(editable) == ["."]
    save_file(rounded, editable / WEIGHTS, metadata={"format": "pt"})
    save_file(values, editable / "model.fp16.safetensors", metadata={"format": "pt"})
    assert names(editable) == ["."]
    values[EMBEDDING][7, 3] += 1
    save_file(values, editable / "model.fp16.safetensors", metadata={"format": "pt"})
    assert names(editable) == [".", "model.fp16.safetensors"]


def test_encoders_in_folders_below_are_encoders(editable: Path, tiny_folder: Path):
    shutil.copytree(tiny_folder, editable / "checkpoint-500")
    assert names(editable) == [".", "checkpoint-500"]


def test_weights_of_two_indexes_are_two_encoders(editable: Path):
    values = load_file(editable / WEIGHTS)
    for part, add in (("", 0.0), (".fp16", 1.0)):
        names_of = sorted(values)
        shards = {f"model{part}-0000{i + 1}-of-00002.safetensors": names_of[i::2] for i in range(2)}
        for file, inside in shards.items():
            save_file({name: values[name] + add for name in inside}, editable / file, metadata={"format": "pt"})
        where = {name: file for file, inside in shards.items() for name in inside}
        (editable / f"model.safetensors.index{part}.json").write_text(json.dumps({"weight_map": where}))
    (editable / WEIGHTS).unlink()
    assert names(editable) == [".", "model.safetensors.index.fp16.json"]
    first, second = (load_encoder(encoder) for encoder in encoders_of(str(editable)))
    torch.testing.assert_close(first.vocabulary + 1, second.vocabulary)


def twice_in_shards(folder: Path) -> None:
    values = load_file(folder / WEIGHTS)
    for number in (1, 2):
        save_file(values, folder / f"model-0000{number}-of-00002.safetensors", metadata={"format": "pt"})
    where = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(values)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    (folder / WEIGHTS).unlink()


def test_a_tensor_in_two_shards_is_refused(editable: Path):
    twice_in_shards(editable)
    assert "another file of the same weights holds too" in refusal(editable)


def test_an_index_that_names_another_shard_than_the_one_that_holds_a_tensor_is_refused(editable: Path):
    values = sorted(load_file(editable / WEIGHTS).items())
    for number in range(2):
        file = editable / f"model-0000{number + 1}-of-00002.safetensors"
        save_file(dict(values[number::2]), file, metadata={"format": "pt"})
    where = {name: f"model-0000{2 - i % 2}-of-00002.safetensors" for i, (name, _) in enumerate(values)}
    (editable / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (editable / WEIGHTS).unlink()
    assert "as the index beside it says" in refusal(editable)


def test_a_root_beside_a_pipeline_and_an_encoder_of_any_name_are_judged(tiny_folder: Path, tmp_path: Path):
    pipeline = as_pipeline(tiny_folder, tmp_path / "sd")
    index = json.loads((pipeline / "model_index.json").read_text())
    shutil.copytree(pipeline / "text_encoder", pipeline / "prompt_reader")
    index |= {"text_encoder": ["transformers", "CLIPTextModel"], "prompt_reader": ["transformers", "CLIPTextModel"]}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    assert names(pipeline) == ["prompt_reader", "text_encoder"]
    for name in ("config.json", WEIGHTS):
        shutil.copy(tiny_folder / name, pipeline / name)
    assert names(pipeline) == ["prompt_reader", "text_encoder", WEIGHTS]
    for encoder in encoders_of(str(pipeline)):
        load_encoder(encoder)


def test_only_names_weights_that_are_there(editable: Path):
    with pytest.raises(main.InputError, match="--only"):
        encoders_of(str(editable), "gone.safetensors")


# ------------------------------------------------------------------------------------------------------------ loaders
def layouts(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """The ways in which the same encoder is found on hubs."""
    made = {"plain": folder, "half": Path(shutil.copytree(folder, tmp_path / "half"))}
    rewrite(made["half"], lambda values: {name: value.half() for name, value in values.items()})
    made["variant"] = Path(shutil.copytree(folder, tmp_path / "variant"))
    (made["variant"] / WEIGHTS).rename(made["variant"] / "model.fp16.safetensors")
    made["prefixed"] = Path(shutil.copytree(folder, tmp_path / "prefixed"))
    rewrite(made["prefixed"], lambda values: {f"text_model.{name}": value for name, value in values.items()})
    made["pipeline part"] = as_pipeline(folder, tmp_path / "sd") / "text_encoder"
    return made


def test_what_is_accepted_loads_to_the_same_features_in_every_loader(tiny_folder: Path, tmp_path: Path):
    prompts = ["a dog", "two birds on a boat"]
    for name, folder in layouts(tiny_folder, tmp_path).items():
        ours = load_encoder(folder)
        ids = ours.ids(prompts)
        expected = ours(ids)
        variant = "fp16" if name == "variant" else None
        for kind in (AutoModel, CLIPTextModel):
            theirs = kind.from_pretrained(folder, dtype=torch.float32, variant=variant)
            torch.testing.assert_close(theirs(ids).last_hidden_state, expected, atol=1e-5, rtol=0, msg=f"{name} {kind}")
        where = folder if (folder / "tokenizer.json").exists() else folder.with_name("tokenizer")
        read = AutoTokenizer.from_pretrained(where)(prompts, padding="max_length", max_length=24, return_tensors="pt")
        assert torch.equal(read.input_ids, ids)


OFF, ON = {(None, None), (None, True)}, {("fp16", None), ("fp16", True)}
"""What a pipeline is loaded with: (variant, use_safetensors)."""
LOADED_WITH = {
    "plain": OFF, "variant": ON, "both": OFF | ON,
    "both with pickles": OFF | ON | {(None, False), ("fp16", False)},
    "another variant": OFF | ON,
}  # fmt: skip
"""Layout of a pipeline -> with what diffusers finds all its parts there."""


def pipeline_in(layout: str, folder: Path) -> Path:
    """tiny-sd as hubs have pipelines."""
    for variant in {"plain": [None], "variant": ["fp16"]}.get(layout, [None, "fp16"]):
        pipe = StableDiffusionPipeline.from_pretrained(MODELS / "tiny-sd", dtype=torch.float16 if variant else torch.float32)
        pipe.save_pretrained(folder, variant=variant)
        if layout == "both with pickles":
            pipe.save_pretrained(folder, variant=variant, safe_serialization=False)
            name = f"pytorch_model.{variant}.bin" if variant else "pytorch_model.bin"  # which transformers writes no more
            torch.save(pipe.text_encoder.state_dict(), folder / "text_encoder" / name)
    if layout == "another variant":
        disturbed(folder / "text_encoder" / WEIGHTS, folder / "text_encoder" / "model.fp16.safetensors", by=0.02)
    return folder


@pytest.mark.parametrize("layout", LOADED_WITH)
def test_diffusers_loads_what_was_judged(layout: str, tmp_path: Path):
    folder, prompts = pipeline_in(layout, tmp_path / "sd"), ["a photo of a dog", "two cats on a boat"]
    judged = [load_encoder(encoder) for encoder in encoders_of(str(folder))]
    assert len(judged) == (2 if layout == "another variant" else 1)  # rounded copies are no other encoders
    ids, loaded_with = judged[0].ids(prompts), set()
    for variant, safetensors in product((None, "fp16"), (None, True, False)):
        try:
            pipe = StableDiffusionPipeline.from_pretrained(
                folder, variant=variant, use_safetensors=safetensors, dtype=torch.float32
            )
        except (OSError, ValueError):  # nobody gets anything
            continue
        loaded_with.add((variant, safetensors))
        assert torch.equal(pipe.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids, ids)
        ours = judged[-1 if variant else 0]
        torch.testing.assert_close(pipe.text_encoder(ids).last_hidden_state, ours(ids), atol=1e-5, rtol=0)
    assert loaded_with == LOADED_WITH[layout]
    assert doubts_about(judged[0], Trust(compare_pickles=True))[1] == []
    assert len(doubts_about(judged[0], Trust())[1]) == (2 if layout == "both with pickles" else 0)


# -------------------------------------------------------------------------------------------------------------- bytes
def test_the_report_s_hashes_are_of_the_files(editable: Path):
    encoder = load_encoder(editable)
    read = {file["path"]: file for file in encoder.files.read}
    assert {"config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"} <= read.keys()
    for name, file in read.items():
        content = (editable / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), sha256(content).hexdigest())
    assert encoder.sha256 == read[WEIGHTS]["sha256"]


def test_a_file_that_changes_while_it_is_read_is_refused(editable: Path):
    def read() -> None:
        with Reader(editable).opened(editable / WEIGHTS) as (stream, _):
            stream.read(100)
            (editable / WEIGHTS).write_bytes(b"other")

    with pytest.raises(main.InputError, match="was changed while it was read"):
        read()


def test_a_file_that_is_replaced_between_check_and_loading_is_loaded_as_it_is_hashed(editable: Path, monkeypatch):
    disturbed(editable / WEIGHTS, editable / "other")
    usual = weights.read_tensors

    def swapped(reader: Reader, file: Path, wanted: Callable) -> dict:
        os.replace(editable / "other", file)
        return usual(reader, file, wanted)

    monkeypatch.setattr(weights, "read_tensors", swapped)
    encoder = load_encoder(editable)
    assert encoder.sha256 == sha256((editable / WEIGHTS).read_bytes()).hexdigest()
    assert torch.equal(encoder.vocabulary, load_file(editable / WEIGHTS)[EMBEDDING])


def test_a_list_goes_by_everything_that_a_verdict_rests_on(editable: Path):
    before = files_digest(str(editable))
    assert files_digest(str(editable)) == before
    put(editable / "pytorch_model.bin", b"x")
    after = files_digest(str(editable))
    assert after != before
    reconfigure(editable / "tokenizer_config.json", something="else")
    assert files_digest(str(editable)) not in (before, after)


# ------------------------------------------------------------------------------------------------------------- config
@pytest.mark.parametrize(
    ("values", "doubtful"),
    [
        ({"transformers_weights": "other.safetensors"}, True), ({"configuration_files": ["config.4.0.0.json"]}, True),
        ({"auto_map": {"AutoModel": "own.Model"}}, True), ({"_attn_implementation": "nobody/kernel"}, True),
        ({"use_rope": True}, True), ({"adapters": {"x": 1}}, True), ({"text_config": {"hidden_size": 32}}, True),
        ({"return_dict": False}, False), ({"output_attentions": True}, False), ({"architectures": ["Evil"]}, False),
        ({"torch_dtype": "float16"}, False), ({"num_labels": 7}, False), ({"_attn_implementation": "sdpa"}, False),
    ],
    ids=str,
)  # fmt: skip
def test_a_key_that_the_scan_leaves_out_is_a_doubt_unless_it_has_no_say(editable: Path, values: dict, doubtful: bool):
    expected = load_encoder(editable)(load_encoder(editable).ids(["a dog"]))
    reconfigure(editable / "config.json", **values)
    encoder = load_encoder(editable)
    assert any(next(iter(values)) in doubt for doubt in doubts(editable)) == doubtful
    assert torch.equal(encoder(encoder.ids(["a dog"])), expected)


@pytest.mark.parametrize("name", ["float8_e4m3fn", "int8", "bool", "complex64", "nothing", "Tensor", "torch.float8_e5m2"])
@pytest.mark.parametrize("key", ["dtype", "torch_dtype"])
def test_a_number_format_that_no_encoder_runs_in_is_refused(editable: Path, key: str, name: str):
    reconfigure(editable / "config.json", **{key: name})
    assert "which no encoder runs in" in refusal(editable)


@pytest.mark.parametrize("heads", [-4, -8, -1])
def test_a_config_that_fits_the_tensors_and_cannot_be_run_is_refused(editable: Path, heads: int):
    reconfigure(editable / "config.json", num_attention_heads=heads)
    assert "cannot be loaded" in refusal(editable)


def test_two_text_configs_have_to_agree(tmp_path: Path):
    folder = Path(shutil.copytree(MODELS / "tiny-clip", tmp_path / "clip"))
    own = json.loads((folder / "config.json").read_text())["text_config"]
    reconfigure(folder / "config.json", text_config_dict={"hidden_size": own["hidden_size"]})
    assert doubts(folder) == []
    reconfigure(folder / "config.json", text_config_dict={"hidden_act": "gelu"})
    assert any("hidden_act" in doubt for doubt in doubts(folder))


def test_a_config_that_chooses_another_tokenizer_than_the_scan_takes_is_a_doubt(tiny_folder: Path, tmp_path: Path):
    """AutoTokenizer asks tokenizer_config.json first, but a config of certain types overrules it."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "plain"))
    reconfigure(folder / "config.json", tokenizer_class="BertTokenizer")
    assert doubts(folder) == []
    reconfigure(folder / "tokenizer_config.json", tokenizer_class=None)
    assert any("tokenizer_class chooses a tokenizer" in doubt for doubt in doubts(folder))
    pipeline = as_pipeline(tiny_folder, tmp_path / "sd")
    assert doubts(pipeline) == []
    for content in ({"model_type": "olmo2"}, {"model_type": []}, []):
        (pipeline / "tokenizer" / "config.json").write_text(json.dumps(content))
        assert any("loaders ask it for a class" in doubt for doubt in doubts(pipeline))
    (pipeline / "tokenizer" / "config.json").write_text(json.dumps({"model_type": "clip"}))
    assert doubts(pipeline) == []


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_key_that_stands_twice_is_refused(editable: Path, name: str):
    text = (editable / name).read_text()
    (editable / name).write_text(text.replace("{", '{"model_type": "clip_text_model", "model_type": "bert",', 1))
    assert "stands twice" in refusal(editable)


# ------------------------------------------------------------------------------------------------------------ numbers
def vanishing(values: dict, layer: str = "encoder.layers.2.") -> dict:
    """A channel that rounds to nothing in half precision carries the whole effect in single precision."""
    width = len(values[layer + "layer_norm2.weight"])
    values[layer + "layer_norm2.weight"][0], values[layer + "layer_norm2.bias"][0] = 2e-8, 0
    values[layer + "mlp.fc1.weight"][0] = 0
    values[layer + "mlp.fc1.bias"][0] = 0
    values[layer + "mlp.fc1.weight"][0, 0] = 6e4
    values[layer + "mlp.fc2.weight"][:, 0] = 6e4 * torch.randn(width, generator=torch.Generator().manual_seed(0)).sign()
    return values


def overflowing(values: dict) -> dict:
    """Weights that any format holds, and that compute to no number in half precision."""
    values["encoder.layers.2.mlp.fc1.bias"][0] = 6e4
    values["encoder.layers.2.mlp.fc2.weight"][:, 0] = torch.linspace(-2, 2, 32)
    return values


def differing(encoder: TextEncoder, prompts: list[str]) -> list[Format]:
    return [one for one in formats_of(encoder, prompts) if one.differs]


def test_an_honest_encoder_says_the_same_in_every_format(tiny: TextEncoder, editable: Path, corpus_prompts: list[str]):
    reconfigure(editable / "config.json", dtype="float64")
    formats = formats_of(load_encoder(editable), corpus_prompts)
    assert [one.name for one in formats] == ["float16", "bfloat16"]
    assert min(one.near for one in formats) > 0.999
    assert [one.rounded for one in formats] == [None, None]
    assert formats_in_doubt(formats) == []
    assert formats_of(tiny, corpus_prompts) == formats


def test_weights_that_round_to_another_encoder_are_given_to_be_judged(editable: Path, corpus_prompts: list[str]):
    rewrite(editable, vanishing)
    encoder = load_encoder(editable)
    (half,) = differing(encoder, corpus_prompts)
    assert half.name == half.rounded.numbers == "float16"
    assert formats_in_doubt([half]) == []
    ids = encoder.ids(corpus_prompts)
    theirs = CLIPTextModel.from_pretrained(editable, dtype=torch.float16)(ids).last_hidden_state.float()
    assert half.rounded.model.dtype == encoder.model.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.rounded(ids), theirs, dim=-1).min() > 0.999
    assert torch.nn.functional.cosine_similarity(encoder(ids), theirs, dim=-1).mean() < 0.9


def test_what_computes_to_another_encoder_and_not_by_its_weights_is_a_doubt(editable: Path, corpus_prompts: list[str]):
    rewrite(editable, overflowing)
    (half,) = differing(load_encoder(editable), corpus_prompts)
    assert half.rounded is None
    assert "in float16 the encoder says something else" in formats_in_doubt([half])[0]


@pytest.mark.parametrize("bad", ["float32", "float16"])
def test_an_encoder_is_judged_in_every_format_in_which_it_is_another_and_the_worst_verdict_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str
):
    folder = Path(shutil.copytree(MODELS / "suspects" / "benign", tmp_path / "model"))
    rewrite(folder, lambda values: vanishing({n: t.float() for n, t in values.items()}, "text_model.encoder.layers.5."))
    usual = main.judge_weights

    def judged(suspect: TextEncoder, *rest: object) -> main.Judged:
        verdict = Verdict("backdoored", "Bad.", 0.9, []) if suspect.numbers == bad else Verdict("clean", "Good.", 0.1, [])
        return dataclasses.replace(usual(suspect, *rest), verdict=verdict)

    monkeypatch.setattr(main, "judge_weights", judged)
    small = {"landscape_points": 3, "landscape_planes": 1, "landscape_prompts": 1, "trigger_searches": 0}
    cfg = load_config(ScanConfig, SETTINGS, prompts=40, steps=8, pooled_steps=6, restarts=2, **small)
    report = main.scan_model(str(folder), main.Request(cfg, str(MODELS / "tiny-sd"), tmp_path / "out", "cpu", show=Show(0)))
    assert report["verdict"] == "backdoored"
    assert report["model"]["sha256"] == sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    rows = {row["format"]: row for row in report["numbers"]}
    assert list(rows) == ["float32", "float16", "bfloat16"]
    verdicts = {name: "backdoored" if name == bad else "clean" for name in ("float32", "float16")}
    assert {name: row["verdict"] for name, row in rows.items()} == verdicts | {"bfloat16": None}
    assert rows["float16"]["agreement"] < 0.9 < rows["bfloat16"]["agreement"]
    assert report["readings"][0]["verdict"] == verdicts["float32"]
    assert any(
        "in float16 the encoder says something else" in n and f"it is {verdicts['float16']}" in n for n in report["notes"]
    )


# ------------------------------------------------------------------------------------------------------------ verdict
@pytest.mark.parametrize(
    ("verdict", "expected"), [("clean", "inconclusive"), ("backdoored", "backdoored"), ("inconclusive",) * 2]
)
def test_with_a_doubt_nothing_is_clean(verdict: str, expected: str):
    before = Verdict(verdict, "Because.", 0.1, [], ["a note"])
    assert main.with_doubts(before, []) == before
    after = main.with_doubts(before, ["x.bin (a pickle) lies there", "y"])
    assert after.verdict == expected
    assert after.notes == ["a note", "x.bin (a pickle) lies there", "y"]
    assert ("x.bin" in after.reason) == (verdict == "clean")


# ------------------------------------------------------------------------------------------------------------- cures
def as_one_file(folder: Path) -> None:
    CLIPTextModel.from_pretrained(folder).save_pretrained(folder)
    for file in (*folder.glob("model-*.safetensors"), folder / "model.safetensors.index.json"):
        file.unlink()


def moved(name: str, other: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).rename(folder / other)


def model_option(name: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / "tokenizer.json").read_text())
        content["model"][name] = value
        (folder / "tokenizer.json").write_text(json.dumps(content))

    return change


def sampling(on: bool) -> Callable[[Path], None]:
    return lambda folder: reconfigure(folder / "tokenizer_config.json", sp_model_kwargs={"enable_sampling": on})


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.rename(file.with_name(f"kept_{file.name}.txt"))


def with_tokenizer(folder: Path) -> None:
    for file in folder.glob("kept_*"):
        file.rename(file.with_name(file.name.removeprefix("kept_").removesuffix(".txt")))


def linked_out(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def put_there(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    shutil.copy(folder.parent / "elsewhere", folder / WEIGHTS)


@pytest.mark.parametrize(
    ("damage", "sentence", "cure"),
    [
        (twice_in_shards, "save it as one file", as_one_file),
        (moved(WEIGHTS, "own.safetensors"), "give the weights their usual name", moved("own.safetensors", WEIGHTS)),
        (model_option("dropout", 0.5), "(dropout 0.5); set it to null", model_option("dropout", None)),
        (sampling(True), "(enable_sampling); set it to false", sampling(False)),
        (without_tokenizer, "copy the files of its base's tokenizer there", with_tokenizer),
        (linked_out, "put the file itself there", put_there),
    ],
    ids=["shards", "name", "dropout", "sampling", "tokenizer", "link"],
)  # fmt: skip
def test_what_a_refusal_tells_to_do_gives_the_encoder_back(
    tiny: TextEncoder, editable: Path, corpus_prompts: list[str], damage: Callable, sentence: str, cure: Callable
):
    damage(editable)
    assert sentence in refusal(editable)
    cure(editable)
    again = load_encoder(editable)
    assert torch.equal(again.ids(corpus_prompts), tiny.ids(corpus_prompts))
    assert torch.equal(again(again.ids(corpus_prompts)), tiny(tiny.ids(corpus_prompts)))
    assert encoders_of(str(editable)) == [str(editable)]
    assert doubts(editable) == []


def test_what_the_refusal_of_an_adapter_tells_to_do_gives_the_encoder_with_it(tmp_path: Path):
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "tiny-sd", dtype=torch.float32)
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    pipe.text_encoder.add_adapter(config)
    layers = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(pipe.text_encoder))
    pipe.save_lora_weights(tmp_path, text_encoder_lora_layers=layers)
    ids = pipe.tokenizer(["a photo of a dog"], padding="max_length", return_tensors="pt").input_ids
    expected = pipe.text_encoder(ids).last_hidden_state

    base = MODELS / "tiny-sd"
    cure = re.search(r"give the file itself: (.*)\.$", refusal(tmp_path))[1]
    with pytest.raises(InputError, match="name the base that it was made for with --anchor"):
        load_encoder(cure)
    fused = load_encoder(cure, given=Given(anchor=str(base)))
    torch.testing.assert_close(fused(ids), expected, atol=1e-5, rtol=0)
    assert (fused(ids) - load_encoder(base)(ids)).abs().max() > 0.1


def test_naming_the_weights_leaves_the_verdict_about_them(editable: Path):
    """What "name the weights that you use with --only" promises: the same weights, and no doubt about the others."""
    whole = load_encoder(editable)
    put(editable / "pytorch_model.bin", pickle.dumps({"a": 1}))
    disturbed(editable / WEIGHTS, editable / "model.fp16.safetensors")
    (named,) = encoders_of(str(editable), WEIGHTS)
    assert load_encoder(named).sha256 == whole.sha256
    assert doubts(named) == []
