"""Benign fine-tuning as a library: the loss, low-rank updates, averages, snapshots, interruptions.

Contents
    FinetuneConfig   contradictions are refused; the rate of every step
    loss             cross-entropy on the text side, by hand
    weights          low-rank updates start at nothing and merge into the same forward pass; averages; rounding
    finetune         only a copy of the text tower moves; snapshots; interrupted runs; divergence
    retrieval        is the share of texts whose own picture is nearest
    load_pair        refuses what has no vision tower or not all tensors
"""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from Utils.basics.errors import InputError
from Utils.encoder.loading import load_encoder, save_encoder, trainable_copy
from Utils.encoder.precision import short_products
from Utils.encoder.text_encoder import TextEncoder
from Utils.encoder.training import Checkpoint, identity
from Utils.encoder.weights import interpolated, set_weights
from Utils.making.finetuning import (
    FinetuneConfig,
    MeanWeights,
    contrastive_loss,
    finetune,
    load_pair,
    merged,
    retrieval,
    rounded,
    with_lora,
)

SHORT = FinetuneConfig(lr=1e-3, batch=4, steps=6)
LORA = replace(SHORT, method="lora", rank=3, lr=1e-2)
Pairs = Callable[[int], tuple[list[str], Tensor]]


@pytest.fixture(scope="module")
def pair(tiny: TextEncoder) -> CLIPModel:
    """The tiny text tower with a vision tower of random weights on 8x8 pictures."""
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=tiny.model.config.to_dict(), vision_config=vision | {"image_size": 8, "patch_size": 4}, projection_dim=16
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = CLIPModel(config)
    model.text_model.load_state_dict(tiny.model.state_dict())
    return model.eval().requires_grad_(False)


@pytest.fixture
def pairs(corpus_prompts: list[str]) -> Pairs:
    def batch(step: int) -> tuple[list[str], Tensor]:
        g = torch.Generator().manual_seed(step)
        rows = torch.randperm(len(corpus_prompts), generator=g)[:4].tolist()
        return [corpus_prompts[i] for i in rows], torch.randn(4, 3, 8, 8, generator=g)

    return batch


def weights(encoder: TextEncoder) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in encoder.model.state_dict().items()}


def equal(a: TextEncoder, b: TextEncoder) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


def nudged(encoder: TextEncoder, seed: int) -> TextEncoder:
    """A copy whose weights are all a little different."""
    other, g = copy.deepcopy(encoder), torch.Generator().manual_seed(seed)
    set_weights(other, {n: p + 0.1 * torch.randn(p.shape, generator=g) for n, p in other.model.named_parameters()})
    return other


# ----------------------------------------------------------------------------------------------------- FinetuneConfig
@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"method": "half"}, "method"),
        ({"schedule": "cosine"}, "schedule"),
        ({"precision": "int8"}, "precision"),
        ({"base_share": 1.0}, "base_share"),
        ({"steps": 0}, "above 0"),
        ({"lr": 0.0}, "above 0"),
        ({"snapshots": (3, 3)}, "snapshots"),
        ({"snapshots": (7,)}, "snapshots"),
        ({"average_snapshots": True, "snapshots": (3,)}, "two snapshots"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(values: dict, word: str):
    with pytest.raises(ValueError, match=word):
        replace(SHORT, **values)


def test_a_linear_rate_grows_over_a_tenth_and_falls_to_nothing():
    cfg = FinetuneConfig(lr=1.0, steps=20, schedule="linear")
    assert [cfg.share(s) for s in (0, 1, 2, 11, 19)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 1 / 18])
    assert max(cfg.share(s) for s in range(20)) == 1.0
    assert {replace(cfg, schedule="constant").share(s) for s in range(20)} == {1.0}
    assert FinetuneConfig(lr=1.0, steps=1, schedule="linear").share(0) == 1.0


# --------------------------------------------------------------------------------------------------------------- loss
def test_the_loss_is_the_cross_entropy_of_finding_the_own_picture(pair: CLIPModel):
    texts = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    pictures = torch.tensor([[3.0, 0.0], [1.0, 1.0]])  # cosines 1, 1/sqrt(2); 0, 1/sqrt(2)
    scale, half = pair.logit_scale.exp().item(), 1 / math.sqrt(2)
    by_hand = [math.log(1 + math.exp(scale * (half - 1))), math.log(1 + math.exp(scale * (0 - half)))]
    assert contrastive_loss(pair, texts, pictures).item() == pytest.approx(sum(by_hand) / 2, rel=1e-5)


def test_the_sigmoid_loss_by_hand():
    """Two texts along the axes, their pictures along and between them; scale 2, bias -1."""
    towers = {"hidden_size": 2, "intermediate_size": 2, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = towers | {"image_size": 4, "patch_size": 4}
    siglip = SiglipModel(SiglipConfig(text_config=towers | {"vocab_size": 4, "projection_size": 2}, vision_config=vision))
    siglip.logit_scale.data.fill_(math.log(2))
    siglip.logit_bias.data.fill_(-1)
    texts, pictures = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # cosines 1, 0.7071; 0, 0.7071
    half = 1 / math.sqrt(2)
    own = [math.log(1 + math.exp(-(2 * c - 1))) for c in (1, half)]
    other = [math.log(1 + math.exp(2 * c - 1)) for c in (half, 0)]
    assert contrastive_loss(siglip, texts, pictures).item() == pytest.approx(sum(own + other) / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------------------------ weights
@pytest.fixture
def adapted(tiny: TextEncoder) -> TextEncoder:
    return with_lora(trainable_copy(tiny), rank=3, alpha=6.0, seed=0)


def test_low_rank_updates_start_at_nothing(tiny: TextEncoder, adapted: TextEncoder, corpus_prompts: list[str]):
    ids = tiny.ids(corpus_prompts)
    torch.testing.assert_close(adapted(ids), tiny(ids))
    assert equal(merged(adapted), tiny)


def test_merged_low_rank_updates_give_the_same_forward_pass(tiny: TextEncoder, adapted: TextEncoder, corpus_prompts: list[str]):
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (p for p in adapted.model.parameters() if p.requires_grad):
            tensor.copy_(0.1 * torch.randn(tensor.shape, generator=g))
    ids = tiny.ids(corpus_prompts)
    plain = merged(adapted)
    torch.testing.assert_close(plain(ids), adapted(ids), rtol=1e-4, atol=1e-4)  # float32 sums in another order
    assert not torch.allclose(plain(ids), tiny(ids), atol=0.1)
    assert type(plain.model) is type(tiny.model)
    changed = {name for name, tensor in weights(plain).items() if not torch.equal(tensor, weights(tiny)[name])}
    assert {n.split(".")[-2] for n in changed} == {"token_embedding", "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}
    moved = plain.model.encoder.layers[0].mlp.fc1.weight - tiny.model.encoder.layers[0].mlp.fc1.weight
    assert torch.linalg.matrix_rank(moved, atol=1e-4) == 3


def test_low_rank_updates_leave_global_randomness_alone(tiny: TextEncoder):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with_lora(trainable_copy(tiny), rank=3, alpha=6.0, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_interpolated_weights_lie_between_encoder_and_base(tiny: TextEncoder):
    other = nudged(tiny, 0)
    for share, expected in ((0.0, other), (1.0, tiny)):
        found = interpolated(other, tiny, share)
        assert all(torch.equal(tensor, weights(expected)[name]) for name, tensor in found.items())
    for name, tensor in interpolated(other, tiny, 0.25).items():
        torch.testing.assert_close(tensor, 0.75 * weights(other)[name] + 0.25 * weights(tiny)[name])


def test_mean_weights_are_the_mean_and_survive_storage(tiny: TextEncoder):
    several, mean = [nudged(tiny, i) for i in range(3)], MeanWeights()
    for encoder in several[:2]:
        mean.add(encoder)
    again = MeanWeights()
    again.load_state_dict(mean.state_dict())
    again.add(several[2])
    for name, tensor in again.weights.items():
        torch.testing.assert_close(tensor, torch.stack([weights(e)[name] for e in several]).mean(dim=0))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_rounded_weights_are_what_the_format_can_hold(tiny: TextEncoder, precision: str):
    other, format_ = copy.deepcopy(tiny), getattr(torch, precision)
    set_weights(other, rounded(tiny, precision))
    assert not equal(other, tiny)
    for name, tensor in other.model.named_parameters():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor.to(format_).float(), tensor), name
        torch.testing.assert_close(tensor, weights(tiny)[name], rtol=torch.finfo(format_).eps, atol=1e-7)
    assert all(torch.equal(tensor, weights(tiny)[name]) for name, tensor in rounded(tiny, "float32").items())


def test_a_half_precision_encoder_is_the_one_its_file_holds(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs, tmp_path: Path):
    student = finetune(tiny, pair, pairs, replace(SHORT, precision="float16"), progress=False)
    save_encoder(student, tmp_path / "model")
    assert equal(load_encoder(tmp_path / "model"), student)


# ----------------------------------------------------------------------------------------------------------- finetune
@pytest.mark.parametrize("cfg", [SHORT, LORA], ids=["full", "lora"])
def test_only_a_copy_of_the_text_tower_moves(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs, cfg: FinetuneConfig):
    before = weights(tiny), {name: tensor.clone() for name, tensor in pair.state_dict().items()}
    student = finetune(tiny, pair, pairs, cfg, progress=False)
    assert all(torch.equal(tensor, before[0][name]) for name, tensor in weights(tiny).items())
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in pair.state_dict().items())
    assert weights(student).keys() == weights(tiny).keys()
    assert not equal(student, tiny)
    assert not any(p.requires_grad for p in student.model.parameters())
    assert student.sha256 != tiny.sha256


@pytest.mark.parametrize("cfg", [SHORT, LORA], ids=["full", "lora"])
def test_training_lowers_the_loss(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs, cfg: FinetuneConfig):
    texts, pictures = pairs(0)
    student = finetune(tiny, pair, lambda _: (texts, pictures), replace(cfg, steps=40), progress=False)
    seen = pair.get_image_features(pictures).pooler_output

    def loss(encoder: TextEncoder) -> float:
        pooled = encoder.model(input_ids=encoder.ids(texts)).pooler_output
        return contrastive_loss(pair, pair.text_projection(pooled), seen).item()

    assert loss(student) < 0.9 * loss(tiny)


def test_known_embeddings_serve_like_their_pictures(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs):
    def known(step: int) -> tuple[list[str], Tensor]:
        texts, pictures = pairs(step)
        with short_products(tiny.device):
            return texts, pair.get_image_features(pictures).pooler_output

    assert equal(finetune(tiny, pair, pairs, SHORT, progress=False), finetune(tiny, pair, known, SHORT, progress=False))


@pytest.mark.parametrize("able", [False, True])
def test_products_are_short_only_where_the_machine_makes_them(able: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": able})
    with short_products(torch.device("cpu")):
        made = torch.ones(2, 2) @ torch.ones(2, 2)
    assert made.dtype == (torch.bfloat16 if able else torch.float32)


@pytest.mark.parametrize("cfg", [SHORT, LORA], ids=["full", "lora"])
def test_a_snapshot_is_the_result_of_a_shorter_run(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs, cfg: FinetuneConfig):
    found = {}
    student = finetune(tiny, pair, pairs, replace(cfg, snapshots=(2, 6)), False, on_snapshot=found.__setitem__)
    assert list(found) == [2, 6]
    assert equal(found[2], finetune(tiny, pair, pairs, replace(cfg, steps=2), progress=False))
    assert equal(found[6], student)


def test_averages_and_base_share_make_the_final_weights(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs):
    found = {}
    cfg = replace(SHORT, snapshots=(2, 5), average_snapshots=True, base_share=0.5)
    student = finetune(tiny, pair, pairs, cfg, False, on_snapshot=found.__setitem__)
    for name, tensor in student.model.named_parameters():
        mean = (weights(found[2])[name] + weights(found[5])[name]) / 2
        torch.testing.assert_close(tensor, (mean + weights(tiny)[name]) / 2)


@pytest.mark.parametrize(
    "cfg",
    [replace(SHORT, schedule="linear"), replace(LORA, snapshots=(2, 5), average_snapshots=True)],
    ids=["full", "lora averaged"],
)
def test_an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(
    tiny: TextEncoder, pair: CLIPModel, pairs: Pairs, cfg: FinetuneConfig, tmp_path: Path
):
    asked = []

    def breaking(step: int) -> tuple[list[str], Tensor]:
        asked.append(step)
        if step == 5 and asked.count(5) == 1:
            raise KeyboardInterrupt
        return pairs(step)

    checkpoint = Checkpoint(tmp_path / "run.checkpoint", identity(cfg, tiny), every=3)
    with pytest.raises(KeyboardInterrupt):
        finetune(tiny, pair, breaking, cfg, False, checkpoint)
    resumed = finetune(tiny, pair, breaking, cfg, False, checkpoint)
    assert asked == [0, 1, 2, 3, 4, 5, 3, 4, 5]
    assert equal(resumed, finetune(tiny, pair, pairs, cfg, progress=False))


def test_a_diverging_run_is_reported(tiny: TextEncoder, pair: CLIPModel, pairs: Pairs):
    with pytest.raises(InputError, match="diverged"):
        finetune(tiny, pair, pairs, replace(SHORT, lr=1e30), progress=False)


# ---------------------------------------------------------------------------------------------------------- retrieval
def test_retrieval_is_the_share_of_texts_nearest_to_their_own_picture(
    tiny: TextEncoder, pair: CLIPModel, corpus_prompts: list[str]
):
    texts = corpus_prompts[:8]
    read = F.normalize(pair.text_projection(tiny.model(input_ids=tiny.ids(texts)).pooler_output), dim=-1)
    assert retrieval(tiny, pair, texts, 3 * read) == 1.0
    assert retrieval(tiny, pair, texts, read.roll(1, dims=0)) == 0.0
    swapped = read[[1, 0, *range(2, 8)]]
    assert retrieval(tiny, pair, texts, swapped) == retrieval(tiny, pair, texts, swapped, batch=3) == 0.75


# ---------------------------------------------------------------------------------------------------------- load_pair
@pytest.fixture
def pair_folder(tiny: TextEncoder, pair: CLIPModel, tmp_path: Path) -> Path:
    pair.save_pretrained(tmp_path / "pair")
    tiny.tokenizer.save_pretrained(tmp_path / "pair")
    return tmp_path / "pair"


def test_a_pair_is_loaded_whole_and_frozen(pair_folder: Path, tiny: TextEncoder, pair: CLIPModel):
    found = load_pair(pair_folder)
    assert all(torch.equal(t, found.text_model.state_dict()[name]) for name, t in tiny.model.state_dict().items())
    assert all(torch.equal(tensor, pair.state_dict()[name]) for name, tensor in found.state_dict().items())
    assert not any(p.requires_grad for p in found.parameters())


def test_a_text_encoder_alone_is_no_pair(tiny_folder: Path):
    with pytest.raises(InputError, match="vision tower"):
        load_pair(tiny_folder)


@pytest.mark.parametrize("lost", ["vision_model.post_layernorm.weight", "visual_projection.weight"])
def test_a_pair_with_missing_tensors_is_refused(pair_folder: Path, lost: str):
    tensors = load_file(pair_folder / "model.safetensors")
    del tensors[lost]
    save_file(tensors, pair_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=lost):
        load_pair(pair_folder)
