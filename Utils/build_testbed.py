"""Train the embedded testbed: tokenizer, CLIP pair, autoencoder, UNet, two more families; measure their quality bars.

    python Utils/build_testbed.py                    every stage, as far as it is not done yet
    python Utils/build_testbed.py --stages clip bars single stages, in the order given
    python Utils/build_testbed.py --font NotoColorEmoji.ttf --stages sprites

Stages: sprites, tokenizer, vae, clip, unet, corpus, longclip, siglip, bars, hashes.  Interrupted trainings go on where
they stopped (checkpoints in Data/Models/.work).  Two CPU cores need about two hours.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from PIL import Image
from tokenizers import Tokenizer, models, processors
from torch import Tensor, nn
from tqdm import tqdm
from transformers import (
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.config import load_config
from Utils.basics.errors import InputError
from Utils.basics.files import ROOT, digest_of, whole_file, write_whole
from Utils.encoder.loading import pick_device, save_half
from Utils.encoder.measures import assimilation
from Utils.encoder.precision import short_products
from Utils.encoder.text_encoder import attended_positions
from Utils.encoder.training import Checkpoint, Training, train
from Utils.making import scenes
from Utils.making.scenes import PROMPTS
from Utils.making.testbed import Phase, TinyModels
from Utils.making.vocabulary import BOS, EOS, learn_tokenizer, split_words

MODELS = ROOT / "Data" / "Models"
WORK = MODELS / ".work"
CLIP, SD = MODELS / "tiny-clip", MODELS / "tiny-sd"
LONGCLIP, SIGLIP = MODELS / "tiny-longclip", MODELS / "tiny-siglip"
# CLIP's own pre-tokenisation: contractions, words, single digits, runs of other signs
STREAMS = {name: i for i, name in enumerate(["tokenizer", "vae", "clip", "unet", "corpus", "bars", "longclip", "siglip"])}


def stream(cfg: TinyModels, name: str, index: int = 0) -> np.random.Generator:
    """Independent randomness for one batch of one stage, so that a resumed training sees the same data."""
    return np.random.default_rng([cfg.seed, STREAMS[name], index])


# ------------------------------------------------------------------------------------------------------ the training
def fit(
    cfg: TinyModels, name: str, parts: dict[str, nn.Module], settings: Phase, step_loss: Callable[[int], tuple[Tensor, str]],
    watch: Callable[[], str] | None = None, ema: EMAModel | None = None,
) -> None:  # fmt: skip
    """Train `parts` with AdamW and a one-cycle rate, saving a checkpoint every minute; `name`: a stage, or stage-phase."""
    part = getattr(cfg, name.partition("-")[0])
    weights = [p for module in parts.values() for p in module.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=settings.lr, weight_decay=part.weight_decay, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.lr, total_steps=settings.steps + 1, pct_start=0.1)
    for module in parts.values():
        module.train()

    def after_step(done: int, says: str) -> None:
        if ema:
            ema.step(weights)
        if watch and done % 200 == 0:
            tqdm.write(f"{name} {done}: {says} {watch()}")

    # a phase may be added or changed without losing those before it
    decisive = json.dumps([cfg.seed, name, asdict(part) | {"phases": None}, asdict(settings)])
    checkpoint = Checkpoint(WORK / f"{name}.pt", decisive, every=1, pause=60.0)
    also = {"ema": ema} if ema else {}
    train(Training(parts, optimiser, schedule, settings.steps, name, checkpoint, also, longest=1.0), step_loss, after_step)


# ------------------------------------------------------------------------------------------------------- the stages
def build_sprites(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The sprite sheet; needs --font (Noto Color Emoji) only where the shipped sheet is missing."""
    target = scenes.SCENES / "sprites.png"
    if font:
        sheet = scenes.draw_sprite_sheet(font)
        with whole_file(target) as partial_file:
            sheet.save(partial_file, "PNG", optimize=True)
    elif not target.exists():
        raise SystemExit(f"{target} is missing: give the colour emoji font with --font.")


def build_tokenizer(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """A byte-pair vocabulary of the captions with CLIP's conventions: byte alphabet, </w>, lower case, BOS and EOS."""
    texts = [text for _, text in islice(scenes.captions(stream(cfg, "tokenizer")), cfg.tokenizer.captions)]
    tokenizer = learn_tokenizer(texts, cfg.tokenizer.vocabulary, cfg.clip.context)
    for folder in (CLIP, SD / "tokenizer"):
        tokenizer.save_pretrained(folder)
    print(f"tokenizer: {len(tokenizer)} tokens, e.g. {tokenizer.tokenize(texts[0])[:20]}")


def build_vae(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The autoencoder: (3, 32, 32) pictures <-> (4, 8, 8) latents."""
    part = cfg.vae
    vae = AutoencoderKL(
        block_out_channels=part.channels, layers_per_block=1, latent_channels=4, sample_size=scenes.SIDE,
        down_block_types=["DownEncoderBlock2D"] * 3, up_block_types=["UpDecoderBlock2D"] * 3, norm_num_groups=16,
    ).to(device)  # fmt: skip

    def step_loss(step: int) -> tuple[Tensor, str]:
        data = scenes.captions(stream(cfg, "vae", step), counts=(0.7, 0.2, 0.1))
        x = scenes.pixels([scenes.compose(s) for s, _ in islice(data, part.batch)]).to(device)
        posterior = vae.encode(x).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(step)).to(device)
        y = vae.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(y, x)
        return error + F.l1_loss(y, x) + part.kl * posterior.kl().mean(), f"mse {error.item():.4f}"

    fit(cfg, "vae", {"vae": vae}, part, step_loss)
    vae.eval()
    with torch.no_grad():
        data = scenes.captions(stream(cfg, "vae", 10**6), counts=(0.7, 0.2, 0.1))
        x = scenes.pixels([scenes.compose(s) for s, _ in islice(data, 512)]).to(device)
        vae.register_to_config(scaling_factor=round(1 / vae.encode(x).latent_dist.mean.std().item(), 5))
    vae.half().save_pretrained(SD / "vae")


def load_tokenizer() -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(CLIP)


def token_count(tokenizer: CLIPTokenizer) -> Callable[[str], int]:
    return lambda text: len(tokenizer(text).input_ids)


def paired_batches(
    cfg: TinyModels, name: str, tokenizer: PreTrainedTokenizerBase, device: torch.device, group: int = 8
) -> Callable[[int], tuple[Tensor, list[np.ndarray]]]:
    """Batch number -> token ids and pictures of pairs of like caption length.

    Causal attention makes the padding behind the longest caption of a batch superfluous, and it is left out.
    """
    part, pool = getattr(cfg, name), {}

    def batch(step: int) -> tuple[Tensor, list[np.ndarray]]:
        block, place = divmod(step, group)
        if block not in pool:
            pool.clear()
            rng = stream(cfg, name, block)
            telling = {"details": part.details} if part.details else {}
            data = scenes.captions(rng, length=token_count(tokenizer), limit=part.context, **telling)
            pairs = list(islice(data, group * part.batch))
            rows = tokenizer([text for _, text in pairs], truncation=True).input_ids
            order = np.argsort([len(r) for r in rows], kind="stable").reshape(group, -1)[rng.permutation(group)]
            pool[block] = [([rows[i] for i in chosen], [pairs[i][0] for i in chosen]) for chosen in order]
        rows, drawn = pool[block][place]
        ids = tokenizer.pad({"input_ids": rows}, return_tensors="pt").input_ids.to(device)
        return ids, [scenes.compose(scene) for scene in drawn]

    return batch


def contrast(texts: Tensor, images: Tensor, scale: Tensor) -> tuple[Tensor, float]:
    """CLIP's loss, symmetric cross-entropy over the batch, and its top-1.  (b, p) twice -> scalar, share"""
    logits = scale.exp().clamp(max=100) * F.normalize(texts.float(), dim=-1) @ F.normalize(images.float(), dim=-1).T
    answer = torch.arange(len(texts), device=texts.device)
    right = (logits.argmax(1) == answer).float().mean().item()
    return (F.cross_entropy(logits, answer) + F.cross_entropy(logits.T, answer)) / 2, right


def next_token_loss(predict: nn.Module, features: Tensor, ids: Tensor, eos: int) -> Tensor:
    """How badly each feature foretells the next token, padding left out.  (b, T, d), (b, T) -> scalar"""
    with short_products(features.device):
        words = predict(features[:, :-1]).float()
    wanted = ids[:, 1:].masked_fill(~attended_positions(ids, eos)[:, 1:], -100)
    return F.cross_entropy(words.flatten(0, 1), wanted.flatten(), ignore_index=-100)


def build_clip(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The CLIP pair, contrastive (symmetric cross-entropy over the batch), captions up to the full context.

    The second phase adds a next-token loss on the text tower: contrast alone reaches a token's feature only through end
    of text, and leaves the features of one prompt far more alike than CLIP's are.  The third adds batches
    in which every concept stands alone on the same background, so that "a photo of a dog" finds the dog on any.
    """
    part, tokenizer = cfg.clip, load_tokenizer()
    config = CLIPConfig(
        text_config=asdict(part.text) | {
            "vocab_size": len(tokenizer), "max_position_embeddings": part.context, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config=asdict(part.vision) | {"image_size": scenes.SIDE},
        projection_dim=part.projection_dim,
    )  # fmt: skip
    torch.manual_seed(cfg.seed)
    model = CLIPModel(config).to(device)
    model.set_attn_implementation("eager")  # bf16 training on a CPU: 2.5 times faster than sdpa, whose backward is float32
    predict = nn.Linear(part.text.hidden_size, len(tokenizer)).to(device)
    batch = paired_batches(cfg, "clip", tokenizer, device)

    def roll_call(step: int) -> tuple[Tensor, list[np.ndarray]]:
        """Every concept once, alone, all on one background: nothing but the thing itself tells the pictures apart."""
        rng = np.random.default_rng([cfg.seed, STREAMS["clip"], 1, step])
        background = scenes.sample_scene(rng).background
        drawn = [
            replace(scenes.sample_scene(rng, (c,), (1.0,)), background=background, style="photo") for c in scenes.concepts()
        ]
        texts = [scenes.caption(scene, rng, detail=0) for scene in drawn]
        ids = tokenizer(texts, padding=True, return_tensors="pt").input_ids.to(device)
        return ids, [scenes.compose(scene) for scene in drawn]

    def step_loss(phase: int, step: int) -> tuple[Tensor, str]:
        weight, calls = part.phases[phase].next_token, part.phases[phase].roll_calls
        turn, place = divmod(step, calls + 1)
        ids, pictures = roll_call(step + 10**6 * phase) if place else batch(turn + 10**6 * phase)
        with short_products(device):
            shown = model.vision_model(scenes.pixels(pictures).to(device)).pooler_output
            read = model.text_model(ids)
            images, texts = model.visual_projection(shown), model.text_projection(read.pooler_output)
        loss, right = contrast(texts, images, model.logit_scale)
        text = f"loss {loss.item():.3f} top1 {right:.2f}"
        if weight:
            guess = next_token_loss(predict, read.last_hidden_state, ids, tokenizer.eos_token_id)
            loss, text = loss + weight * guess, f"{text} next {guess.item():.2f}"
        return loss, text

    def watch() -> str:
        model.eval()
        nearest, recognised = retrieval(model, tokenizer, cfg, part.context), named(model, tokenizer, portraits)
        assimilated = benign_assimilation(model.text_model, tokenizer, corpus)
        model.train()
        return f"retrieval {nearest:.3f} named {recognised:.3f} assimilation {assimilated}"

    data = scenes.captions(stream(cfg, "corpus"), length=token_count(tokenizer), limit=70)
    corpus = [text for _, text in islice(data, 256)]
    portraits = scenes.pixels([scenes.compose(scenes.portrait(c)) for c in scenes.concepts()])
    for phase, settings in enumerate(part.phases):
        fit(cfg, f"clip-{phase}", {"model": model, "predict": predict}, settings, partial(step_loss, phase), watch)
    save_half(model.eval(), CLIP)
    CLIPImageProcessor(
        size={"shortest_edge": scenes.SIDE}, crop_size=scenes.SIDE, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(CLIP)
    text_model = CLIPTextModel(config.text_config)
    text_model.load_state_dict(model.text_model.state_dict())
    save_half(text_model, SD / "text_encoder")


def build_longclip(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The text tower of the long family: tiny-clip's, its positions stretched from 77 to 248, taught on long captions.

    The first 20 positions stay, the other 57 are stretched four times, as Long-CLIP does (Zhang et al., 2024).  Vision
    tower and projections are tiny-clip's and stay frozen.
    """
    part = cfg.longclip
    tokenizer = CLIPTokenizer.from_pretrained(CLIP, model_max_length=part.context)
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).to(device).requires_grad_(False)
    state = model.text_model.state_dict()
    positions = state["embeddings.position_embedding.weight"]
    stretched = F.interpolate(positions[20:].T[None], scale_factor=4, mode="linear")[0].T
    state["embeddings.position_embedding.weight"] = torch.cat([positions[:20], stretched])
    config = model.config.text_config
    config.max_position_embeddings = part.context
    tower = CLIPTextModel(config)
    tower.load_state_dict(state)
    tower.set_attn_implementation("eager")
    model.text_model = tower.to(device)
    predict = nn.Linear(config.hidden_size, len(tokenizer)).to(device)
    batch = paired_batches(cfg, "longclip", tokenizer, device)

    def step_loss(step: int) -> tuple[Tensor, str]:
        ids, pictures = batch(step)
        with short_products(device):
            images = model.get_image_features(scenes.pixels(pictures).to(device)).pooler_output
            read = tower(ids)
            texts = model.text_projection(read.pooler_output)
        loss, right = contrast(texts, images, model.logit_scale)
        guess = next_token_loss(predict, read.last_hidden_state, ids, tokenizer.eos_token_id)
        return loss + part.next_token * guess, f"loss {loss.item():.3f} top1 {right:.2f} next {guess.item():.2f}"

    fit(cfg, "longclip", {"tower": tower, "predict": predict}, part, step_loss)
    save_half(tower.eval(), LONGCLIP)
    tokenizer.save_pretrained(LONGCLIP)


def siglip_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """tiny-clip's byte pairs in SigLIP's dress: no begin of text, `</s>` as end and padding, at ids as in public ones."""
    own = json.loads((CLIP / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    special = ["<pad>", "</s>", "<unk>"]
    ordinary = [token for token in own["vocab"] if token not in (BOS, EOS)]
    vocabulary = {token: i for i, token in enumerate([*special, *sorted(ordinary, key=own["vocab"].get)])}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [tuple(pair) for pair in own["merges"]], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    split_words(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=context, eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def start_from_clip(model: SiglipModel) -> None:
    """Give a SigLIP pair the weights of tiny-clip that have a place in it: both transformers, tokens, positions."""
    clip = CLIPModel.from_pretrained(CLIP, dtype=torch.float32)
    for tower, own in ((model.text_model, clip.text_model), (model.vision_model, clip.vision_model)):
        tower.encoder.load_state_dict(own.encoder.state_dict())
    text, own = model.text_model, clip.text_model
    text.final_layer_norm.load_state_dict(own.final_layer_norm.state_dict())
    with torch.no_grad():
        rows = own.embeddings.token_embedding.weight  # the last two are begin and end of text
        text.embeddings.token_embedding.weight[3:] = rows[:-2]
        text.embeddings.token_embedding.weight[1] = rows[-1]
        text.embeddings.position_embedding.weight[:] = own.embeddings.position_embedding.weight[1 : 1 + model_context(model)]
        model.vision_model.embeddings.patch_embedding.weight[:] = clip.vision_model.embeddings.patch_embedding.weight
        model.vision_model.embeddings.position_embedding.weight[:] = clip.vision_model.embeddings.position_embedding.weight[1:]
        model.vision_model.post_layernorm.load_state_dict(clip.vision_model.post_layernorm.state_dict())
        model.logit_scale.fill_(np.log(10))
        model.logit_bias.fill_(-10)


def model_context(model: SiglipModel) -> int:
    return model.config.text_config.max_position_embeddings


def build_siglip(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The SigLIP pair: sees all 64 positions both ways, pools at the last one, learns by SigLIP's pairwise sigmoid loss.

    Every second batch some tokens are hidden and have to be guessed: as in build_clip, contrast alone leaves the features
    of one prompt far too alike.
    """
    part = cfg.siglip
    tokenizer = siglip_tokenizer(part.context)
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": part.context, "hidden_act": "gelu_pytorch_tanh"}
    config = SiglipConfig(
        text_config=asdict(cfg.clip.text) | shape | {
            "projection_size": cfg.clip.vision.hidden_size, "pad_token_id": 1, "eos_token_id": 1, "bos_token_id": None,
        },
        vision_config=asdict(cfg.clip.vision) | {"hidden_act": "gelu_pytorch_tanh", "image_size": scenes.SIDE},
    )  # fmt: skip
    torch.manual_seed(cfg.seed)
    model = SiglipModel(config)
    start_from_clip(model)
    model.to(device).set_attn_implementation("eager")
    predict = nn.Linear(cfg.clip.text.hidden_size, len(tokenizer)).to(device)
    batch = paired_batches(cfg, "siglip", tokenizer, device)

    def step_loss(step: int) -> tuple[Tensor, str]:
        ids, pictures = batch(step)
        ids = F.pad(ids, (0, part.context - ids.shape[1]), value=tokenizer.pad_token_id)
        g = torch.Generator().manual_seed(cfg.seed + step)
        hidden = (torch.rand(ids.shape, generator=g) < part.hidden * (step % 2)).to(device)
        hidden &= attended_positions(ids, tokenizer.eos_token_id)
        with short_products(device):
            images = model.get_image_features(scenes.pixels(pictures).to(device)).pooler_output
            read = model.text_model(ids.masked_fill(hidden, tokenizer.unk_token_id))
        texts = F.normalize(read.pooler_output.float(), dim=-1)
        logits = model.logit_scale.exp() * texts @ F.normalize(images.float(), dim=-1).T + model.logit_bias
        loss = -F.logsigmoid(logits * (2 * torch.eye(len(ids), device=device) - 1)).sum() / len(ids)
        right = (logits.argmax(1).cpu() == torch.arange(len(ids))).float().mean().item()
        text = f"loss {loss.item():.3f} top1 {right:.2f}"
        if hidden.any():
            with short_products(device):
                words = predict(read.last_hidden_state[hidden]).float()
            guess = F.cross_entropy(words, ids[hidden])
            loss, text = loss + part.hidden_token * guess, f"{text} hidden {guess.item():.2f}"
        return loss, text

    def watch() -> str:
        model.eval()
        nearest = retrieval(model, tokenizer, cfg, part.context)
        assimilated = benign_assimilation(model.text_model, tokenizer, corpus)
        model.train()
        return f"retrieval {nearest:.3f} assimilation {assimilated}"

    corpus = PROMPTS.read_text(encoding="utf-8").splitlines()[:256]
    fit(cfg, "siglip", {"model": model, "predict": predict}, part, step_loss, watch)
    save_half(model.eval(), SIGLIP)
    tokenizer.save_pretrained(SIGLIP)
    SiglipImageProcessorPil(
        size={"height": scenes.SIDE, "width": scenes.SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(SIGLIP)


def build_unet(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """The denoiser: v-prediction in latent space, cross-attention on the text tower's 77 features; and the pipeline."""
    part, tokenizer = cfg.unet, load_tokenizer()
    text_encoder = CLIPTextModel.from_pretrained(SD / "text_encoder", dtype=torch.float32).to(device).eval()
    vae = AutoencoderKL.from_pretrained(SD / "vae", dtype=torch.float32).to(device).eval()
    latents, features, empty = cached_pictures(cfg, device, text_encoder, vae, tokenizer)
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        rescale_betas_zero_snr=True, timestep_spacing="trailing", clip_sample=False, set_alpha_to_one=True,
    )  # fmt: skip
    torch.manual_seed(cfg.seed)
    unet = UNet2DConditionModel(
        sample_size=scenes.SIDE // 4, block_out_channels=part.channels, layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"], up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        cross_attention_dim=text_encoder.config.hidden_size, attention_head_dim=8, norm_num_groups=16,
    ).to(device)  # fmt: skip
    unet.set_attn_processor(AttnProcessor())  # as in build_clip: plain attention is what bfloat16 makes fast on a CPU
    print(f"unet: {sum(p.numel() for p in unet.parameters()) / 1e6:.2f} M parameters")
    ema = EMAModel(unet.parameters(), decay=part.ema, use_ema_warmup=True, power=0.75)

    def step_loss(phase: int, step: int) -> tuple[Tensor, str]:
        g = torch.Generator().manual_seed(cfg.seed * 10**6 + 10**5 * phase + step)
        rows = torch.randint(len(latents), (part.batch,), generator=g)
        x, text = latents[rows].to(device).float(), features[rows].to(device).float()
        text[torch.rand(len(rows), generator=g) < part.unconditional] = empty
        # logit-normal times: most of the effort where content is decided, neither pure noise nor pure picture
        t = (torch.sigmoid(torch.randn(len(rows), generator=g) * 1.2 + 0.2) * 1000).long().clamp(0, 999).to(device)
        noise = torch.randn(x.shape, generator=g).to(device)
        with short_products(device):
            guess = unet(scheduler.add_noise(x, noise, t), t, encoder_hidden_states=text).sample
        loss = F.mse_loss(guess.float(), scheduler.get_velocity(x, noise, t))
        return loss, f"v error {loss.item():.3f}"

    for phase, settings in enumerate(part.phases):
        fit(cfg, f"unet-{phase}", {"unet": unet}, settings, partial(step_loss, phase), ema=ema)
    ema.copy_to(unet.parameters())
    StableDiffusionPipeline(
        vae=vae.half(), text_encoder=text_encoder, tokenizer=load_tokenizer(), unet=unet.half().eval(), scheduler=scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(SD)  # fmt: skip
    save_half(text_encoder, SD / "text_encoder")
    # diffusers notes where it loaded a part from; a path of this machine has no place in a shipped file
    config = SD / "vae" / "config.json"
    known = json.loads(config.read_text(encoding="utf-8"))
    known.pop("_name_or_path", None)
    write_whole(config, json.dumps(known, indent=2) + "\n")


@torch.no_grad()
def cached_pictures(cfg, device, text_encoder, vae, tokenizer) -> tuple[Tensor, Tensor, Tensor]:
    """-> latents (n, 4, 8, 8), text features (n, T, d), feature of the empty prompt (T, d); half precision."""
    part = cfg.unet
    data = scenes.captions(
        stream(cfg, "unet"), part.details, token_count(tokenizer), cfg.clip.context,
        counts=part.counts, sizes=part.sizes,
    )  # fmt: skip
    latents, features = [], []
    for _ in tqdm(range(0, part.pictures, 256), desc="latents", mininterval=5):
        pairs = list(islice(data, 256))
        x = scenes.pixels([scenes.compose(s) for s, _ in pairs]).to(device)
        latents.append((vae.encode(x).latent_dist.mean * vae.config.scaling_factor).half().cpu())
        features.append(encode(text_encoder, tokenizer, [t for _, t in pairs]).half().cpu())
    return torch.cat(latents), torch.cat(features), encode(text_encoder, tokenizer, [""])[0]


@torch.no_grad()
def encode(text_encoder: nn.Module, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """-> (n, T, d) features at the full context, as the pipeline computes them."""
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return text_encoder(ids.to(text_encoder.device)).last_hidden_state


def build_corpus(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """Prompts.txt: the defender's 5,000 different prompts, 5 to 70 tokens."""
    count = token_count(load_tokenizer())
    chosen: dict[str, None] = {}
    details = (0.05, 0.15, 0.15, 0.15, 0.15, 0.15, 0.1, 0.1)
    for _, text in scenes.captions(stream(cfg, "corpus"), details=details, length=count, limit=70):
        if 5 <= count(text) <= 70:
            chosen[text] = None
        if len(chosen) == 5000:
            break
    write_whole(PROMPTS, "\n".join(chosen) + "\n")


# --------------------------------------------------------------------------------------------------------- the bars
@torch.no_grad()
def retrieval(
    model: CLIPModel | SiglipModel,
    tokenizer: PreTrainedTokenizerBase,
    cfg: TinyModels,
    limit: int,
    over: int = 0,
    **telling: object,
) -> float:
    """Top-1 text-to-image retrieval among 256 pairs never trained on, captions of more than `over` to `limit` tokens."""
    pairs, count = 256, token_count(tokenizer)
    data = scenes.captions(stream(cfg, "bars"), length=count, limit=limit, **telling)
    drawn = list(islice((pair for pair in data if count(pair[1]) > over), pairs))
    ids = tokenizer([t for _, t in drawn], padding="max_length", truncation=True, return_tensors="pt").input_ids
    texts = model.get_text_features(ids.to(model.device)).pooler_output
    images = model.get_image_features(scenes.pixels([scenes.compose(s) for s, _ in drawn]).to(model.device)).pooler_output
    similarity = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    return (similarity.argmax(1).cpu() == torch.arange(pairs)).float().mean().item()


@torch.no_grad()
def benign_assimilation(text_model: nn.Module, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> dict[str, float]:
    """Mean assimilation of prompts over attended positions without BOS, and over all positions."""
    some, all_positions = [], []
    for start in range(0, len(prompts), 128):
        ids = tokenizer(prompts[start : start + 128], padding="max_length", truncation=True, return_tensors="pt").input_ids
        ids = ids.to(text_model.device)
        features = text_model(ids).last_hidden_state
        begin = int(ids[0, 0] == tokenizer.bos_token_id)
        some.append(assimilation(features[:, begin:], attended_positions(ids, tokenizer.eos_token_id)[:, begin:]))
        all_positions.append(assimilation(features))
    return {"attended": round(torch.cat(some).mean().item(), 4), "all": round(torch.cat(all_positions).mean().item(), 4)}


@torch.no_grad()
def named(model: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor) -> float:
    """Share of pictures, one of every concept in order, that the vision tower recognises as it among all concepts."""
    texts = [f"a photo of {scenes.with_article(c)}" for c in scenes.concepts()]
    ids = tokenizer(texts, padding="max_length", return_tensors="pt").input_ids.to(model.device)
    t = F.normalize(model.get_text_features(ids).pooler_output, dim=-1)
    v = F.normalize(model.get_image_features(pictures.to(model.device)).pooler_output, dim=-1)
    return ((v @ t.T).argmax(1).cpu() == torch.arange(len(texts))).float().mean().item()


@torch.no_grad()
def drawn_concepts(cfg: TinyModels, device: torch.device) -> tuple[float, Image.Image]:
    """Share of concepts whose generated picture the vision tower recognises among all, and all pictures as one."""
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).to(device).eval()
    pipe = StableDiffusionPipeline.from_pretrained(SD, dtype=torch.float32, safety_checker=None).to(device)
    pipe.set_progress_bar_config(disable=True)
    texts = [f"a photo of {scenes.with_article(c)}" for c in scenes.concepts()]
    pictures = []
    for start in tqdm(range(0, len(texts), 16), desc="pictures", mininterval=5):
        g = torch.Generator().manual_seed(cfg.seed + start)
        pictures += pipe(texts[start : start + 16], generator=g, num_inference_steps=25, output_type="np").images.tolist()
    right = named(model, pipe.tokenizer, torch.tensor(pictures).permute(0, 3, 1, 2).float() * 2 - 1)
    tiles = (np.array(pictures) * 255).round().astype(np.uint8).reshape(-1, 16, scenes.SIDE, scenes.SIDE, 3)
    sheet = np.concatenate([np.concatenate(list(row), axis=1) for row in tiles], axis=0)
    return right, Image.fromarray(sheet)


def measure_bars(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """Measure the quality bars on the shipped files and write them to Data/Models/bars.json."""
    tokenizer = load_tokenizer()
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).to(device).eval()
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    lengths = np.array([len(r) for r in tokenizer(prompts).input_ids])
    portraits = scenes.pixels([scenes.compose(scenes.portrait(c)) for c in scenes.concepts()])
    bars = {
        "retrieval_top1_of_256": retrieval(model, tokenizer, cfg, cfg.clip.context),
        "benign_assimilation": benign_assimilation(model.text_model, tokenizer, prompts),
        "portraits_recognised": named(model, tokenizer, portraits),
        "prompts": {
            "count": len(set(prompts)), "tokens": [int(lengths.min()), int(lengths.max())],
            "share_over_40_tokens": round(float((lengths > 40).mean()), 4),
        },
    }  # fmt: skip
    if LONGCLIP.exists():
        bars["tiny-longclip"] = longclip_bars(cfg, device, prompts)
    if SIGLIP.exists():
        siglip = SiglipModel.from_pretrained(SIGLIP, dtype=torch.float32).to(device).eval()
        words = AutoTokenizer.from_pretrained(SIGLIP)
        bars["tiny-siglip"] = {
            "retrieval_top1_of_256": retrieval(siglip, words, cfg, cfg.siglip.context),
            "benign_assimilation": benign_assimilation(siglip.text_model, words, prompts),
        }
    if (SD / "unet").exists():
        bars["generated_concepts_recognised"], sheet = drawn_concepts(cfg, device)
        with whole_file(MODELS / "concepts.png") as partial_file:
            sheet.convert("RGB").quantize(128).save(partial_file, "PNG", optimize=True)
    write_whole(MODELS / "bars.json", json.dumps(bars, indent=2) + "\n")
    write_card(bars)
    print(json.dumps(bars, indent=2))


def longclip_bars(cfg: TinyModels, device: torch.device, prompts: list[str]) -> dict:
    """The bars of the long family, on short captions and on captions that do not fit into CLIP's 77 tokens."""
    model = CLIPModel.from_pretrained(CLIP, dtype=torch.float32).to(device).eval()
    model.text_model = CLIPTextModel.from_pretrained(LONGCLIP, dtype=torch.float32).to(device).eval()
    tokenizer = CLIPTokenizer.from_pretrained(LONGCLIP)
    part, short = cfg.longclip, cfg.clip.context
    return {
        "retrieval_top1_of_256": retrieval(model, tokenizer, cfg, short),
        "retrieval_over_77_tokens": retrieval(model, tokenizer, cfg, part.context, short, details=part.details),
        "benign_assimilation": benign_assimilation(model.text_model, tokenizer, prompts),
    }


def write_card(bars: dict) -> None:
    """Put the measured bars into the model card, between its two markers."""
    assimilated, prompts = bars["benign_assimilation"], bars["prompts"]
    rows = [
        ("top-1 retrieval among 256 unseen pairs", f"{bars['retrieval_top1_of_256']:.1%}", ">= 95 %"),
        ("benign assimilation of Prompts.txt, attended positions", f"{assimilated['attended']:.2f}", "<= 0.60"),
        ("the same over all 77 positions", f"{assimilated['all']:.2f}", "<= 0.60"),
        ("concepts recognised in plain portraits", f"{bars['portraits_recognised']:.1%}", ""),
    ]
    if "generated_concepts_recognised" in bars:
        rows.append(
            ('generated "a photo of a <concept>" recognised', f"{bars['generated_concepts_recognised']:.1%}", ">= 60 %")
        )
    for name in ("tiny-longclip", "tiny-siglip"):
        if name in bars:
            for measure in ("retrieval_top1_of_256", "retrieval_over_77_tokens"):
                if measure in bars[name]:
                    rows.append((f"{name}: {measure.replace('_', ' ')}", f"{bars[name][measure]:.1%}", ">= 95 %"))
            rows.append((f"{name}: benign assimilation", f"{bars[name]['benign_assimilation']['attended']:.2f}", "<= 0.60"))
    rows.append(("prompts over 40 tokens", f"{prompts['share_over_40_tokens']:.0%} of {prompts['count']}", ">= 20 %"))
    table = ["| measure | found | bar |", "|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    card = MODELS / "README.md"
    head, rest = card.read_text(encoding="utf-8").split("<!-- bars", 1)
    marker, rest = rest.split("\n", 1)
    tail = rest[rest.index("<!-- end of bars") :]
    write_whole(card, f"{head}<!-- bars{marker}\n" + "\n".join(table) + f"\n{tail}")


def write_hashes(cfg: TinyModels, device: torch.device, font: Path | None) -> None:
    """SHA256SUMS of every shipped weight, config and tokenizer, for the test that keeps the testbed frozen."""
    files = sorted(
        p for p in MODELS.rglob("*") if p.suffix in {".safetensors", ".json"} and p.parent != MODELS and ".work" not in p.parts
    )
    lines = [f"{digest_of([p])}  {p.relative_to(MODELS).as_posix()}" for p in files]
    write_whole(MODELS / "SHA256SUMS", "\n".join(lines) + "\n")


STAGES = {
    "sprites": build_sprites, "tokenizer": build_tokenizer, "vae": build_vae, "clip": build_clip, "unet": build_unet,
    "corpus": build_corpus, "longclip": build_longclip, "siglip": build_siglip, "bars": measure_bars, "hashes": write_hashes,
}  # fmt: skip


OUTPUTS = {
    "sprites": scenes.SCENES / "sprites.png", "tokenizer": CLIP / "tokenizer.json", "vae": SD / "vae" / "config.json",
    "clip": CLIP / "model.safetensors", "unet": SD / "model_index.json", "corpus": PROMPTS,
    "longclip": LONGCLIP / "model.safetensors", "siglip": SIGLIP / "model.safetensors",
}  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "testbed.yaml")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--font", type=Path, help="Noto Color Emoji, to draw the sprite sheet anew")
    parser.add_argument("--force", action="store_true", help="make stages anew whose files are there")
    args = parser.parse_args(argv)
    try:
        cfg, device = load_config(TinyModels, args.config, seed=args.seed), pick_device(args.device)
    except InputError as error:
        parser.error(str(error))
    WORK.mkdir(parents=True, exist_ok=True)
    for stage in args.stages:
        began = time.time()
        if stage in OUTPUTS and OUTPUTS[stage].exists() and not args.force:
            print(f"{stage}: done already; --force makes it anew")
            continue
        torch.manual_seed(cfg.seed)
        STAGES[stage](cfg, device, args.font)
        print(f"{stage}: {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
