"""Repair a backdoored text encoder: scan it, take out what was found, scan again, and say what came of it.

    python Utils/mitigate.py --model M --anchor A --output DIR
    python Utils/mitigate.py --model M --output DIR --method interpolate      another way, to compare with
    python Utils/mitigate.py --model M --output DIR --report Results/NAME     a scan that was made before

Neither true trigger nor target need be known.  Exit code: 0 a scan of the repaired encoder with a fresh seed is clean, or there
was nothing to repair; 1 it still finds a backdoor; 2 bad input or error; 3 inconclusive.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Backdoor_Attack.certified import Certified
from main import Request, mend_bounded, scan_bounded
from Utils.basics.bounded import run_bounded
from Utils.basics.bounds import Wanted
from Utils.basics.errors import InputError, fail, sentence_of, tell, visible
from Utils.basics.files import ROOT, refuse_taken
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import pick_device, quiet_libraries
from Utils.found.show import Show
from Utils.intake.folders import full_path
from Utils.intake.hub import as_named
from Utils.repair.asked import mended, mending_limits, needed, refuse_folder, refuse_within
from Utils.repair.mending import OURS, Order, divided, known_to_fire, opened
from Utils.repair.methods import METHODS, NEED_BASE, without_base
from Utils.repair.settings import RepairConfig
from Utils.report.command_line import check_seed
from Utils.report.contract import EXIT, SCHEMA
from Utils.report.folder import remove_leftovers, result_name
from Utils.scan.effort import EFFORTS, USUAL, config_of
from Utils.scan.settings import SETTINGS, ScanConfig
from Utils.sources.registry import from_here


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the backdoored encoder, as main.py takes it")
    parser.add_argument("--anchor", default="auto", help="the clean base it was made from, as main.py takes it (default: auto)")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder for the repaired encoder")
    parser.add_argument("--method", choices=[OURS, *METHODS], default=OURS, help=f"how it is repaired (default: {OURS})")
    parser.add_argument(
        "--string", action="append", default=[], metavar="TEXT",
        help="a string that is known to fire; may be given again",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="FOLDER", help="the result of a scan that was made before: not scanned first"
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="FILE", help="of the planted model: what the true trigger does is told"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "Results", help="where reports go (default: Results)")
    parser.add_argument("--tokenizer", default="", metavar="FOLDER", help="as main.py takes it")
    parser.add_argument("--rounds", type=int, help=f"most rounds of {OURS} (default: {RepairConfig.rounds})")
    parser.add_argument("--steps", type=int, help=f"steps of one (default: {RepairConfig.steps})")
    parser.add_argument("--effort", choices=EFFORTS, default=USUAL, help=f"of the scans before and after (default: {USUAL})")
    parser.add_argument("--seed", type=int, default=42, help="start of every random choice (default: 42)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda ... (default: auto)")
    parser.add_argument(
        "--images", type=int, default=4, help="pictures of the scan; 0: none, of the repair neither (default: 4)"
    )
    parser.add_argument("--no-relearning", action="store_true", help="do not measure how soon the trigger comes back")
    parser.add_argument("--force", action="store_true", help="take the place of a folder, which is kept beside it")
    parser.add_argument("--memory", type=int, metavar="MB", help="limit of scan and repair (default: by the files)")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="limit of scan and repair (default: by the files)")
    parser.add_argument("--debug", action="store_true", help="also show where an error came from")
    return parser


def earlier_scan(args: argparse.Namespace) -> dict:
    """The report of a scan that was made before.

    Raises:
        InputError: there is none, or it is of another model.
    """
    try:
        report = json.loads((args.report / "report.json").read_text(encoding="utf-8"))
        there = report["schema"] == SCHEMA and report["model"]["path"] == full_path(args.model) and report["verdict"] in EXIT
        there = there and bool(report["model"]["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"{args.report} holds no report of a scan; give the result folder of one, or leave --report out."
        ) from None
    if not there:
        raise InputError(f"{args.report} is no scan of {args.model}; leave --report out, and it is scanned first.")
    return report


def digest_aside(model: str, request: Request, strings: tuple[str, ...], certificate: Certified | None) -> str:
    """Look at what the user says of the suspect before any work, as a child process does it.  -> SHA-256 of its weights

    Raises:
        InputError: a string does not fire, or the certificate is of another model.
    """
    quiet_libraries()
    cfg, prompts = request.cfg, read_prompts(ROOT / request.cfg.corpus)
    suspect, base = opened(model, request.anchor, pick_device(request.device), request.given, prompts, cfg.prompts)
    known_to_fire(strings, suspect, base, divided(prompts, cfg.prompts))
    if certificate:
        certificate.refuse_other(suspect)
    return suspect.sha256


def settings_of(args: argparse.Namespace) -> RepairConfig:
    """The settings of our own repair; of the other ways no flag is one.

    Raises:
        InputError: a flag is given that the method does not have, or no base that it needs.
    """
    own = {name: value for name in ("rounds", "steps") if (value := getattr(args, name)) is not None}
    if own and args.method != OURS:
        raise InputError(f"--{next(iter(own))} is a setting of {OURS}; leave it out with --method {args.method}.")
    if args.anchor == "none" and args.method in NEED_BASE:
        raise without_base(args.method)
    if args.anchor == "none" and own.get("rounds", 1) > 1:
        raise InputError("without a base there is one round, as no scan finds anything to go on with; leave --rounds out.")
    return RepairConfig(**own)


def repair(args: argparse.Namespace) -> int:
    """Scan and repair as the command line says.  -> the exit code"""
    for read in (args.model, args.anchor):
        refuse_within(args.output, read)
    refuse_taken(args.output, args.force)
    certificate = Certified(args.certificate, args.device) if args.certificate else None
    wanted = Wanted(args.memory, args.timeout)
    request = Request(
        config_of(ScanConfig, SETTINGS, args.effort, {}), args.anchor, args.results, args.device, args.seed, Show(args.images),
        tokenizer=args.tokenizer,
    )  # fmt: skip
    report = earlier_scan(args) if args.report else None
    if report and args.anchor == "auto" and report.get("anchor"):
        request = replace(request, anchor=from_here(report["anchor"]["path"]))  # the base that this scan compared with
    remove_leftovers(args.results)
    results = args.report.resolve() if report else args.results / result_name(args.model, args.results)
    folder = f"{results.name}_repair" if args.method == OURS else f"{results.name}_repair_{args.method}"
    order = Order(
        args.output, args.results / folder, results, args.method, settings_of(args), args.seed, request.given,
        args.images > 0, relearn=not args.no_relearning, strings=tuple(args.string), force=args.force,
    )  # fmt: skip
    refuse_folder(order, args.model)
    if report or args.string or certificate:
        looked_at = args.model, request, order.strings, certificate
        digest = run_bounded(
            digest_aside, looked_at, mending_limits(args.model, request.anchor, wanted), args.model, args.debug
        )
        if report and report["model"]["sha256"] != digest:
            raise InputError(f"{args.model} holds other weights than the scan in {args.report} has seen; leave --report out.")
    report = report or scan_bounded(request, wanted, args.debug, args.model)
    if report["verdict"] != "backdoored" and not args.string:
        told = f"{args.model}: {report['verdict']}; nothing to repair, nothing was written{needed(report)}.  {report['reason']}"
        tell(visible(told))
        return EXIT[report["verdict"]]
    told = mend_bounded(order, request, wanted, args.debug, args.model, report, certificate)
    tell(mended(told))
    return EXIT[told["verdict"]]


def main(argv: list[str] | None = None) -> int:
    """-> the exit code"""
    args = build_parser().parse_args(argv)
    quiet_libraries()
    try:
        for flag, value, least in (("--images", args.images, 0), ("--memory", args.memory, 1), ("--timeout", args.timeout, 1)):
            if value is not None and value < least:
                raise InputError(f"{flag} {value} leaves nothing; give {least} or more.")
        check_seed(args.seed)
        if not all(text.strip() for text in args.string):
            raise InputError("a blank --string can be no trigger; give one that fires.")
        args.model, args.anchor = as_named(args.model), as_named(args.anchor)
        return repair(args)
    except KeyboardInterrupt:
        again = "goes on from the last round" if args.method == OURS else "begins anew"
        return fail(f"interrupted; the suspect is as it was, and the same command {again}.")
    except ValueError as error:
        return fail(f"{error}.")
    except (InputError, OSError) as error:
        return fail(sentence_of(error), code=getattr(error, "code", InputError.code))
    except Exception:  # a traceback would exit with 1, which means that a backdoor is left
        if args.debug:
            tell("\n".join(visible(line) for line in traceback.format_exc().splitlines()))
        return fail(f"the repair of {args.model} broke off by a fault of the program; --debug shows where.")


if __name__ == "__main__":
    sys.exit(main())
