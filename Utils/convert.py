"""Make safetensors of pickles, without running anything of them.

    python Utils/convert.py model.ckpt model.safetensors        one file
    python Utils/convert.py model.bin FOLDER                    the same as FOLDER/model.safetensors, with config and tokenizer
    python Utils/convert.py FOLDER NEW_FOLDER                   a whole model or pipeline, with its settings
    python Utils/convert.py owner/name NEW_FOLDER               the same of a hub id, or of the address of a page

Files are read in a child process, as plain tensors, with limits of memory and time.  What is left out is said.
Exit code: 0 written, 2 bad input or error, and then nothing is left.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from safetensors.torch import save_file

from Utils.basics.bounded import Limits, run_bounded
from Utils.basics.errors import InputError, fail, sentence_of, tell, visible
from Utils.basics.files import typed_command, whole_file, whole_folder
from Utils.intake.files import PICKLES, check_files
from Utils.intake.hub import located
from Utils.intake.inventory import LEFTOVERS, MOST, walk
from Utils.intake.pickles import read_pickle

COPIED = (".safetensors", ".json", ".txt", ".model", ".md")
"""Suffixes of what goes along unchanged: weights in the right form, settings, tokenizers."""
USUAL = ("model", "diffusion_pytorch_model", "adapter_model", "pytorch_lora_weights")
"""How names of weights begin that loaders look for."""
BASE_MB, TIMES = 2048, 4
"""Memory: so much for libraries, and the largest file's bytes so many times over (the file, its tensors, what is written)."""
SECONDS, RATE = 600, 20 << 20
"""Time: so much, and a second for so many bytes."""
SHOWN = 8
"""Names of left-out things that are shown for each file."""


@dataclass(frozen=True)
class Plan:
    """What becomes of the files of a folder."""

    pickles: dict[Path, Path]
    """Pickle -> safetensors file in the new folder."""
    copies: dict[Path, Path]
    left_out: list[str]
    """Names, with the reason."""


def plan_folder(source: Path, only: Path | None = None) -> Plan:
    """What of a model's folder goes into a new one; only: the one pickle that counts, with what lies directly beside it."""
    plan = Plan({}, {}, [])
    files = [(Path(inside), path) for inside, path in walk(source) if not only or len(inside.parts) == 1]
    if len(files) > MOST:
        raise InputError(f"{source} holds more than {MOST} files; give the folder of one model.")
    for folder in {path.parent for _, path in files}:
        check_files(folder, source)
    for inside, path in files:
        if inside.parts[0] in (".git", ".cache"):
            continue
        if only and path != only and (path.suffix.lower() in PICKLES or "safetensors" in path.name):
            plan.left_out.append(f"{inside} (other weights)")
        elif LEFTOVERS.fullmatch(path.name):
            plan.left_out.append(f"{inside} (a trainer's)")
        elif path.suffix.lower() in PICKLES:
            plan.pickles[path] = inside.with_name("model.safetensors" if only else new_name(path))
        elif path.suffix.lower() in COPIED and not is_index(path):
            plan.copies[path] = inside
        elif not is_index(path):
            plan.left_out.append(f"{inside} (neither weights nor settings)")
    for path, inside in list(plan.pickles.items()):
        if inside in plan.copies.values():
            del plan.pickles[path]
            plan.left_out.append(f"{path.relative_to(source)} ({inside} is there already)")
    return plan


def is_index(file: Path) -> bool:
    """Whether a file says which pickle holds which tensor; a new index is made."""
    return re.search(r"\.bin\.index.*\.json$", file.name) is not None


def new_name(pickle: Path) -> str:
    """How transformers and diffusers call the safetensors form of a pickle."""
    stem = re.sub(r"^pytorch_model", "model", pickle.stem)
    alone = not any(pickle.parent.glob("*.safetensors")) and len(_weights_beside(pickle)) == 1
    if alone and (pickle.parent / "config.json").is_file() and not stem.startswith(USUAL):
        stem = "model"
    return f"{stem}.safetensors"


def _weights_beside(pickle: Path) -> list[Path]:
    """A pickle and the others in its folder that hold weights."""
    return [p for p in pickle.parent.iterdir() if p.suffix.lower() in PICKLES and not LEFTOVERS.fullmatch(p.name)]


# ------------------------------------------------------------------------------------------------------------ the child
def convert_file(pickle: str, target: str) -> list[str]:
    """One pickle as one safetensors file.  -> what to tell"""
    return [_converted(Path(pickle), Path(target))[0]]


def convert_folder(source: str, target: str, only: str | None) -> list[str]:
    """A folder's pickles as safetensors, with what belongs to them.  -> what to tell"""
    plan, place, told, where = plan_folder(Path(source), only and Path(only)), Path(target), [], {}
    if not plan.pickles:
        raise InputError(f"{source} holds no pickle without a safetensors form beside it; scan it as it is.")
    for pickle, inside in plan.pickles.items():
        line, names = _converted(pickle, place / inside)
        told.append(line)
        where[pickle] = dict.fromkeys(names, inside.name)
    for old, inside in plan.copies.items():
        (place / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, place / inside)
    for file, content in _indexes(Path(source), where, plan):
        (place / file).write_text(json.dumps(content, indent=2), encoding="utf-8")
    return told + [f"left out: {one}" for one in plan.left_out]


def _converted(pickle: Path, target: Path) -> tuple[str, list[str]]:
    """Write one pickle's tensors.  -> what to tell, and the tensors' names"""
    tensors, dropped = read_pickle(pickle)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, target, metadata={"format": "pt"})
    more = f" and {len(dropped) - SHOWN} more" if len(dropped) > SHOWN else ""
    without = f"; dropped: {', '.join(one[:80] for one in dropped[:SHOWN])}{more}" if dropped else ""
    return f"{pickle}: {len(tensors)} tensors{without}", list(tensors)


def _indexes(source: Path, where: dict[Path, dict[str, str]], plan: Plan) -> Iterator[tuple[Path, dict]]:
    """Indexes of sharded weights: which new file holds which tensor, by what was written and not by what the old one says."""
    for old in sorted({index for pickle in where for index in pickle.parent.glob("*.bin.index*.json")}):
        stem = re.sub(r"\.bin\.index.*", "", old.name)
        shards = [names for pickle, names in where.items() if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+.*", pickle.stem)]
        name = re.sub(r"^pytorch_model", "model", old.name).replace(".bin.index", ".safetensors.index")
        weight_map = {tensor: file for names in shards for tensor, file in names.items()}
        yield old.relative_to(source).with_name(name), {"metadata": {}, "weight_map": weight_map}


# ----------------------------------------------------------------------------------------------------------- the parent
def convert(source: Path, target: Path, limits: Limits, debug: bool) -> list[str]:
    """Convert a file or a folder into a place where nothing is yet.  -> what to tell"""
    if target.exists() or target.is_symlink():
        raise InputError(f"{target} exists already; name a place where nothing is yet, or remove it first.")
    as_file = target.suffix.lower() == ".safetensors"
    if source.is_dir() and as_file:
        raise InputError(f"{source} is a folder; name a folder for what is made of it, such as {target.with_suffix('')}.")
    if not source.is_dir() and not source.is_file():
        raise InputError(f"{source} is no ordinary file (a pipe or a device); give a pickle or a folder that holds some.")
    if source.is_file() and source.suffix.lower() not in PICKLES:
        raise InputError(f"{source} is called like no pickle ({', '.join(PICKLES)}); scan it as it is.")
    if target.resolve().is_relative_to(source.resolve()):
        raise InputError(f"{target} lies within {source}; name a place outside of it.")
    place: AbstractContextManager[Path] = whole_file(target) if as_file else whole_folder(target, unless=target.exists)
    with place as partial:
        if as_file:
            return run_bounded(convert_file, (str(source), str(partial)), limits, str(source), debug)
        folder, only = (source, None) if source.is_dir() else (source.parent, str(source))
        return run_bounded(convert_folder, (str(folder), str(partial), only), limits, str(source), debug)


def limits_for(source: Path, memory_mb: int | None, seconds: int | None) -> Limits:
    """What converting may take, by the sizes of the pickles."""
    pickles = [path for _, path in walk(source)] if source.is_dir() else [source]
    sizes = [path.stat().st_size for path in pickles if path.suffix.lower() in PICKLES and path.is_file()] or [0]
    time = seconds or SECONDS + sum(sizes) // RATE
    return Limits(memory_mb or BASE_MB + TIMES * (max(sizes) >> 20), time, time)


def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says.  -> the exit code"""
    parser = argparse.ArgumentParser(
        description="Make safetensors of pickles (.bin, .pt, .ckpt ...) in a child process that runs nothing of them."
    )
    parser.add_argument("source", metavar="IN", help="a pickle, the folder of a model or pipeline with pickles, or a hub id")
    parser.add_argument("target", metavar="OUT", type=Path, help="a .safetensors file, or a new folder")
    parser.add_argument("--memory", type=int, metavar="MB", help="memory of the child (default: by the size of the files)")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="time of the child (default: by the size of the files)")
    parser.add_argument("--debug", action="store_true", help="also show where an error came from, in escaped lines")
    args = parser.parse_args(argv)
    try:
        source = located(args.source, pickles=True)
        told = convert(source, args.target, limits_for(source, args.memory, args.timeout), args.debug)
    except KeyboardInterrupt:
        return fail("interrupted; nothing was written.")
    except (InputError, OSError) as error:
        return fail(sentence_of(error))
    for line in told:
        tell(visible(line))
    tell(visible(f"{args.target} is written; scan it: {typed_command('main.py', '--model', args.target)}"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
