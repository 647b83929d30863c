"""Single files: every layout gives the features of the folder, only the encoder is read, and what is not read is said.

Contents
    layouts   one encoder in each, several in one, half precision, FP8 with and without scales, T5
    lent      tokenizer and heads: from --tokenizer, from the folder, from the base; what OpenCLIP's config says
    refused   wrong, mixed, packed and damaged files, each with its cure, which is executed
    places    words that name a part of a file; folders with one file; lists
    bytes     the hash is of what was read; 7 GB
    scan      the verdict is the folder's; two encoders in one file
"""

import json
import re
import shutil
import struct
import time
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
from families import KINDS, letters
from layouts import SEVERAL, SINGLE, in_fp8, named, open_clip, write
from safetensors.torch import load_file
from test_loading import same_features
from test_many import QUICK

import main
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.doubts import Trust, doubts_about
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.report.lists import plan, read_list
from Utils.sources import registry
from Utils.sources.find import encoders_of, source_digest
from Utils.sources.lenders import Given

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tiny_folder: Path) -> Given:
    return Given(anchor=str(tiny_folder))


@pytest.fixture(scope="module")
def tower(tiny: TextEncoder) -> dict[str, torch.Tensor]:
    return tiny.model.state_dict()


@pytest.fixture
def unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No base is known."""
    (tmp_path / "anchors.yaml").write_text("[]", encoding="utf-8")
    monkeypatch.setattr(registry, "REGISTRY", tmp_path / "anchors.yaml")


def refused(file: Path | str, given: Given | None = None) -> str:
    """What the refusal says; one sentence."""
    with pytest.raises(InputError) as error:
        load_encoder(file, given=given)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
    return str(error.value)


# ------------------------------------------------------------------------------------------------------------ layouts
@pytest.mark.parametrize("layout", SINGLE)
def test_a_file_gives_the_features_of_the_folder(
    tiny: TextEncoder, tower: dict, base: Given, tmp_path: Path, corpus_prompts: list[str], layout: str
):
    file = write(SINGLE[layout](tower), tmp_path / "model.safetensors")
    encoder = load_encoder(file, given=base)
    assert same_features(encoder, tiny, corpus_prompts)
    assert encoders_of(str(file)) == [str(file)]
    assert encoder.files.notes[0].startswith(f"{file.name} was read as a")


@pytest.mark.parametrize("layout", SEVERAL)
def test_every_encoder_of_a_file_is_named_by_its_part(
    tiny: TextEncoder, tower: dict, base: Given, tmp_path: Path, corpus_prompts: list[str], layout: str
):
    file = write(SEVERAL[layout](tower), tmp_path / "all in one.safetensors")
    parts = encoders_of(str(file))
    assert parts == [f"{file}/text_encoder", f"{file}/text_encoder_2"]
    assert encoders_of(parts[1]) == [parts[1]]
    for part in parts:
        assert same_features(load_encoder(part, given=base), tiny, corpus_prompts)
    (cure,) = re.findall(r"name one of them, such as (.*)\.$", refused(file, base))
    assert load_encoder(cure, given=base).path == parts[1]
    assert "it holds text_encoder, text_encoder_2" in refused(f"{file}/text_encoder_3", base)


def test_the_tables_agree_with_those_of_diffusers(tiny: TextEncoder, tower: dict):
    """The library's own converters read what these tests write: the layouts are the field's, not ours."""
    assert convert_ldm_clip_checkpoint(SINGLE["SD 1.x"](tower)).keys() == {f"text_model.{name}" for name in tower}
    written = SINGLE["SD 2.x, written from diffusers"](tower)
    written["cond_stage_model.model.text_projection"] = torch.ones(tiny.width, 16)
    theirs = convert_open_clip_checkpoint(tiny.model, written)
    for name, tensor in tower.items():
        assert torch.equal(theirs[f"text_model.{name}"], tensor), name


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_within_its_rounding(
    tiny: TextEncoder, tower: dict, base: Given, tmp_path: Path, corpus_prompts: list[str], kind: torch.dtype
):
    half = {name: tensor.to(kind) for name, tensor in open_clip(tower).items()}
    encoder = load_encoder(write(half, tmp_path / "model.safetensors"), given=base)
    ids = tiny.ids(corpus_prompts)
    rounding = {torch.float16: 1e-2, torch.bfloat16: 6e-2}[kind]
    torch.testing.assert_close(encoder(ids), tiny(ids), rtol=0, atol=rounding)


@pytest.mark.parametrize("scale", ["", "scale_weight", "weight_scale"])
def test_fp8_is_read_with_its_scales(tower: dict, base: Given, tmp_path: Path, scale: str):
    stored = in_fp8(named(tower, "text_encoders.clip_l.transformer."), scale)
    if scale:
        stored |= {
            "text_encoders.clip_l.transformer.scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn),
            "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.scale_input": torch.ones(()),
        }
    encoder = load_encoder(write(stored, tmp_path / "model.safetensors"), given=base)
    for name, tensor in tower.items():
        ours = encoder.model.state_dict()[name]
        steps = tensor.abs().max() * 2**-4 if scale else tensor.abs() * 2**-4 + 2**-10  # FP8 has three bits behind the first
        assert ((ours - tensor).abs() <= steps).all(), name
    exact = in_fp8({"x.weight": tower["encoder.layers.0.mlp.fc1.weight"]}, scale)
    by = exact[f"x.{scale}"] if scale else 1
    assert torch.equal(encoder.model.state_dict()["encoder.layers.0.mlp.fc1.weight"], exact["x.weight"].float() * by)


def test_a_scale_of_rows_is_one_of_rows(tower: dict, base: Given, tmp_path: Path):
    name = "text_model.encoder.layers.0.mlp.fc1.weight"
    rows = torch.rand(64, 1) + 0.5
    stored = named(tower, "") | {name: named(tower, "")[name].to(torch.float8_e5m2), name[:-6] + "weight_scale": rows}
    encoder = load_encoder(write(stored, tmp_path / "model.safetensors"), given=base)
    assert torch.equal(encoder.model.state_dict()[name[11:]], stored[name].float() * rows)
    stored[name[:-6] + "weight_scale"] = torch.ones(3)
    assert "is no scale" in refused(write(stored, tmp_path / "model.safetensors"), base)


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    specials, build = KINDS["t5"]
    tokenizer, folder = letters(*specials), tmp_path_factory.mktemp("t5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        build(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_encoder(folder)


@pytest.mark.parametrize("prefix", ["", "t5xxl.transformer.", "text_encoders.t5xxl.transformer."])
def test_t5_needs_a_tokenizer_only(t5: TextEncoder, tmp_path: Path, corpus_prompts: list[str], prefix: str):
    stored = load_file(Path(t5.path) / "model.safetensors")
    stored = {prefix + name: tensor for name, tensor in stored.items()}
    stored[f"{prefix}decoder.embed_tokens.weight"] = torch.ones(2, 2)
    file = write(stored, tmp_path / "t5xxl.safetensors")
    assert "--tokenizer" in refused(file)
    assert same_features(load_encoder(file, given=Given(tokenizer=t5.path)), t5, corpus_prompts)


def test_a_bundle_holds_clip_and_t5(t5: TextEncoder, tower: dict, base: Given, tmp_path: Path, corpus_prompts: list[str]):
    stored = named(tower, "text_encoders.clip_l.transformer.")
    theirs = load_file(Path(t5.path) / "model.safetensors")
    stored |= {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in theirs.items()}
    file = write(stored, tmp_path / "flux.safetensors")
    assert encoders_of(str(file)) == [f"{file}/text_encoder", f"{file}/text_encoder_2"]
    assert same_features(load_encoder(f"{file}/text_encoder_2", given=Given(anchor=t5.path)), t5, corpus_prompts)


def test_two_tables_of_t5_that_differ_are_refused(t5: TextEncoder, tmp_path: Path):
    stored = load_file(Path(t5.path) / "model.safetensors")
    stored["encoder.embed_tokens.weight"] = stored["shared.weight"].flip(0)
    assert "stored twice" in refused(write(stored, tmp_path / "t5.safetensors"), Given(tokenizer=t5.path))


# --------------------------------------------------------------------------------------------------------------- lent
def test_without_a_tokenizer_the_cures_are_named_and_work(
    tiny: TextEncoder, tower: dict, tiny_folder: Path, tmp_path: Path, corpus_prompts: list[str], unknown: None
):
    file = write(SINGLE["SD 1.x"](wide(tower)), tmp_path / "model.safetensors")
    sentence = refused(file)
    assert "--tokenizer" in sentence
    assert "--anchor" in sentence
    loaded = load_encoder(file, given=Given(tokenizer=str(tiny_folder)))
    assert loaded.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
    assert loaded.model.config.num_attention_heads == 1  # as wide as in every public CLIP
    assert "no tokenizer lies there" in refused(file, Given(tokenizer=str(tmp_path)))


def wide(tower: dict) -> dict:
    """The tower with twice the width."""
    return {name: torch.cat([t] * 2, dim=-1) if t.dim() == 1 else t.repeat(2, 2) if "layers" in name else t.repeat(1, 2)
            for name, t in tower.items()}  # fmt: skip


def test_heads_that_no_shape_tells_are_those_of_the_base(tower: dict, tiny_folder: Path, tmp_path: Path, unknown: None):
    file = write(named(tower, ""), tmp_path / "clip_l.safetensors")
    assert "name its base with --anchor" in refused(file, Given(tokenizer=str(tiny_folder)))
    assert load_encoder(file, given=Given(anchor=str(tiny_folder))).model.config.num_attention_heads == 4
    assert "give its own base" in refused(file, Given(anchor=str(ROOT / "Data" / "Models" / "tiny-sd")))


def test_the_missing_base_is_fetched_by_the_command_that_is_named(tower: dict, tmp_path: Path, monkeypatch):
    sizes = {"model_type": "clip_text_model", "layers": 3, "width": 64, "positions": 24, "vocabulary": 514}
    known = [{"name": "far", "hub": "a/far", "dimensions": sizes, "source": "x"}]
    monkeypatch.setattr("Utils.sources.lenders.known_anchors", lambda: known)
    sentence = refused(write(named(wide(tower), ""), tmp_path / "clip_l.safetensors"))
    assert "Utils/anchors.py --fetch far`" in sentence


def test_a_known_base_at_hand_lends(tmp_path: Path):
    """The shipped base is known by its dimensions: nothing has to be named."""
    shipped = ROOT / "Data" / "Models" / "tiny-sd" / "text_encoder"
    encoder = load_encoder(shipped)
    stored = SINGLE["SD 1.x"](encoder.model.state_dict())
    again = load_encoder(write(stored, tmp_path / "model.safetensors"))
    assert same_features(again, encoder, ["a photo of a dog"])
    assert "tokenizer from tiny-sd" in again.files.notes[0]
    anchor, notes = pick_anchor("auto", again, CPU)
    assert anchor.path == "Data/Models/tiny-sd"
    assert "auto took tiny-sd" in notes[-1]


def open_clip_folder(tower: dict, tiny_folder: Path, folder: Path, **text: object) -> Path:
    folder.mkdir()
    write(open_clip(tower) | {"visual.proj": torch.ones(2)}, folder / "open_clip_model.safetensors")
    for file in tiny_folder.glob("*token*"):
        shutil.copy(file, folder)
    sizes = {"context_length": 24, "vocab_size": 514, "width": 32, "heads": 4, "layers": 3}
    config = {"model_cfg": {"embed_dim": 16, "quick_gelu": True, "vision_cfg": {}, "text_cfg": sizes | text}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_folder_of_openclip_needs_nothing_else(
    tiny: TextEncoder, tower: dict, tiny_folder: Path, tmp_path: Path, corpus_prompts: list[str], unknown: None
):
    folder = open_clip_folder(tower, tiny_folder, tmp_path / "own")
    encoder = load_encoder(folder)
    assert same_features(encoder, tiny, corpus_prompts)
    assert encoders_of(str(folder)) == [str(folder)]
    assert doubts_about(encoder, Trust())[1] == []
    assert same_features(load_encoder(folder / "open_clip_model.safetensors"), tiny, corpus_prompts)
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"\x80\x02")
    assert "open_clip_pytorch_model.bin" in doubts_about(load_encoder(folder), Trust())[1][0]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ({"no_causal_mask": True}, "no_causal_mask"), ({"layers": 4}, "layers"), ({"heads": "4"}, "values"),
        ({"heads": 3}, "loaded"),
    ],
)  # fmt: skip
def test_what_openclip_s_config_asks_for_is_done_or_refused(
    tower: dict, tiny_folder: Path, tmp_path: Path, text: dict, word: str
):
    assert word in refused(open_clip_folder(tower, tiny_folder, tmp_path / "own", **text))


def test_another_activation_than_usual_is_said(tower: dict, base: Given, tmp_path: Path):
    note = load_encoder(write(open_clip(tower), tmp_path / "model.safetensors"), given=base).files.notes[0]
    assert "usually have gelu" in note


def test_the_tokenizer_of_a_trainer_s_folder_can_be_named(
    tiny: TextEncoder, tiny_folder: Path, editable: Path, corpus_prompts: list[str]
):
    for file in editable.glob("token*"):
        file.unlink()
    assert "name a folder of them with --tokenizer" in refused(editable)
    lent = Given(tokenizer=str(tiny_folder))
    assert same_features(load_encoder(editable, given=lent), tiny, corpus_prompts)
    other = Given(tokenizer=str(ROOT / "Data" / "Models" / "tiny-siglip"))
    assert source_digest(str(editable), lent) != source_digest(str(editable), other)


# ------------------------------------------------------------------------------------------------------------ refused
PACKED = {"text_model.encoder.layers.0.mlp.fc1.weight.absmax": torch.ones(2)}
WRONG = {
    "no text encoder": (lambda t: {"model.diffusion_model.x": torch.ones(2)}, "no text encoder, only model"),
    "two layouts": (lambda t: SINGLE["SD 1.x"](t) | SINGLE["SD 2.x"](t), "save the one that you use in a file of its own"),
    "two in one place": (lambda t: named(t, "") | t, "under two names"),
    "hidden": (lambda t: named(t, "") | named(t, "other."), "at once"),
    "four bits": (lambda t: named(t, "") | PACKED, "four or eight bits"),
    "whole numbers": (lambda t: named(t | {"encoder.layers.0.mlp.fc1.weight": torch.ones(64, 32).to(torch.int8)}, ""), "as I8"),
    "a layer gone": (lambda t: {k: v for k, v in named(t, "").items() if ".layers.1." not in k}, "layers of its text encoder"),
    "a tensor gone": (lambda t: {k: v for k, v in named(t, "").items() if not k.endswith("1.mlp.fc1.bias")}, "are missing"),
    "one too many": (lambda t: named(t, "") | {"text_model.evil.weight": torch.ones(2)}, "unknown tensor evil.weight"),
    "a scale in full": (lambda t: named(t | {"encoder.layers.0.mlp.fc1.scale_weight": torch.ones(())}, ""), "unknown tensor"),
    "layer scale": (lambda t: open_clip(t) | {"transformer.resblocks.0.ls_1.gamma": torch.ones(2)}, "unknown tensor"),
    "too many rows": (
        lambda t: open_clip(t) | {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(98, 32)}, "another shape",
    ),
    "no sides": (lambda t: open_clip(t) | {"transformer.resblocks.0.attn.in_proj_weight": torch.ones(())}, "rows"),
    "no table": (lambda t: named(t | {"embeddings.token_embedding.weight": torch.ones(3)}, ""), "another shape"),
    "NaN": (lambda t: named(t | {"final_layer_norm.bias": torch.full((32,), torch.nan)}, ""), "NaN"),
    "a language model": (lambda t: {"model.embed_tokens.weight": torch.ones(2, 2)}, "put its config.json"),
    "one in a bundle": (
        lambda t: {"text_encoders.llama.transformer.model.embed_tokens.weight": torch.ones(2, 2)}, "its tensors do not tell",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_read_is_refused_in_one_sentence(tower: dict, base: Given, tmp_path: Path, what: str):
    make, word = WRONG[what]
    assert word in refused(write(make(tower), tmp_path / "model.safetensors"), base)


def test_one_layout_in_a_file_of_its_own_is_the_cure(tower: dict, base: Given, tiny: TextEncoder, tmp_path: Path):
    both = write(WRONG["two layouts"][0](tower), tmp_path / "both.safetensors")
    mine = {name: tensor for name, tensor in load_file(both).items() if name.startswith("cond_stage_model.transformer.")}
    assert same_features(load_encoder(write(mine, tmp_path / "one.safetensors"), given=base), tiny, ["a dog"])


def test_an_encoder_of_another_family_takes_its_config_beside_it(tmp_path: Path, corpus_prompts: list[str]):
    specials, build = KINDS["siglip"]
    tokenizer = letters(*specials)
    model = build(len(tokenizer))
    file = write({f"text_model.{name}": t for name, t in model.state_dict().items()}, tmp_path / "in" / "siglip.safetensors")
    assert "put its config.json and tokenizer beside it, call it model.safetensors, and give the folder" in refused(file)
    model.config.save_pretrained(file.parent)
    tokenizer.save_pretrained(file.parent)
    file.rename(file.with_name("model.safetensors"))
    assert load_encoder(file.parent).ids(["a"]).shape == (1, 24)


@pytest.mark.parametrize("place", ["file", "other name", "folder"])
def test_gguf_is_named(tmp_path: Path, place: str):
    file = tmp_path / "model" / ("t5.safetensors" if place == "other name" else "t5-Q4_K_M.gguf")
    file.parent.mkdir()
    file.write_bytes(b"GGUF" + bytes(64))
    sentence = refused(file.parent if place == "folder" else file)
    assert "is a GGUF file" in sentence
    assert "safetensors" in sentence
    assert str(file) in read_list(tmp_path / "model") if place == "file" else True


def test_formats_of_few_bits_are_named(tower: dict, base: Given, tmp_path: Path):
    header = {"text_model.x.weight": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}
    raw = json.dumps(header).encode()
    (tmp_path / "m.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + bytes(2))
    assert "few bits" in refused(tmp_path / "m.safetensors", base)


def test_a_truncated_file_is_refused(tower: dict, base: Given, tmp_path: Path):
    file = write(named(tower, ""), tmp_path / "model.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    assert "not a readable safetensors file" in refused(file, base)
    assert "not a readable safetensors file" in refused(tmp_path / "model.safetensors" / "text_encoder", base)


# ------------------------------------------------------------------------------------------------------------- places
def test_a_folder_with_one_file_names_the_file(tiny: TextEncoder, tower: dict, base: Given, tmp_path: Path):
    file = write(SINGLE["SD 1.x"](tower), tmp_path / "checkpoints" / "dream.safetensors")
    (cure,) = re.findall(r"give the file itself: (.*)\.$", refused(file.parent, base))
    assert same_features(load_encoder(cure, given=base), tiny, ["a dog"])
    shutil.copy(file, file.with_name("another.safetensors"))
    (first, folder) = re.findall(r"such as (.*), or all of them with --models (.*)\.$", refused(file.parent, base))[0]
    assert same_features(load_encoder(first, given=base), tiny, ["a dog"])
    assert len(read_list(Path(folder))) == 2


def test_parts_have_results_of_their_own_in_a_list(tower: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    write(SEVERAL["SDXL"](tower), tmp_path / "models" / "xl.safetensors")
    (tmp_path / "list.txt").write_text("models/xl.safetensors\nmodels/xl.safetensors/text_encoder_2\n", encoding="utf-8")
    models = read_list(tmp_path / "list.txt")
    assert [Path(model).name for model in models] == ["xl.safetensors", "text_encoder_2"]
    assert [task.name for task in plan(models[:1], tmp_path / "out")] == [
        "xl.safetensors_text_encoder", "xl.safetensors_text_encoder_2",
    ]  # fmt: skip


def test_an_anchor_may_be_a_file_or_a_pipeline(tiny: TextEncoder, tower: dict, base: Given, tiny_folder: Path, tmp_path: Path):
    suspect = load_encoder(write(named(tower, ""), tmp_path / "a.safetensors"), given=base)
    anchor, notes = pick_anchor(str(tiny_folder), suspect, CPU)
    assert (anchor.sha256, notes) == (tiny.sha256, [])
    twice = [load_encoder(write(named(wide(tower), ""), tmp_path / "c.safetensors"), given=Given(str(tiny_folder)))]
    anchor, notes = pick_anchor(str(tmp_path / "c.safetensors"), *twice, CPU, str(tiny_folder))
    assert anchor.sha256 == twice[0].sha256
    assert notes[0].startswith("the base: c.safetensors was read as")


# -------------------------------------------------------------------------------------------------------------- bytes
def test_the_hash_is_of_the_header_and_the_encoder_s_tensors(tower: dict, base: Given, tmp_path: Path):
    stored = SINGLE["SD 1.x"](tower)
    file = write(stored, tmp_path / "model.safetensors")
    encoder, before = load_encoder(file, given=base), source_digest(str(file), base)
    whole = file.read_bytes()
    length = 8 + struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8:length])
    places = sorted(v["data_offsets"] for k, v in header.items() if k.startswith("cond_stage_model."))
    read = whole[:length] + b"".join(whole[length + begin : length + end] for begin, end in places)
    assert encoder.sha256 == sha256(read).hexdigest()
    assert {f["path"]: f["bytes"] for f in encoder.files.read}["model.safetensors"] == len(read)
    assert encoder.ignored_tensors == ["first_stage_model.encoder.conv_in.weight", "model.diffusion_model* (3 tensors)"]
    write(stored | {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4)}, file)
    assert load_encoder(file, given=base).sha256 == encoder.sha256
    assert source_digest(str(file), base) == before
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    stored[name] = stored[name] + 1
    write(stored, file)
    assert load_encoder(file, given=base).sha256 != encoder.sha256
    assert source_digest(str(file), base) != before


def test_one_encoder_of_7_gb_is_read_alone(tiny_folder: Path, tmp_path: Path, memory_taken):
    """A sparse file: the unet's 7 GB are holes before and behind an encoder, of whose 73 MB of tokens all are zero."""
    layer, joined = "encoder.layers.0.", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
    matrices = [layer + one for one in (*joined, "mlp.fc1", "mlp.fc2")]
    norms = [f"{layer}layer_norm1", f"{layer}layer_norm2", "final_layer_norm"]
    shapes = {f"{one}.weight": [64, 64] for one in matrices} | {f"{one}.weight": [64] for one in norms}
    shapes |= {f"{one}.bias": [64] for one in (*matrices, *norms)}
    shapes |= {"embeddings.position_embedding.weight": [24, 64], "embeddings.token_embedding.weight": [300_000, 64]}
    inner = {f"cond_stage_model.transformer.text_model.{name}": shape for name, shape in shapes.items()}
    header, at = {}, 0
    for name, shape in {"model.diffusion_model.a": [5 << 28], **inner, "model.diffusion_model.b": [2 << 28]}.items():
        end = at + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, end]}
        at = end
    raw, file = json.dumps(header).encode(), tmp_path / "sd.safetensors"
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(raw)) + raw)
        stream.truncate(8 + len(raw) + at)
    assert file.stat().st_size > 7 << 30
    began = time.perf_counter()
    encoder = load_encoder(file, given=Given(tokenizer=str(tiny_folder)))
    taken = memory_taken()
    assert time.perf_counter() - began < 10
    assert taken < 2 * 300_000 * 64 * 4 / 2**20 + 20, taken  # and what libraries take
    assert len(encoder.vocabulary) == 300_000


# --------------------------------------------------------------------------------------------------------------- scan
def test_a_file_with_two_encoders_gives_two_reports(tower: dict, tiny_folder: Path, tmp_path: Path):
    file = write(SEVERAL["SDXL"](tower), tmp_path / "xl.safetensors")
    argv = ["--model", str(file), "--anchor", str(tiny_folder), "--images", "0", "--output", str(tmp_path / "out"), "--quiet"]
    assert main.main([*argv, *QUICK]) in (0, 3)
    for part in ("text_encoder", "text_encoder_2"):
        report = json.loads((tmp_path / "out" / f"xl.safetensors_{part}" / "report.json").read_text())
        assert report["model"]["path"] == f"{file}/{part}"
        assert any(note.startswith("xl.safetensors was read as an SDXL checkpoint") for note in report["notes"])
        assert report["read"]["beside"] == []
