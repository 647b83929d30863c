"""LoRAs: merged into their base as the libraries merge them, whatever their form; other changes are refused by their names.

Contents
    forms     peft, diffusers (new and old names), kohya's for one, two and T5 encoders; strength, alpha, rank, precision
    outside   nothing for a text encoder: 3, alone and in a list; what is ignored is listed
    refused   other kinds of changes, other bases, halves, NaN: one sentence
    words     parts, folders, the base as a file; digests
    scan      end to end
"""

import json
import re
from pathlib import Path

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from families import KINDS, letters
from layouts import SINGLE, write
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from test_many import QUICK
from test_sources import refused
from transformers import CLIPTextModel

import main
from Utils.basics.errors import OutOfScope
from Utils.basics.files import ROOT
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.report.lists import plan
from Utils.sources.find import encoders_of, source_digest
from Utils.sources.lenders import Given

RANK, ALPHA = 4, 8
TARGETS = ["q_proj", "v_proj", "out_proj", "fc1", "fc2"]
UNET = {
    f"lora_unet_down_blocks_0_resnets_0_conv1.{name}": torch.ones(2, 2, 1, 1) for name in ("lora_down.weight", "lora_up.weight")
}


class Trained:
    """A change of the tiny encoder that peft made, and the features with it."""

    def __init__(self, folder: Path, prompts: list[str]):
        self.folder, self.base, self.encoder = folder, Given(anchor=str(folder)), load_encoder(folder)
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS, init_lora_weights=False)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = peft.get_peft_model(CLIPTextModel.from_pretrained(folder), config).eval()
        self.ids = self.encoder.ids(prompts)
        with torch.no_grad():
            self.features = self.model(input_ids=self.ids).last_hidden_state
        self.factors = {
            name.removeprefix("base_model.model."): tensor.detach().clone()
            for name, tensor in get_peft_model_state_dict(self.model).items()
        }

    def named(self, prefix: str, down: str, up: str, flat: bool = False, alpha: bool = True) -> dict[str, torch.Tensor]:
        """The factors under other names; alpha: with the number beside them."""
        found = {}
        for name, tensor in self.factors.items():
            module, _, last = name.rpartition(".lora_")
            module = f"text_model.{module.removeprefix('text_model.')}"
            stem = prefix + (module.replace(".", "_") if flat else module)
            found[f"{stem}.{down if last[0] == 'A' else up}"] = tensor
            if alpha:
                found[f"{stem}.alpha"] = torch.tensor(float(ALPHA))
        return found

    def kohya(self, te: str = "te") -> dict[str, torch.Tensor]:
        return self.named(f"lora_{te}_", "lora_down.weight", "lora_up.weight", flat=True)

    def merged(self, file: Path | str, scale: float = 1.0) -> TextEncoder:
        return load_encoder(file, given=Given(anchor=str(self.folder), lora_scale=scale))

    def agrees(self, file: Path | str, tolerance: float = 1e-5) -> bool:
        merged = self.merged(file)
        assert (merged(self.ids) - self.encoder(self.ids)).abs().max() > 0.1  # it does something
        torch.testing.assert_close(merged(self.ids), self.features, rtol=0, atol=tolerance)
        return True


@pytest.fixture(scope="module")
def trained(tiny_folder: Path, corpus_prompts: list[str]) -> Trained:
    return Trained(tiny_folder, corpus_prompts)


# -------------------------------------------------------------------------------------------------------------- forms
FORMS = {
    "diffusers": lambda t: t.named("text_encoder.", "lora_A.weight", "lora_B.weight"),
    "diffusers, old": lambda t: t.named("text_encoder.", "lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    "kohya": lambda t: t.kohya() | UNET,
    "kohya, SDXL": lambda t: t.kohya("te1") | UNET,
    "peft, in place": lambda t: t.named("base_model.model.", "lora_A.default.weight", "lora_B.default.weight"),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_merged_is_what_peft_computes(trained: Trained, tmp_path: Path, form: str):
    file = write(FORMS[form](trained), tmp_path / "lora.safetensors")
    assert trained.agrees(file)
    assert encoders_of(str(file)) == [f"{file}/text_encoder"]
    assert trained.agrees(f"{file}/text_encoder")


def test_half_precision_is_read_within_its_rounding(trained: Trained, tmp_path: Path):
    half = {name: tensor.half() for name, tensor in trained.kohya().items()}
    assert trained.agrees(write(half, tmp_path / "lora.safetensors"), tolerance=5e-3)


def test_a_folder_of_peft_brings_its_alpha(trained: Trained, tmp_path: Path):
    trained.model.save_pretrained(tmp_path / "adapter")
    assert trained.agrees(tmp_path / "adapter")
    assert trained.agrees(tmp_path / "adapter" / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    for values, word in (
        ({"use_dora": True}, "use_dora"), ({"alpha_pattern": {"q_.*": 2}}, "alpha_pattern"), ({"bias": "all"}, "bias"),
        ({"lora_alpha": "8"}, "lora_alpha"),
    ):  # fmt: skip
        (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config | values))
        assert word in refused(tmp_path / "adapter", trained.base)


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"alpha_pattern": {"fc1": 1, "layers.0.mlp.fc2": 3}}, {}], ids=str)
def test_other_strengths_of_peft_are_its(tiny_folder: Path, trained: Trained, tmp_path: Path, options: dict):
    config = peft.LoraConfig(r=2, lora_alpha=5, target_modules=["fc1", "fc2"], init_lora_weights=False, **options)
    model = peft.get_peft_model(CLIPTextModel.from_pretrained(tiny_folder), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model(input_ids=trained.ids).last_hidden_state
    torch.testing.assert_close(trained.merged(tmp_path / "adapter")(trained.ids), expected, rtol=0, atol=1e-5)


def test_the_config_that_diffusers_writes_into_a_file_counts(trained: Trained, tmp_path: Path):
    factors = trained.named("text_encoder.", "lora_A.weight", "lora_B.weight", alpha=False)
    said = {"text_encoder.lora_alpha": ALPHA, "text_encoder.r": RANK, "unet.lora_alpha": 1}
    save_file(factors, tmp_path / "with.safetensors", metadata={"lora_adapter_metadata": json.dumps(said)})
    assert trained.agrees(tmp_path / "with.safetensors")
    save_file(factors, tmp_path / "broken.safetensors", metadata={"lora_adapter_metadata": "{"})
    assert "cannot be read" in refused(tmp_path / "broken.safetensors", trained.base)
    without = trained.merged(write(factors, tmp_path / "without.safetensors"))  # then alpha is the rank
    half = trained.merged(tmp_path / "with.safetensors", scale=RANK / ALPHA)
    torch.testing.assert_close(without(trained.ids), half(trained.ids), rtol=0, atol=1e-5)


def test_strength_is_linear_and_nothing_at_zero(trained: Trained, tmp_path: Path):
    file = write(trained.kohya(), tmp_path / "lora.safetensors")
    name = "encoder.layers.0.mlp.fc1.weight"
    zero, half, one = (trained.merged(file, scale).model.state_dict()[name] for scale in (0.0, 0.5, 1.0))
    assert torch.equal(zero, trained.encoder.model.state_dict()[name])
    torch.testing.assert_close(half, (zero + one) / 2)
    shas = {trained.merged(file, scale).sha256 for scale in (0.5, 1.0)}
    assert len(shas) == 2  # two encoders


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
def test_the_pipeline_of_diffusers_makes_the_same_encoder(corpus_prompts: list[str], tmp_path: Path, form: str):
    base = Trained(ROOT / "Data" / "Models" / "tiny-sd" / "text_encoder", corpus_prompts)
    pipe = StableDiffusionPipeline.from_pretrained(ROOT / "Data" / "Models" / "tiny-sd", dtype=torch.float32)
    factors = base.kohya() if form == "kohya" else base.named("text_encoder.", "lora_A.weight", "lora_B.weight", alpha=False)
    file = write(factors, tmp_path / "lora.safetensors")
    pipe.load_lora_weights(file)
    with torch.no_grad():
        expected = pipe.text_encoder(base.ids).last_hidden_state
    merged = load_encoder(file, given=Given(anchor=str(ROOT / "Data" / "Models" / "tiny-sd")))
    assert (merged(base.ids) - base.encoder(base.ids)).abs().max() > 0.1
    torch.testing.assert_close(merged(base.ids), expected, rtol=0, atol=1e-5)


def test_a_change_of_t5_is_merged(tmp_path: Path):
    specials, build = KINDS["t5"]
    tokenizer = letters(*specials)
    build(len(tokenizer)).save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    stem = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    down, up = torch.randn(2, 64), torch.randn(64, 2)
    file = write({f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}, tmp_path / "flux.safetensors")
    assert encoders_of(str(file)) == [f"{file}/text_encoder_3"]
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    before = load_encoder(tmp_path / "t5").model.state_dict()[name]
    after = load_encoder(file, given=Given(anchor=str(tmp_path / "t5"))).model.state_dict()[name]
    torch.testing.assert_close(after, before + up @ down)


# ------------------------------------------------------------------------------------------------------------ outside
ELSEWHERE = {
    "kohya": UNET, "diffusers": {"unet.down_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)},
    "flux": {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": torch.ones(2, 2)},
    "comfy": {"diffusion_model.double_blocks.0.img_attn.proj.lora_down.weight": torch.ones(2, 2)},
    "peft": {"base_model.model.down_blocks.0.attentions.0.to_q.lora_A.weight": torch.ones(2, 2)},
    "LoHa of the unet": {"lora_unet_mid_block_x.hada_w1_a": torch.ones(2, 2)},
}  # fmt: skip


@pytest.mark.parametrize("form", ELSEWHERE)
def test_a_change_of_other_parts_is_out_of_scope(tmp_path: Path, form: str):
    file = write(ELSEWHERE[form], tmp_path / "lora.safetensors")
    with pytest.raises(OutOfScope, match=r"nothing in .* touches a text encoder, and the rest of a pipeline is out of scope\."):
        encoders_of(str(file))
    with pytest.raises(OutOfScope):
        load_encoder(file, given=Given(anchor=str(tmp_path)))


def test_textual_inversions_beside_changes_are_said(trained: Trained, tmp_path: Path):
    bundled = {"bundle_emb.style.string_to_param.*": torch.ones(2, 32)}
    encoder = trained.merged(write(trained.kohya() | bundled | UNET, tmp_path / "both.safetensors"))
    assert "textual inversion" in encoder.files.doubts[0]
    assert encoder.ignored_tensors == ["bundle_emb.style.string_to_param.*", "lora_unet* (2 tensors)"]
    with pytest.raises(OutOfScope, match="textual inversions in it"):
        encoders_of(str(write(UNET | bundled, tmp_path / "unet.safetensors")))


# ------------------------------------------------------------------------------------------------------------ refused
Q = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
PAIR = {f"{Q}.lora_down.weight": torch.ones(2, 32), f"{Q}.lora_up.weight": torch.ones(32, 2)}
OTHERS = {
    "LoHa": ({f"{Q}.hada_w1_a": torch.ones(2, 2)}, "LoHa"), "LoKr": ({f"{Q}.lokr_w1": torch.ones(2, 2)}, "LoKr"),
    "OFT": ({f"{Q}.oft_blocks": torch.ones(2, 2)}, "OFT"), "DoRA": (PAIR | {f"{Q}.dora_scale": torch.ones(2)}, "DoRA"),
    "differences": ({f"{Q}.diff": torch.ones(2, 2)}, "a whole difference"),
    "Tucker": (PAIR | {f"{Q}.lora_mid.weight": torch.ones(2, 2, 1, 1)}, "Tucker"),
    "IA3": ({f"{Q}.weight": torch.ones(2), f"{Q}.on_input": torch.ones(())}, "IA3"),
    "LyCORIS": ({"lycoris_blocks_0_attn.lora_down.weight": torch.ones(2, 2)}, "LyCORIS"),
    "unknown": (PAIR | {"something.else": torch.ones(2)}, "no form that is known"),
    "half of it": ({f"{Q}.lora_up.weight": torch.ones(32, 2)}, "only a part"),
    "another base": ({f"{Q}.lora_down.weight": torch.ones(2, 768), f"{Q}.lora_up.weight": torch.ones(768, 2)}, "768 x 768"),
    "a layer too many": ({name.replace("layers_0", "layers_9"): t for name, t in PAIR.items()}, "made for with --anchor"),
    "ranks": (PAIR | {f"{Q}.lora_up.weight": torch.ones(32, 3)}, "made for with --anchor"),
    "alpha 0": (PAIR | {f"{Q}.alpha": torch.tensor(0.0)}, "is 0"),
    "alpha of many": (PAIR | {f"{Q}.alpha": torch.ones(2)}, "form that is not read"),
    "NaN": (PAIR | {f"{Q}.alpha": torch.tensor(torch.nan)}, "NaN"),
    "whole numbers": (PAIR | {f"{Q}.lora_up.weight": torch.ones(32, 2).to(torch.int8)}, "form that is not read"),
    "twice": (
        PAIR | {f"text_encoder.encoder.layers.0.self_attn.q_proj.lora_{end}.weight": torch.ones(shape)
                for end, shape in (("A", (2, 32)), ("B", (32, 2)))}, "twice",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_not_understood_is_refused_by_name(trained: Trained, tmp_path: Path, what: str):
    tensors, word = OTHERS[what]
    assert word in refused(write(tensors, tmp_path / "lora.safetensors"), trained.base)


@pytest.mark.parametrize("anchor", ["auto", "none"])
def test_without_a_base_it_is_asked_for(trained: Trained, tmp_path: Path, anchor: str):
    file = write(trained.kohya(), tmp_path / "lora.safetensors")
    assert "name the base that it was made for with --anchor" in refused(file, Given(anchor=anchor))
    assert trained.agrees(file)


# -------------------------------------------------------------------------------------------------------------- words
def test_two_encoders_are_named_by_their_parts(trained: Trained, tmp_path: Path):
    file = write(trained.kohya("te1") | trained.kohya("te2"), tmp_path / "xl.safetensors")
    assert [task.name for task in plan([str(file)], tmp_path)] == [
        "xl.safetensors_text_encoder",
        "xl.safetensors_text_encoder_2",
    ]
    (cure,) = re.findall(r"such as (.*)\.$", refused(file, trained.base))
    assert trained.agrees(cure)
    assert "does not change text_encoder_3" in refused(f"{file}/text_encoder_3", trained.base)


def test_the_base_may_be_a_file(trained: Trained, tmp_path: Path):
    known = load_file(ROOT / "Data" / "Models" / "tiny-sd" / "text_encoder" / "model.safetensors")
    known = {name.removeprefix("text_model."): tensor for name, tensor in known.items()}
    base = write(SINGLE["SD 1.x"](known), tmp_path / "v1-5.safetensors")
    change = {f"{Q}.lora_down.weight": torch.ones(2, 160), f"{Q}.lora_up.weight": torch.ones(160, 2)}
    merged = load_encoder(write(change, tmp_path / "lora.safetensors"), given=Given(anchor=str(base)))
    name = "encoder.layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(merged.model.state_dict()[name], known[name].float() + 2)
    assert {Path(f["path"]).name for f in merged.files.read} >= {"v1-5.safetensors", "lora.safetensors"}


def test_the_digest_is_of_the_file(trained: Trained, tmp_path: Path):
    file = write(trained.kohya(), tmp_path / "lora.safetensors")
    before = source_digest(f"{file}/text_encoder", trained.base)
    assert source_digest(f"{file}/text_encoder", trained.base) == before
    write(trained.kohya() | UNET, file)
    assert source_digest(f"{file}/text_encoder", trained.base) != before


# --------------------------------------------------------------------------------------------------------------- scan
def test_lists_and_single_files_end_with_their_codes(trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture):
    unet = write(UNET, tmp_path / "models" / "unet.safetensors")
    listed = tmp_path / "models.txt"
    listed.write_text("models/unet.safetensors\n")
    argv = ["--anchor", str(trained.folder), "--images", "0", "--output", str(tmp_path / "out"), *QUICK]
    assert main.main(["--model", str(unet), *argv]) == 3
    assert "touches a text encoder" in capsys.readouterr().err
    assert main.main(["--models", str(listed), *argv]) == 3
    (row,) = json.loads((tmp_path / "out" / "summary.json").read_text())["models"]
    assert "touches a text encoder" in row["error"]
    assert main.main(["--models", str(unet.parent), *argv]) == 2
    assert "LoRAs that touch no text encoder" in capsys.readouterr().err
    lora = write(trained.kohya(), tmp_path / "lora.safetensors")
    code = main.main(["--model", str(lora), "--lora-scale", "0.5", *argv])
    report = json.loads((tmp_path / "out" / "lora.safetensors_text_encoder" / "report.json").read_text())
    assert code == {"clean": 0, "backdoored": 1, "inconclusive": 3}[report["verdict"]]
    assert any("merged into" in note and "at 0.5" in note for note in report["notes"])
    assert "--lora-scale 0.5" in report["command"]
