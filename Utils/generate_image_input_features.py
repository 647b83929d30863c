"""Draw what a backdoor forces: pictures from the feature that a scan found.

    python Utils/generate_image_input_features.py                             the newest result under Results
    python Utils/generate_image_input_features.py --feature F --pipeline P    any feature, any Stable Diffusion folder

Writes Images/backdoor_1.png and so on beside the feature; the scan itself does the same, and adds the controls.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Utils.basics.errors import InputError, fail, sentence_of, visible
from Utils.basics.files import ROOT
from Utils.encoder.anchors import companion
from Utils.encoder.loading import load_encoder, pick_device, quiet_libraries

FEATURE = "Backdoor_Feature.pt"


def newest_feature(results: Path) -> Path:
    """The feature of the newest result in a folder of results."""
    whole = (file for file in results.glob(f"*/{FEATURE}") if not file.parent.name.startswith("."))  # .partial_*: half a scan
    found = sorted(whole, key=lambda file: file.stat().st_mtime)
    if not found:
        raise InputError(f"{results} holds no result with a {FEATURE}; run main.py first, or give --feature.")
    return found[-1]


def beside(feature: Path) -> dict:
    """The report of the scan that wrote the feature; {} where there is none."""
    try:
        report = json.loads((feature.parent / "report.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return report if isinstance(report, dict) else {}


def pipeline_for(report: dict) -> Path:
    """The pipeline that belongs to the anchor of a scan."""
    anchor = (report.get("anchor") or {}).get("path")
    folder = companion(anchor, "pipeline") if isinstance(anchor, str) else None
    if not folder:
        raise InputError("no pipeline is known for the base of this feature; name one with --pipeline.")
    return folder


def draw(args: argparse.Namespace) -> Path:
    """Draw as the command line says.  -> the folder the pictures are in"""
    from Utils.found.rendering import load_renderer, read_feature, save_pictures  # diffusers takes seconds to import

    if args.images < 1:
        raise InputError(f"--images {args.images} is no number of pictures; give 1 or more.")
    file = args.feature or newest_feature(ROOT / "Results")
    feature, report = read_feature(file), beside(file)
    folder = args.pipeline or pipeline_for(report)
    device = pick_device(args.device)
    renderer = load_renderer(folder, device)
    renderer.check(feature)
    clean = load_encoder(folder, device)
    with torch.no_grad():
        nothing = clean(clean.ids([""]))
    seed = args.seed if args.seed is not None else report.get("seed", 42)
    pictures = renderer(feature, nothing, args.images, seed)
    target = args.output or file.parent / "Images"
    save_pictures(pictures, target, "backdoor")
    return target


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--feature", type=Path, help=f"a {FEATURE} (default: of the newest result under Results)")
    parser.add_argument("--pipeline", type=Path, help="folder of a Stable Diffusion pipeline (default: the anchor's own)")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--seed", type=int, help="of the first picture (default: the scan's)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="where the pictures go (default: Images beside the feature)")
    args = parser.parse_args(argv)
    quiet_libraries()
    try:
        print(f"{args.images} pictures in {visible(str(draw(args)))}")
    except Exception as error:  # a pipeline can be wrong in any way
        return fail(sentence_of(error), "generate_image_input_features")
    return 0


if __name__ == "__main__":
    sys.exit(main())
