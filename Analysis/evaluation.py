"""The models of a split, built, scanned with our settings and with the published ones, and compared with their certificates.

    python Analysis/benchmark.py --config configs/benchmark.yaml         the same as the next line
    python Analysis/evaluation.py --size standard --jobs 2
    python Analysis/evaluation.py --split dev --size quick               of another split than the one that judges

Writes one JSON a scan, Results/benchmark/<split>/<settings>/<name>.json, as soon as it is done: what is there, of the same
model, settings and seed, is not done again, so that a stopped run goes on.  Models are built when their turn comes.  All rows
make Results/benchmark/table.json, table.md of it, and figures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from Analysis.curves import draw
from Analysis.recovery import s_tar, shown, typed, workshop
from Analysis.scoreboard import page
from Analysis.scores import table_of
from Analysis.turns import OURS, STANDARD, Benchmark, Evaluation, Turn, read_row, turns
from Backdoor_Attack.certified import Certified
from main import Request, scan_model
from Utils.basics.config import load_config
from Utils.basics.errors import InputError, fail, first_line
from Utils.basics.files import ROOT, write_whole
from Utils.basics.processes import workers
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.encoder.measures import flat_cosine
from Utils.encoder.text_encoder import TextEncoder, in_batches
from Utils.found.show import Show
from Utils.making.certificates import RIGHT
from Utils.making.zoo import load_zoo
from Utils.scan.calibration import settings_hash
from Utils.scan.replay import put

RESULTS = ROOT / "Results" / "benchmark"
WITNESSED = RESULTS / "witnesses.json"
"""Witnesses of the models that the score is fitted on (Analysis/calibrate.py)."""
BUILDER, REFUSED = ROOT / "Utils" / "build_zoo.py", 2
"""What builds a model, and how it ends where one that is there was drawn otherwise."""
DRIFTED = 100
"""Prompts that tell how far clean features are from the base's."""
STRINGS = 3
"""Strings of a report that a row keeps."""
TOLD = ("text", "place", "success_rate", "anchor_success_rate")
"""What a row keeps of one."""


def built(turn: Turn) -> None:
    """See to it that the model is there, and what stands in for its base.

    Raises:
        InputError: one cannot be built.
    """
    for job in turn.jobs:
        words = [sys.executable, BUILDER, "--split", turn.split, "--models", job.name, "--device", turn.device]
        words += ["--output", turn.folder(job).parent]
        done = subprocess.run(words, capture_output=True, text=True)  # what is there and is drawn as it was is left alone
        there = turn.folder(job).is_dir() and turn.folder(job).with_suffix(".json").exists()
        if done.returncode == REFUSED or not there:
            said = (done.stdout + done.stderr).strip().splitlines() or [f"it ended with {done.returncode}"]
            raise InputError(f"{job.name} was not built: {said[-1]}")


@torch.no_grad()
def moved(suspect: TextEncoder, base: TextEncoder, prompts: list[str]) -> dict[str, float]:
    """What anybody can measure without a search: how far weights and features of clean prompts are from the base's.

    rows: the farthest token embedding's way, as a share of the mean length of a row; weights: of all weights together;
    drift: 1 - cos of all features.
    """
    shared = min(len(suspect.vocabulary), len(base.vocabulary))
    rows = (suspect.vocabulary[:shared] - base.vocabulary[:shared]).norm(dim=-1)
    theirs, apart, whole = dict(base.model.named_parameters()), 0.0, 0.0
    for name, one in suspect.model.named_parameters():
        if one.shape == theirs[name].shape:  # added words are no way that anything went
            apart += (one - theirs[name]).double().square().sum().item()
            whole += theirs[name].double().square().sum().item()
    length = base.vocabulary.norm(dim=-1).mean()
    drift = 1 - flat_cosine(*(in_batches(one, base.ids(prompts)) for one in (suspect, base))).mean().item()
    weights = (apart / whole) ** 0.5
    return {"rows": round((rows.max() / length).item(), 4), "weights": round(weights, 5), "drift": round(drift, 5)}


def evaluated(turn: Turn) -> dict:
    """One row; in whatever process."""
    quiet_libraries()
    built(turn)
    name, results = f"{turn.job.name}_{turn.settings}", ROOT / "Results" / turn.split
    request = Request(turn.way.settings(), str(turn.anchor), results, turn.device, turn.seed, Show(images=0))
    began, computed = time.perf_counter(), time.process_time()
    report = scan_model(str(turn.model), request, name)
    about = {"name": turn.job.name, "split": turn.split, "settings": turn.settings}
    about |= {"seconds": round(time.perf_counter() - began, 1), "cpu_seconds": round(time.process_time() - computed, 1)}
    about |= {"threads": torch.get_num_threads()}
    return about | row_of(report, results / name, turn.model.with_suffix(".json"))


def row_of(report: dict, folder: Path, certificate: Path) -> dict:
    """What is kept of a report in its folder, beside what the certificate says of the model."""
    truth = json.loads(certificate.read_text(encoding="utf-8"))
    suspect, base = load_encoder(report["model"]["path"]), workshop(truth["family"]).base
    prompts = read_prompts(ROOT / report["config"]["corpus"], DRIFTED)
    row = {
        "family": truth["family"], "attack": truth.get("attack") or truth["recipe"]["attack"],
        "kind": truth["kind"], "drawn": truth.get("drawn"), "meets_bars": truth["meets_bars"],
        "verdict": report["verdict"], "right": report["verdict"] == RIGHT[truth["kind"]], "score": round(report["score"], 6),
        "reason": report["reason"], "evidence": {one["name"]: weighed(one) for one in report["evidence"]},
        "strings": [{key: one[key] for key in TOLD} for one in ((report["trigger"] or {}).get("strings") or [])[:STRINGS]],
        "moved": moved(suspect, base, prompts), "peak_memory_mb": report["peak_memory_mb"], "seed": report["seed"],
        "device": report["device"], "sha256": report["model"]["sha256"][:16], "config": settings_hash(report["config"]),
        "commit": report["tool"]["commit"],
    }  # fmt: skip
    more = planted(certificate, report, folder, row["right"]) if truth["kind"] == "planted" else {"recipe": truth["recipe"]}
    return row | more


def weighed(one: dict) -> dict:
    """A witness of a report without its sentence."""
    rounded = {name: value if value is None else round(value, 4) for name in ("value", "threshold") for value in [one[name]]}
    return rounded | {"met": one["met"]}


def planted(certificate: Path, report: dict, folder: Path, found: bool) -> dict:
    """What a row says of a backdoor: what it is, and what of it the scan recovered, in prompts that the search did not see."""
    certified, model = Certified(certificate), Path(report["model"]["path"])
    recipe, suspect, base, after = certified.recipe, load_encoder(model), certified.workshop.base, report["config"]["prompts"]
    string, v, rates = typed(report), shown(report, folder), {}

    def near(string: dict | None) -> dict:
        every = [s_tar(model, v, one, certified.family, string, after) for one in recipe.backdoors()]
        best = max(filter(None, every), key=lambda one: one.s_tar, default=None)
        return {"s_tar": best and (round(best.s_tar, 4) if found else 0.0), "floor": best and round(best.floor, 4)}

    if string:

        def put_in(prompt: str, number: int) -> str:
            return put(string["text"], prompt, string["place"], number)

        rates = {name: certified.success_of(one, put_in) for name, one in (("suspect", suspect), ("base", base))}
    of_v, of_string = near(None), near(string) if string else {"s_tar": None}
    return {
        "trigger": recipe.trigger, "tokens": len(base.tokens([recipe.trigger])[0]), "replaced": recipe.replaced,
        "place": recipe.place, "target": recipe.target, "on_a_fine_tune": certified.origin is not None,
        "s_tar": of_v["s_tar"], "s_tar_floor": of_v["floor"], "s_tar_typed": of_string["s_tar"],
        "string_reaches_target": rates,
    }  # fmt: skip


def scanned(turn: Turn) -> dict | InputError:
    """One row, written as soon as it is there, or why there is none; in whatever process."""
    try:
        row = evaluated(turn)
        write_whole(turn.row, json.dumps(row, ensure_ascii=False) + "\n")
        return row
    except InputError as error:
        return error
    except (RuntimeError, OSError, ValueError, LookupError, MemoryError) as error:  # of one model: the others go on
        return InputError(f"{turn.job.name}, {turn.settings}: {type(error).__name__}: {first_line(error)}")


def scans(todo: list[Turn], jobs: int, seconds: float) -> Iterator[dict | InputError]:
    """Every row as soon as it is there.  None is begun after so many seconds.

    Every scan has a process of its own, so that its peak of memory is its own, and no two need the same model at once:
    whoever comes first builds it.
    """
    until, waiting, running = time.time() + seconds, list(todo), {}
    try:
        while True:
            while len(running) < jobs and time.time() < until and (turn := first_of(waiting, running.values())):
                waiting.remove(turn)
                pool = workers(1, jobs)
                running[pool.submit(scanned, turn)] = turn
                pool.shutdown(wait=False)
            if not running:
                return
            for one in wait(running, return_when=FIRST_COMPLETED).done:
                turn = running.pop(one)
                killed = one.exception()  # a child without memory says nothing itself
                yield InputError(f"{turn.job.name}, {turn.settings}: {killed!r}") if killed else one.result()
    finally:
        for one in running:
            one.cancel()


def first_of(waiting: list[Turn], running: Iterable[Turn]) -> Turn | None:
    """The first that needs no model which another one has in hand."""
    in_hand = {model for turn in running for model in turn.models}
    return next((turn for turn in waiting if not in_hand & set(turn.models)), None)


def rows_of(split: str) -> dict[str, list[dict]]:
    """Setting -> all rows that are there and whole."""
    rows: dict[str, list[dict]] = {}
    for file in sorted((RESULTS / split).glob("*/*.json")):
        if row := read_row(file):
            rows.setdefault(file.parent.name, []).append(row)
        else:
            print(f"{file.relative_to(RESULTS)} is damaged and left out.", flush=True)
    return rows


def planned_for(cfg: Evaluation, split: str, size: str) -> Counter[str]:
    """Split -> models that a size scans as the scan is shipped."""
    return Counter(turn.split for turn in turns(cfg, load_zoo(), split, size, "cpu", [OURS]))


def whole_table(splits: list[str], planned: Counter[str]) -> dict:
    """Split -> what is counted, of all rows that are there.

    planned: how many models of each there should be.
    """
    calibrated = json.loads(WITNESSED.read_text(encoding="utf-8")) if WITNESSED.exists() else []
    return {name: table_of(rows, calibrated) | {"planned": planned[name]} for name in splits if OURS in (rows := rows_of(name))}


def write_table(split: str, further: list[str], planned: Counter[str]) -> None:
    """table.json and table.md, or table_<split> of a split that does not judge; nothing before a first row."""
    table = whole_table([split, *further], planned)
    if split not in table:
        return
    name = "table" if further else f"table_{split}"
    write_whole(RESULTS / f"{name}.json", json.dumps(table, ensure_ascii=False) + "\n")
    write_whole(RESULTS / f"{name}.md", page(table))


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0, 1 where a model could not be built, 2 bad input"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "configs" / "benchmark.yaml")
    parser.add_argument("--size", default=STANDARD, help=f"one of the config's sizes (default: {STANDARD})")
    parser.add_argument("--settings", nargs="+", metavar="NAME", help="scan in these ways only, by their names in the config")
    parser.add_argument("--split", help="of configs/zoo.yaml (default: the config's, which judges)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no scan after so many (default: no end)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time (default: 1)")
    args = parser.parse_args(argv)
    try:
        if args.jobs < 1:
            raise InputError("--jobs should be 1 or more.")
        cfg, zoo = load_config(Benchmark, args.config).evaluation, load_zoo()
        split = args.split or cfg.split
        planned = list(turns(cfg, zoo, split, args.size, args.device, args.settings))
    except InputError as error:
        return fail(str(error), "evaluation")
    todo = [turn for turn in planned if not turn.is_done(zoo.bars)]
    print(f"{len(todo)} scans to make", flush=True)
    further, expected = [cfg.further] if split == cfg.split else [], planned_for(cfg, split, STANDARD)
    write_table(split, further, expected)
    missed = 0
    for row in scans(todo, args.jobs, 60 * args.minutes):
        if isinstance(row, InputError):
            missed += 1
            print(row, flush=True)
            continue
        write_table(split, further, expected)
        print(*(row[key] for key in ("name", "settings", "family", "attack", "kind", "verdict", "seconds")), flush=True)
    draw(rows_of(split), RESULTS / ("figures" if further else f"figures_{split}"))
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
