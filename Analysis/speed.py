"""What a scan costs, stage by stage, beside what the machine can do and beside the published procedure.

    python Analysis/speed.py                                  the shipped suspects and encoders of CLIP-L's size
    python Analysis/speed.py --shapes vit-h bigg --tokenizer FOLDER
    python Analysis/speed.py --shapes tiny --paper 1.0        the published procedure to its end
    python Analysis/speed.py --shapes bigg --effort quick --paper 0 --scans "planted, empty cache"
    python Analysis/speed.py --shapes clip-l --paper 0 --scans "planted, repaired"
    python Analysis/speed.py --shapes clip-l-quarter --paper 0 --effort quick --scans "planted, repaired"

Encoders of full size are made here, with random weights and a backdoor or an honest change in their last layers
(Utils/making/shaped.py), and kept in Data/Zoo/shaped.  The first scan of each size begins with an empty cache, the second
finds there what the first has kept of the base.  Of configs/paper.yaml a share of the prompts is run, and with them of the
steps: what grows with them is divided by that share.  Writes Results/benchmark/speed.json; sizes that are not run keep their
rows.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from transformers import CLIPTokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Analysis.markdown import REPAIRED
from Utils.basics.files import CACHE, ROOT, write_whole
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import pick_device, quiet_libraries, save_encoder
from Utils.encoder.work import matrix_rate
from Utils.making.scenes import PROMPTS
from Utils.making.shaped import SHAPES, invented_tokenizer, planted, random_encoder, stirred
from Utils.report.report import versions
from Utils.scan.effort import EFFORTS, USUAL

RESULT = ROOT / "Results" / "benchmark" / "speed.json"
TINY = ROOT / "Data" / "Models"
STAGE = re.compile(r"\S+ \S+ (\w+): ([\d.]+) s, ([\d.]+) GFLOP, [\d.]+ GFLOP/s$", re.MULTILINE)
"""A line of log.txt (Utils/report/run.py)."""
SHAPED, VOCABULARY = ROOT / "Data" / "Zoo" / "shaped", "vocabulary.txt"
"""Where encoders that are made here are kept, and the file that says what they read with."""
SCANS = ("planted, empty cache", "benign, base cached")
"""What is measured of every size, in this order."""
GROWING = ("corpus", "search")
"""Stages of the published procedure that grow with the prompts."""
PAPER = ROOT / "configs" / "paper.yaml"
PAPER_PROMPTS = 4000


def pair_of(shape: str, tokenizer: str) -> dict[str, Path]:
    """Folders of a base and two suspects of one size; made where they are not there yet."""
    if shape == "tiny":
        suspects = TINY / "suspects"
        return {"base": TINY / "tiny-sd", "planted": suspects / "text_on_text", "benign": suspects / "benign"}
    where = SHAPED / shape
    folders = {name: where / name for name in ("base", "planted", "benign")}
    if not (where / VOCABULARY).exists() or not all((folder / "model.safetensors").exists() for folder in folders.values()):
        reads = CLIPTokenizer.from_pretrained(tokenizer) if tokenizer else invented_tokenizer(read_prompts(PROMPTS))
        base = random_encoder(SHAPES[shape], reads)
        save_encoder(base, folders["base"])
        save_encoder(stirred(base), folders["benign"])
        save_encoder(planted(base), folders["planted"])
        write_whole(where / VOCABULARY, "given" if tokenizer else "invented")
    return folders


def scan(model: Path, anchor: Path, device: str, *more: str) -> dict:
    """Seconds, arithmetic and memory of one scan in a process of its own."""
    with tempfile.TemporaryDirectory() as output:
        flags = ["--model", str(model), "--anchor", str(anchor), "--device", device, "--images", "0", "--quiet"]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "main.py"), *flags, "--output", output, *more], capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        if done.returncode == 2:
            raise SystemExit(f"speed: {model} could not be scanned: {done.stderr.strip()}")
        (folder,) = Path(output).glob("*/report.json")
        report = json.loads(folder.read_text(encoding="utf-8"))
        log = (folder.parent / "log.txt").read_text(encoding="utf-8")
    stages: dict[str, dict[str, float]] = {}
    for name, took, gflop in STAGE.findall(log):
        one = stages.setdefault(name, {"seconds": 0.0, "gflop": 0.0})
        one["seconds"], one["gflop"] = round(one["seconds"] + float(took), 3), round(one["gflop"] + float(gflop), 1)
    memory = report["peak_memory_mb"]
    return {"verdict": report["verdict"], "seconds": round(seconds, 1), "peak_memory_mb": memory, "stages": stages}


def repaired(model: Path, anchor: Path, device: str, *more: str) -> dict:
    """Seconds and memory of a whole repair without pictures, its scans included."""
    with tempfile.TemporaryDirectory() as output:
        flags = ["--model", str(model), "--anchor", str(anchor), "--device", device, "--images", "0", *more]
        places = ["--output", f"{output}/mended", "--results", output]
        began = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / "Utils" / "mitigate.py"), *flags, *places], capture_output=True, text=True
        )
        seconds = time.perf_counter() - began
        if done.returncode == 2:
            raise SystemExit(f"speed: {model} could not be repaired: {done.stderr.strip()}")
        (file,) = Path(output).glob("*_repair/report.json")
        report = json.loads(file.read_text(encoding="utf-8"))
    learned = sum(one["seconds"] for one in report["rounds"])
    own = report["seconds"]
    took = {
        "scan": seconds - sum(own.values()), "repair": learned, "scans after": own["repair and scans"] - learned,
        "measures": own["measures"],
    }  # fmt: skip
    stages = {name: {"seconds": round(value, 1), "gflop": 0.0} for name, value in took.items()}
    memory = report["peak_memory_mb"]
    return {"verdict": report["verdict"], "seconds": round(seconds, 1), "peak_memory_mb": memory, "stages": stages}


def published(model: Path, anchor: Path, device: str, share: float) -> dict:
    """The published procedure with a share of its prompts, and what all of them would take."""
    found = scan(model, anchor, device, "--config", str(PAPER), "--prompts", str(round(PAPER_PROMPTS * share)))
    more = sum(found["stages"][name]["seconds"] for name in GROWING) * (1 / share - 1)
    return found | {"share": share, "whole_seconds": round(found["seconds"] + more, 1)}


def started() -> float:
    """Seconds until the program has imported all that a scan needs."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import main"], cwd=ROOT, check=True)
    return round(time.perf_counter() - began, 2)


def about_machine(device: torch.device) -> dict:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.cpu.get_capabilities().get("cpu_name")
    rates = {str(n).removeprefix("torch."): round(matrix_rate(n, device) / 1e9) for n in (torch.float32, torch.bfloat16)}
    return {"processor": name or platform.processor(), "threads": torch.get_num_threads(), "matrix_gflops": rates}


def measure(shape: str, args: argparse.Namespace, commit: str) -> dict:
    """All scans of one size."""
    folders, effort = pair_of(shape, args.tokenizer), ("--effort", args.effort)
    shutil.rmtree(CACHE, ignore_errors=True)
    rows = {
        name: (repaired if name == REPAIRED else scan)(folders[name.split(",")[0]], folders["base"], args.device, *effort)
        for name in args.scans
    }
    if args.paper:
        rows["published"] = published(folders["planted"], folders["base"], args.device, args.paper)
    told = SHAPED / shape / VOCABULARY
    vocabulary = told.read_text(encoding="utf-8") if shape != "tiny" else "its own"
    more = " --tokenizer FOLDER" * (vocabulary == "given") + f" --effort {args.effort}" * (args.effort != USUAL)
    more += "".join([" --scans", *(f' "{name}"' for name in args.scans)]) if tuple(args.scans) != SCANS else ""
    return {
        "command": f"python Analysis/speed.py --shapes {shape} --paper {args.paper}{more}", "vocabulary": vocabulary,
        "commit": commit, "machine": about_machine(pick_device(args.device)), "scans": rows,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=["tiny", *SHAPES], default=["tiny", "clip-l"])
    parser.add_argument("--tokenizer", default="", help="a folder with CLIP's vocabulary (default: one is invented)")
    parser.add_argument("--paper", type=float, default=0.02, help="share of the published procedure; 0: none (default: 0.02)")
    parser.add_argument("--effort", choices=EFFORTS, default=USUAL, help="of our scans; rows of other ones are kept beside it")
    parser.add_argument(
        "--scans", nargs="+", choices=[*SCANS, REPAIRED], default=SCANS, help="the second needs the first's cache"
    )
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if not 0 <= args.paper <= 1:
        parser.error("--paper is a share, 0 to 1")
    quiet_libraries()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"shapes": {}}
    for shape in args.shapes:
        beside = ([] if args.effort == USUAL else [args.effort]) + ["repair"] * (REPAIRED in args.scans)
        row = ", ".join([shape, *beside])
        known["shapes"][row] = measure(shape, args, commit)
        known |= {"start_up_seconds": started(), "versions": versions()}
        write_whole(RESULT, json.dumps(known, indent=1) + "\n")
        for name, one in known["shapes"][row]["scans"].items():
            print(f"{row}: {name}: {one['seconds']} s, {one['peak_memory_mb']} MB, {one['verdict']}", flush=True)


if __name__ == "__main__":
    main()
