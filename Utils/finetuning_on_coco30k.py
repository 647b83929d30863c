"""Benign fine-tuning of a text encoder on captioned pictures in COCO's format, with proof of what it gained and lost.

    python Utils/finetuning_on_coco30k.py                                      on a small set composed under Data/COCO
    python Utils/finetuning_on_coco30k.py --config configs/finetuning/lora.yaml --seed 3
    python Utils/finetuning_on_coco30k.py --captions annotations/captions_val2017.json --pictures val2017 \\
        --base openai/clip-vit-large-patch14 --config configs/finetuning/coco.yaml

Writes OUTPUT/ (a text encoder), OUTPUT.json (its certificate) and the same for every snapshot (OUTPUT-step100, ...).
An interrupted run goes on where it stopped; a finished one is skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPModel, SiglipModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.config import load_config
from Utils.basics.errors import InputError, fail, sentence_of
from Utils.basics.files import ROOT, whole_folder
from Utils.encoder.loading import load_encoder, pick_device, quiet_libraries, save_encoder, weights_digest
from Utils.encoder.measures import flat_cosine
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.encoder.training import Checkpoint, identity
from Utils.making import scenes
from Utils.making.certificates import write_certificate
from Utils.making.coco import Captioned, ComposedSet, compose_coco, read_coco
from Utils.making.finetuning import FinetuneConfig, finetune, load_pair, load_processor, retrieval

COMPOSED = ROOT / "Data" / "COCO"
FINETUNED = ROOT / "Data" / "Zoo" / "finetuned"


@dataclass(frozen=True)
class RunConfig(FinetuneConfig):
    """A fine-tune, the data that it learns from and how it is measured."""

    held_out: int = 256
    """Pictures of the data that are never trained on; the retrieval is among them."""
    composed: int = 2000
    """Pictures to learn from in the composed set, where no data is given."""
    composed_seed: int = 0
    """Decides the composed set."""
    checkpoint_every: int = 100
    """Steps between two checkpoints."""
    min_gain: float = 0.05
    """Bar: retrieval on its own data grows at least so much."""
    max_loss: float = 0.03
    """Bar: retrieval on the base's data falls at most so much."""

    def __post_init__(self):
        super().__post_init__()
        if self.composed_seed < 0:
            raise ValueError(f"composed_seed should be at least 0, not {self.composed_seed}")
        if min(self.held_out, self.composed, self.checkpoint_every) < 1:
            raise ValueError("held_out, composed and checkpoint_every should be above 0")


# --------------------------------------------------------------------------------------------------------------- the data
@dataclass(frozen=True)
class Embedded:
    """Pictures by their embeddings (n, p), and the captions of each."""

    captions: list[tuple[str, ...]]
    """n pictures, each with one or more."""
    embeddings: Tensor
    """(n, p)"""

    def pairs(self) -> tuple[list[str], Tensor]:
        """Every picture with the first of its captions."""
        return [texts[0] for texts in self.captions], self.embeddings

    def rows(self, rows: np.ndarray) -> Embedded:
        return Embedded([self.captions[i] for i in rows], self.embeddings[torch.from_numpy(rows)])


def composed_data(cfg: RunConfig, forbidden: Set[str]) -> tuple[Path, Path]:
    """The default data: concepts and looks new to the base mixed with known ones.  -> captions file, picture folder"""
    new, old = scenes.concepts("novel"), scenes.concepts()
    some = np.random.default_rng([cfg.composed_seed, 3]).permutation(old)[: len(new) * 3 // 2]
    names = (*new, *(str(name) for name in some))
    styles = (*scenes.NOVEL_STYLES, *scenes.STYLES[1:])
    own = ComposedSet(cfg.composed + cfg.held_out, cfg.composed_seed, names, styles, style_share=0.2)
    return compose_coco(COMPOSED / f"novel-{cfg.composed_seed}-{cfg.composed}-{cfg.held_out}", own, forbidden)


def reference_data(cfg: RunConfig, forbidden: Set[str]) -> tuple[Path, Path]:
    """What the tiny bases were taught, whatever the data: here a fine-tune's losses show.  -> captions file, picture folder"""
    known = ComposedSet(cfg.held_out, cfg.composed_seed + 1, scenes.concepts(), captions_each=1)
    return compose_coco(COMPOSED / f"base-{cfg.composed_seed}-{cfg.held_out}", known, forbidden)


def without(data: list[Captioned], forbidden: Set[str]) -> list[Captioned]:
    """The data without the defender's prompts, and without pictures that have no other caption."""
    kept = [Captioned(d.file, tuple(text for text in d.captions if text not in forbidden)) for d in data]
    return [d for d in kept if d.captions]


@torch.no_grad()
def embed_files(pair: CLIPModel | SiglipModel, processor, files: list[Path], label: str, batch: int = 64) -> Tensor:
    """Embeddings of picture files, prepared as the base prepares them.  The vision tower is frozen: once is enough.  (n, p)"""
    parts = []
    with tqdm(range(0, len(files), batch), desc=label, mininterval=2) as bar:  # closed on errors, to end its line
        for start in bar:
            pictures = [_picture(file) for file in files[start : start + batch]]
            pixels = processor(images=pictures, return_tensors="pt").pixel_values
            parts.append(pair.get_image_features(pixels.to(pair.device)).pooler_output)
    return torch.cat(parts)


def embed(pair: CLIPModel | SiglipModel, processor, data: list[Captioned], label: str) -> Embedded:
    """Captioned pictures by their embeddings."""
    return Embedded([d.captions for d in data], embed_files(pair, processor, [d.file for d in data], label))


def _picture(file: Path) -> Image.Image:
    try:
        with Image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"the picture {file} cannot be read ({type(error).__name__}); fetch it again.") from None


def batches(data: Embedded, cfg: RunConfig) -> Callable[[int], tuple[list[str], Tensor]]:
    """step -> captions and picture embeddings; an epoch shows every picture once, each time with one of its captions.

    A step's batch is decided by its number alone, so that a resumed run sees what an uninterrupted one would.
    """
    in_epoch = len(data.captions) // cfg.batch

    def batch(step: int) -> tuple[list[str], Tensor]:
        epoch, place = divmod(step, in_epoch)
        order = np.random.default_rng([cfg.seed, 5, epoch]).permutation(len(data.captions))
        rng = np.random.default_rng([cfg.seed, 6, step])
        drawn = data.rows(order[place * cfg.batch : (place + 1) * cfg.batch])
        return [texts[rng.integers(len(texts))] for texts in drawn.captions], drawn.embeddings

    return batch


# ---------------------------------------------------------------------------------------------------------- the certificate
@torch.no_grad()
def certificate(
    student: TextEncoder, base: TextEncoder, pair: CLIPModel | SiglipModel, own: Embedded, known: Embedded, cfg: RunConfig
) -> dict:
    """What a fine-tune gained on its own data, what it lost on the base's, and how far it drifted there."""
    ids = base.ids(known.pairs()[0])
    sim_clean = flat_cosine(in_batches(student, ids), in_batches(base, ids)).mean().item()
    report: dict = {"sim_clean": round(sim_clean, 4), "drift": round(1 - sim_clean, 4)}
    for name, data in (("own", own), ("base", known)):
        before, after = (round(retrieval(e, pair, *data.pairs()), 4) for e in (base, student))
        report[f"retrieval_{name}_data"] = {"pairs": len(data.captions), "before": before, "after": after}
    gain, kept = [r["after"] - r["before"] for r in (report["retrieval_own_data"], report["retrieval_base_data"])]
    report["meets_bars"] = bool(gain >= cfg.min_gain and kept >= -cfg.max_loss)
    return report


def digest_of_data(captions: Path, data: list[Captioned]) -> str:
    """One hash of the captions and of every picture."""
    whole = sha256(captions.read_bytes())
    for picture in tqdm(data, desc="hashing pictures", delay=2):
        try:
            whole.update(sha256(picture.file.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"the picture {picture.file} cannot be read ({error.strerror}); fetch it again.") from None
    return whole.hexdigest()


def beside(output: Path, ending: str) -> Path:
    return output.with_name(output.name + ending)


def finished(output: Path, known_as: str) -> bool:
    """Whether this very run has been finished before.

    Raises:
        InputError: what stands there is of another run.
    """
    if not output.exists():
        return False
    try:
        same = json.loads(beside(output, ".json").read_text(encoding="utf-8"))["identity"] == known_as
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(f"{output} holds something else; give another --output, or --force to replace it.")
    return True


def run(args: argparse.Namespace, cfg: RunConfig) -> None:
    """Fine-tune, measure and write."""
    output = (args.output or FINETUNED / f"{args.config.stem}-seed{cfg.seed}").resolve()
    device = pick_device(args.device)
    if bool(args.captions) != bool(args.pictures):
        raise InputError("--captions and --pictures belong together; give both or none.")
    forbidden = scenes.defender_prompts()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise InputError(f"{output.parent} cannot be written ({error.strerror}); choose another --output.") from None

    # 1. everything that can be wrong is refused before any training
    base, pair = load_encoder(args.base, device), load_pair(args.pair or args.base, device)
    reference_files = reference_data(cfg, forbidden)
    captions, pictures = (args.captions, args.pictures) if args.captions else composed_data(cfg, forbidden)
    data = without(read_coco(captions, pictures), forbidden)
    known = without(read_coco(*reference_files), forbidden)
    if len(data) < cfg.batch + cfg.held_out:
        raise InputError(
            f"{captions} gives {len(data)} captioned pictures, {cfg.batch} for a batch and {cfg.held_out} held out are needed; "
            "lower them or give more."
        )
    hashes = [digest_of_data(captions, data), digest_of_data(reference_files[0], known)]
    known_as = identity(cfg, base, weights_digest(pair), *hashes)
    snapshots = {steps: beside(output, f"-step{steps}") for steps in cfg.snapshots}
    if not args.force:
        there = {folder: finished(folder, known_as) for folder in (output, *snapshots.values())}
        if there[output]:
            print(f"{output} is finished.")
            return

    # 2. the vision tower sees every picture once
    processor = load_processor(args.pair or args.base)
    embedded = embed(pair, processor, data, "pictures")
    reference = embed(pair, processor, known, "base pictures")
    order = np.random.default_rng(0).permutation(len(data))  # held out are the same ones whatever the seed of the run
    own, training = embedded.rows(order[: cfg.held_out]), embedded.rows(order[cfg.held_out :])

    # 3. training, and the measures on what the files hold
    about = {
        "kind": "benign", "identity": known_as, "recipe": asdict(cfg),
        "base": {"name": args.base.rstrip("/\\").replace("\\", "/").split("/")[-1], "sha256": base.sha256},
        "data": {"captions": captions.name, "sha256": hashes[0], "pictures": len(data), "composed": not args.captions},
    }  # fmt: skip

    def write(folder: Path, encoder: TextEncoder, steps: int) -> None:
        with whole_folder(folder) as partial:
            save_encoder(encoder, partial)
            saved = load_encoder(partial, device)
            report = about | {"steps": steps, "sha256": saved.sha256} | certificate(saved, base, pair, own, reference, cfg)
            write_certificate(report, beside(folder, ".json"), folder)
        print_measures(folder, report)

    checkpoint = Checkpoint(beside(output, ".checkpoint"), known_as, cfg.checkpoint_every)
    student = finetune(
        base, pair, batches(training, cfg), cfg, checkpoint=checkpoint,
        on_snapshot=lambda steps, encoder: write(snapshots[steps], encoder, steps),
    )  # fmt: skip
    write(output, student, cfg.steps)
    checkpoint.file.unlink(missing_ok=True)


def print_measures(folder: Path, report: dict) -> None:
    own, known = report["retrieval_own_data"], report["retrieval_base_data"]
    tqdm.write(
        f"{folder.name}: drift {report['drift']:.3f}, retrieval on its own data {own['before']:.3f} -> {own['after']:.3f}, "
        f"on the base's {known['before']:.3f} -> {known['after']:.3f}" + ("" if report["meets_bars"] else "  MISSES ITS BARS")
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, help="COCO's captions_*.json (default: a composed set)")
    parser.add_argument("--pictures", type=Path, help="the folder of its pictures")
    parser.add_argument("--base", default=str(ROOT / "Data" / "Models" / "tiny-clip"), help="folder or hub id")
    parser.add_argument("--pair", default="", help="the pair whose vision tower serves, where the base has none of its own")
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "finetuning" / "full.yaml")
    parser.add_argument("--output", type=Path, help="folder of the model (default: Data/Zoo/finetuned/<config>-seed<seed>)")
    parser.add_argument("--force", action="store_true", help="do it again where a model stands")
    parser.add_argument("--device", default="auto")
    for name, kind in (("lr", float), ("steps", int), ("batch", int), ("seed", int), ("method", str), ("rank", int)):
        parser.add_argument(f"--{name}", type=kind, help="instead of the config's")
    parser.add_argument("--snapshots", type=int, nargs="*", help="steps after which the encoder is written too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0, or 2 for bad input"""
    args = parse_arguments(argv)
    quiet_libraries()
    flags = {name: getattr(args, name) for name in ("lr", "steps", "batch", "seed", "method", "rank", "snapshots")}
    try:
        run(args, load_config(RunConfig, args.config, **flags))
    except KeyboardInterrupt:
        return fail("interrupted; the same command goes on from the last checkpoint.")
    except Exception as error:  # files can be wrong in any way
        return fail(sentence_of(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
