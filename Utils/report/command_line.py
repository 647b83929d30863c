"""What the user asks for and what they are told: main.py's flags, the verdict in a terminal, and documents like --json."""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr
from itertools import combinations
from pathlib import Path

from Utils.basics.bounds import BASE_MB, READING_SECONDS, SECONDS, TIMES
from Utils.basics.config import settings_of
from Utils.basics.errors import InputError, fail, named, sentence_of, swallow, tell, visible
from Utils.basics.files import ROOT, write_whole
from Utils.basics.formats import AUTO, NAMES
from Utils.intake.hub import as_named
from Utils.report.contract import VERSION, to_json
from Utils.report.environment import as_given, parse
from Utils.report.markdown import to_markdown
from Utils.report.placing import POLICY, Place
from Utils.report.policy import Rules, policy_line, rules_of
from Utils.report.sarif import to_sarif
from Utils.report.statement import to_statement
from Utils.scan.effort import EFFORTS, USUAL, config_of, recall_of
from Utils.scan.settings import SETTINGS, ScanConfig

SUSPECT = ROOT / "Data" / "Models" / "suspects" / "text_on_text"
"""The suspect of a command line without flags."""
SEEDS = 1 << 32
"""Seeds of random choices, as every generator takes them."""


def begin(scan: Callable[[argparse.Namespace, ScanConfig], int], argv: list[str] | None = None) -> int:
    """Read a command line and refuse what is wrong with it; the rest is for `scan`.  -> the exit code"""
    try:
        args = parse_arguments(argv)
    except (InputError, OSError) as error:
        return fail(sentence_of(error))
    try:
        if args.doctor:
            return see_doctor(args.output)
        check_arguments(args)
        return scan(args, config_of(ScanConfig, args.config, args.effort, vars(args)))
    except KeyboardInterrupt:
        return fail("interrupted; nothing was judged.")
    except (InputError, OSError) as error:
        return fail(as_given(sentence_of(error), args), code=getattr(error, "code", InputError.code))
    except Exception:  # a traceback would exit with 1, which means that a backdoor was found
        if args.debug:
            tell("\n".join(visible(line) for line in traceback.format_exc().splitlines()))
        return fail(f"the scan of {args.models or args.model} broke off by a fault of the program; --debug shows where.")


def understood(words: list[str]) -> tuple[argparse.Namespace, ScanConfig]:
    """Flags and config of a command line that no person has typed.

    Raises:
        InputError: what is wrong with it.
    """
    try:
        with redirect_stderr(io.StringIO()) as said:
            args = parse_arguments(words)
    except SystemExit:
        raise InputError(said.getvalue().rpartition("error: ")[2].strip()) from None
    check_arguments(args)
    return args, config_of(ScanConfig, args.config, args.effort, vars(args))


def see_doctor(output: Path) -> int:
    """Print what a scan finds on this machine.  -> the exit code"""
    from Utils.report.doctor import examine, is_fit  # torch, where it is there

    lines = list(examine(output))
    print("\n".join(map(str, lines)), flush=True)
    return 0 if is_fit(lines) else InputError.code


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """What the user wants, by flags or variables."""
    return parse(build_parser(), argv, os.environ)


def build_parser() -> argparse.ArgumentParser:
    """Every flag; every value of the scan's settings is one too, None where it was not given."""
    parser = argparse.ArgumentParser(
        description="Say whether a text encoder (of CLIP, Stable Diffusion and the like) carries a backdoor, knowing neither "
        "trigger nor target nor training data.  Without arguments the shipped example is scanned.",
        epilog="Exit code: 0 no backdoor found, 1 backdoor found, 2 bad input or error, 3 inconclusive; of several encoders "
        "the worst, 1 before 3 before 2 before 0.  Every flag of a scan may stand in the environment: AMBER_SEED is --seed, "
        "AMBER_LOAD_TIMEOUT --load-timeout, 1 or 0 a flag without a value.  A flag beats its variable, a variable the config.",
    )
    suspects = parser.add_mutually_exclusive_group()
    suspects.add_argument(
        "--model", default=str(SUSPECT),
        help="the suspect: a folder (text encoder, CLIP model or diffusers pipeline), a safetensors file (checkpoint, text "
        "encoder, LoRA or textual inversion), a hub id (owner/name or owner/name@revision) or the address of its page; every "
        "text encoder of a pipeline or a file gets a report (default: the shipped one)",
    )  # fmt: skip
    suspects.add_argument(
        "--models", type=Path, metavar="LIST_OR_FOLDER",
        help="many suspects instead: a text file with one a line, or a folder in which models lie, at whatever depth; goes on "
        "where an earlier run was stopped, and adds summary.json and summary.html to the results",
    )  # fmt: skip
    fleet = parser.add_argument_group("fleets", "who scans the encoders of --models; docs/fleet.md says more")
    fleet.add_argument("--workers", type=int, metavar="N", help="so many processes of this machine, sharing memory and cores")
    fleet.add_argument(
        "--scheduler", default="", metavar="ADDRESS_OR_FILE",
        help="the workers of a running dask scheduler: its address (tcp://host:8786) or the file that it has written",
    )  # fmt: skip
    parser.add_argument(
        "--subfolder", default="", metavar="FOLDER", help="where in --model the encoder lies, such as text_encoder_2"
    )
    parser.add_argument(
        "--tokenizer", default="", metavar="FOLDER",
        help="the tokenizer of an encoder that has none, as single files have: a folder or a hub id (default: the anchor's)",
    )  # fmt: skip
    parser.add_argument(
        "--lora-scale", type=float, default=1.0, metavar="SCALE",
        help="how strongly a LoRA that is given as --model changes the base that is given as --anchor (default: 1.0)",
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
    parser.add_argument("--config", type=Path, default=SETTINGS, help="YAML of the scan (default: configs/scan.yaml)")
    parser.add_argument("--output", type=Path, default=ROOT / "Results", help="where result folders go (default: Results)")
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (default: auto, a GPU where there is one)"
    )
    recalls = "; ".join(f"{effort} {recall_of(ScanConfig, SETTINGS, effort)}" for effort in EFFORTS)
    parser.add_argument(
        "--effort", choices=EFFORTS, default=USUAL, help=f"how much is searched ({recalls}; default: {USUAL})"
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=NAMES, default=AUTO,
        help="number format of the searches; strings are judged in single precision (default: auto, bfloat16 where the "
        "hardware multiplies in it and the encoder is wide)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=42, help="start of every random choice (default: 42)")
    parser.add_argument("--images", type=int, default=4, help="pictures of what was found; 0: none (default: 4)")
    parser.add_argument("--pipeline", default="auto", help="pipeline folder that draws them (default: the anchor's own)")
    parser.add_argument("--json", metavar="FILE", help="also write the report here, an array of several; - is standard output")
    parser.add_argument(
        "--sarif",
        metavar="FILE",
        help="also write the findings here as SARIF 2.1.0, for code-scanning pages; - is standard output",
    )
    rules = parser.add_argument_group("rules", "what fails, where it is not every verdict but clean; docs/policy.md says more")
    rules.add_argument(
        "--policy", metavar="FILE",
        help="YAML that says which verdicts fail, which findings are accepted, which anchors are allowed and how much a scan "
        f"must have searched; none: no policy (default: {POLICY} beside the models, where there is one)",
    )  # fmt: skip
    rules.add_argument(
        "--baseline", metavar="SUMMARY",
        help="summary.json of an earlier run: what it names does not fail again, only what is new",
    )  # fmt: skip
    parser.add_argument(
        "--bom", metavar="FILE",
        help="also write encoders, files and verdicts here as a bill of materials, CycloneDX 1.6; - is standard output",
    )  # fmt: skip
    parser.add_argument(
        "--predicate", metavar="FILE",
        help="also write an in-toto statement about the files that were read here, for your own signer; - is standard output",
    )  # fmt: skip
    parser.add_argument(
        "--markdown", metavar="FILE", help="also write a table of the verdicts here, for job summaries; - is standard output"
    )
    repair = parser.add_argument_group("repair", "what is done about a backdoor that was found; docs/repair.md says more")
    repair.add_argument(
        "--repair", type=Path, metavar="DIR",
        help="also repair what is backdoored: the mended encoder goes into this folder, of several each into one of its own in "
        "it; the exit code speaks of the suspect all the same",
    )  # fmt: skip
    repair.add_argument("--force", action="store_true", help="let --repair take the place of a folder, which is kept beside it")
    parser.add_argument(
        "--try", dest="tried", metavar="STRING",
        help="scan nothing, but tell what this string does to unseen prompts in suspect and base; exit code 1: it fires",
    )  # fmt: skip
    parser.add_argument(
        "--doctor", action="store_true",
        help="scan nothing, but tell what scans find on this machine (libraries, device, bases, places), with the cure of "
        "what is missing; exit code 2: scans do not work here",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="scan nothing, but tell what would be scanned, against what, for how long and within which limits",
    )  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="say nothing but errors: exit code and files hold the verdict")
    parser.add_argument(
        "--debug", action="store_true", help="also show what libraries print and where an error came from, in escaped lines"
    )
    limits = parser.add_argument_group(
        "limits", "each encoder is scanned in a process of its own, which is ended at a limit; --models goes on with the next "
        "one, and tries an encoder that was ended again when its files, the settings or the limits have changed",
    )  # fmt: skip
    limits.add_argument(
        "--memory", type=int, metavar="MB",
        help=f"memory of one scan (default: {BASE_MB} MB and {TIMES} times the weights of suspect and base, at most what the "
        "machine has; less while files are read)",
    )  # fmt: skip
    limits.add_argument("--timeout", type=int, metavar="SECONDS", help=f"time of one scan (default: {SECONDS})")
    limits.add_argument(
        "--load-timeout", type=int, metavar="SECONDS",
        help=f"processor time to read files and to tokenise (default: {READING_SECONDS}, and more for large files)",
    )  # fmt: skip
    group = parser.add_argument_group("settings", "every number of the scan; a flag beats the config")
    for name, one in settings_of(ScanConfig).items():
        plain = {"type": one.kind, "metavar": one.kind.__name__.upper()}
        how = {"action": argparse.BooleanOptionalAction} if one.kind is bool else plain
        group.add_argument(f"--{name.replace('_', '-')}", default=None, help=one.meaning.replace("%", "%%"), **how)
    parser.add_argument("--version", action="version", version=f"amber {VERSION}")
    return parser


def check_seed(seed: int) -> None:
    """Refuse what no generator of random numbers begins with."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"--seed {seed} is no start of random choices; give a whole number from 0 to {SEEDS - 1}.")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse, before any work, what cannot be delivered after it; models get the names that reports have for them.

    `args.rules` is what their verdicts are held against; --try has no verdict.
    """
    files = {flag: file for flag in DOCUMENTS if (file := getattr(args, flag.removeprefix("--")))}
    if args.dry_run and (idle := [*files, *(["--try"] if args.tried is not None else [])]):
        raise InputError(f"--dry-run scans nothing, so that {idle[0]} would have nothing to tell; leave one of them out.")
    for (flag, file), (other, another) in combinations(files.items(), 2):
        if Path(file).resolve() == Path(another).resolve():
            raise InputError(f"{flag} and {other} cannot both be written to {file}; give two files.")
    for flag, file in files.items():
        if file != "-" and (Path(file).is_dir() or not Path(file).resolve().parent.is_dir()):
            raise InputError(f"{flag} {file} cannot be written: give a file in a folder that exists.")
    for flag, limit in (("--memory", args.memory), ("--timeout", args.timeout), ("--load-timeout", args.load_timeout)):
        if limit is not None and limit < 1:
            raise InputError(f"{flag} {limit} leaves nothing; give 1 or more.")
    for flag, value in (("--workers", args.workers), ("--scheduler", args.scheduler or None)):
        if value is not None and not args.models:
            raise InputError(f"{flag} shares a list of encoders; give one with --models.")
    if args.workers is not None and args.scheduler:
        raise InputError("--workers starts processes and --scheduler joins those of others; give one of them.")
    if args.workers is not None and args.workers < 1:
        raise InputError(f"--workers {args.workers} leaves nobody to scan; give 1 or more.")
    if args.tried is not None and (args.models or not args.tried.strip()):
        raise InputError("--try takes one string and one --model; give both.")
    if args.force and not args.repair:
        raise InputError("--force lets --repair replace a folder; name that with --repair.")
    if args.repair and args.tried is not None:
        raise InputError("--try scans nothing that could be repaired; leave --repair out.")
    check_seed(args.seed)
    if args.images < 0:
        raise InputError(f"--images {args.images} is no number of pictures; give 0 or more.")
    if args.subfolder and args.models:
        raise InputError("--subfolder is for one --model; write it behind the names of the list: owner/name@main/FOLDER.")
    if not math.isfinite(args.lora_scale):
        raise InputError(f"--lora-scale {args.lora_scale} is no strength; give a number such as 1.0.")
    place = Place(str(args.models or args.model), many=bool(args.models))
    args.rules = Rules() if args.tried is not None else rules_of(args.policy, args.baseline, place)
    args.model, args.anchor = as_named(args.model, args.subfolder), as_named(args.anchor)


DOCUMENTS = ("--json", "--sarif", "--bom", "--predicate", "--markdown")
"""Flags that name a file for what is made of the reports."""


def _bom(reports: list[dict]) -> dict:
    from Utils.report.bom import to_bom  # its library takes a fifth of a second that scans without it do not need

    return to_bom(reports)


def deliver(reports: list[dict], args: argparse.Namespace) -> list[str]:
    """The reports where --json and the other documents want them.  -> what could not be delivered"""
    makers: dict[str, Callable[[], str]] = {
        "--json": lambda: to_json(reports if args.models or len(reports) > 1 else reports[0]),
        "--sarif": lambda: to_json(to_sarif(reports, VERSION, Path.cwd(), args.rules)),
        "--bom": lambda: to_json(_bom(reports)),
        "--predicate": lambda: to_json(to_statement(reports)),
        "--markdown": lambda: to_markdown(reports),
    }
    failed = []
    for flag in DOCUMENTS:
        file = getattr(args, flag.removeprefix("--"))
        if not file:
            continue
        try:
            text = makers[flag]()
            if file == "-":
                print(text, end="", flush=True)
            elif not Path(file).exists() or Path(file).is_file():
                write_whole(Path(file).resolve(), text)
            else:  # a pipe or a device
                Path(file).write_text(text, encoding="utf-8")
        except Exception as error:  # a full disk, a closed pipe, a damaged report of an earlier run
            if file == "-" and sys.stdout is not None:
                swallow(sys.stdout)
            failed.append(f"{flag} {file} could not be written ({sentence_of(error)})")
    return failed


def say(report: dict, folder: Path) -> None:
    """The verdict for a person, on standard error so that `--json -` stays pure."""
    from Utils.report.power import power_lines  # and with it libraries that are there where there is a report

    lines = [f"{report['verdict'].upper()}  (score {report['score']:.3f})  {report['reason']}"]
    if line := policy_line(report.get("policy")):
        lines.append(f"  {line}")
    for s in (report["trigger"] or {}).get("strings") or []:
        low, high = s["interval"]
        lines.append(
            f"  trigger {named(s['text'])}, {s['place']}: {s['success_rate']:.0%} of unseen prompts ({low:.0%} to {high:.0%}), "
            f"{s['anchor_success_rate']:.0%} in the clean base"
        )
    for e in report["evidence"]:
        value = "not tried" if e["value"] is None else f"{e['value']:.3f}"
        limit = "none" if e["threshold"] is None else f"{e['threshold']:.3f}"
        lines.append(f"  {'x' if e['met'] else ' '} {e['name']:<14} {value:>8}  (limit {limit})  {e['meaning']}")
    lines += [f"  note: {note}" for note in report["notes"]]
    lines += power_lines(report) if report["verdict"] == "clean" else []
    lines.append(f"  {sum(report['seconds'].values()):.0f} s, {report['peak_memory_mb']:.0f} MB; everything is in {folder}")
    tell("\n".join(visible(line) for line in lines))
