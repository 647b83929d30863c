"""What the user asks for and what they are told: main.py's flags, the verdict in a terminal, --json and --sarif."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_type_hints

from Utils.basics.config import sentences
from Utils.basics.errors import InputError, sentence_of, visible
from Utils.basics.files import ROOT
from Utils.report.report import VERSION, to_json
from Utils.report.sarif import to_sarif

SUSPECT = ROOT / "Data" / "Models" / "suspects" / "text_on_text"
"""The suspect of a command line without flags."""


def parse_arguments(argv: list[str] | None, settings: type, config: Path) -> argparse.Namespace:
    """What the user wants; every field of the dataclass `settings` is a flag too, None where it was not given."""
    parser = argparse.ArgumentParser(
        description="Say whether a text encoder (of CLIP, Stable Diffusion and the like) carries a backdoor, knowing neither "
        "trigger nor target nor training data.  Without arguments the shipped example is scanned.",
        epilog="Exit code: 0 no backdoor found, 1 backdoor found, 2 bad input or error, 3 inconclusive; of several encoders "
        "the worst, 1 before 3 before 2 before 0.",
    )
    suspects = parser.add_mutually_exclusive_group()
    suspects.add_argument(
        "--model", default=str(SUSPECT),
        help="the suspect: a folder (text encoder, CLIP model or diffusers pipeline) or a hub id; every text encoder of a "
        "pipeline gets a report (default: the shipped one)",
    )  # fmt: skip
    suspects.add_argument(
        "--models", type=Path, metavar="LIST_OR_FOLDER",
        help="many suspects instead: a text file with one a line, or a folder of model folders; goes on where an earlier run "
        "was stopped, and adds summary.json and summary.html to the results",
    )  # fmt: skip
    parser.add_argument(
        "--only", default="", metavar="FILE",
        help="the weights that you use (model.safetensors, say), where others lie beside them; nothing else is judged then",
    )  # fmt: skip
    parser.add_argument(
        "--compare-pickles", action="store_true",
        help="read pickles beside the weights, as plain tensors in a bounded process, and say whether they hold the same "
        "numbers; without it they make a clean verdict impossible",
    )  # fmt: skip
    parser.add_argument(
        "--anchor", default="auto",
        help="the clean public base the suspect was made from: a folder, a hub id, auto (looked up in configs/anchors.yaml) "
        "or none (default: auto)",
    )  # fmt: skip
    parser.add_argument("--config", type=Path, default=config, help="YAML of the scan (default: configs/scan.yaml)")
    parser.add_argument("--output", type=Path, default=ROOT / "Results", help="where result folders go (default: Results)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto, a GPU where there is one)"
    )
    parser.add_argument("--seed", type=int, default=42, help="start of every random choice (default: 42)")
    parser.add_argument("--images", type=int, default=4, help="pictures of what was found; 0: none (default: 4)")
    parser.add_argument("--pipeline", default="auto", help="pipeline folder that draws them (default: the anchor's own)")
    parser.add_argument("--json", metavar="FILE", help="also write the report here, an array of several; - is standard output")
    parser.add_argument(
        "--sarif",
        metavar="FILE",
        help="also write the findings here as SARIF 2.1.0, for code-scanning pages; - is standard output",
    )
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors: exit code and files hold the verdict")
    group = parser.add_argument_group("settings", "every number of the scan; a flag beats the config")
    meaning = sentences(settings)
    for name, kind in get_type_hints(settings).items():
        how = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()}
        group.add_argument(f"--{name.replace('_', '-')}", default=None, help=meaning[name].replace("%", "%%"), **how)
    parser.add_argument("--version", action="version", version=f"amber {VERSION}")
    return parser.parse_args(argv)


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before any work, what cannot be delivered after it."""
    if args.json and args.sarif and Path(args.json).resolve() == Path(args.sarif).resolve():
        raise InputError(f"--json and --sarif cannot both be written to {args.json}; give two files.")
    for flag, file in (("--json", args.json), ("--sarif", args.sarif)):
        if file not in (None, "-") and (Path(file).is_dir() or not Path(file).resolve().parent.is_dir()):
            raise InputError(f"{flag} {file} cannot be written: give a file in a folder that exists.")
    if args.images < 0:
        raise InputError(f"--images {args.images} is no number of pictures; give 0 or more.")


def deliver(reports: list[dict], args: argparse.Namespace) -> list[str]:
    """The reports where --json and --sarif want them.  -> what could not be delivered"""
    makers = {
        "--json": (args.json, lambda: reports if args.models or len(reports) > 1 else reports[0]),
        "--sarif": (args.sarif, lambda: to_sarif(reports, VERSION, Path.cwd())),
    }
    failed = []
    for flag, (file, make) in makers.items():
        try:
            if file == "-":
                print(to_json(make()), end="", flush=True)
            elif file:
                Path(file).write_text(to_json(make()), encoding="utf-8")
        except Exception as error:  # a full disk, a closed pipe, a damaged report of an earlier run
            failed.append(f"{flag} {file} could not be written ({sentence_of(error)})")
    return failed


def say(report: dict, folder: Path) -> None:
    """The verdict for a person, on standard error so that `--json -` stays pure."""
    lines = [f"{report['verdict'].upper()}  (score {report['score']:.3f})  {report['reason']}"]
    for e in report["evidence"]:
        value = "not tried" if e["value"] is None else f"{e['value']:.3f}"
        limit = "none" if e["threshold"] is None else f"{e['threshold']:.3f}"
        lines.append(f"  {'x' if e['met'] else ' '} {e['name']:<14} {value:>8}  (limit {limit})  {e['meaning']}")
    lines += [f"  note: {note}" for note in report["notes"]]
    lines.append(f"  {sum(report['seconds'].values()):.0f} s, {report['peak_memory_mb']:.0f} MB; everything is in {folder}")
    print("\n".join(visible(line) for line in lines), file=sys.stderr)
