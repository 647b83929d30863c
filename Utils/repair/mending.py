"""A repair, from the report of a scan to the encoder in its place: rounds of unlearning and of scans with a fresh seed."""

from __future__ import annotations

import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor

from Utils.basics.bounded import at_stage, reading, say
from Utils.basics.errors import InputError, named
from Utils.basics.files import mark, move_aside, refuse_taken, remove_parts, whole_file, write_whole
from Utils.encoder.added import added_to
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.loading import load_encoder, weights_digest
from Utils.encoder.readings import compare, read_by
from Utils.encoder.text_encoder import TextEncoder, in_batches, splice_ids
from Utils.found.target import draw_pictures
from Utils.repair.damage import Damage
from Utils.repair.measures import drift_by_layer, of_clean_prompts, of_odd_prompts, of_pictures, of_strings, towards_target
from Utils.repair.methods import METHODS, MethodsConfig, weights_of, with_weights
from Utils.repair.relearning import RelearningConfig, relearned
from Utils.repair.settings import RepairConfig
from Utils.repair.unlearning import unlearn
from Utils.repair.writing import dropped_in, write_repaired
from Utils.report.contract import APART, to_json
from Utils.report.folder import model_of
from Utils.report.repair_page import render_repair
from Utils.report.report import versions
from Utils.report.run import Run, peak_memory_mb
from Utils.report.tool import this_tool
from Utils.scan.replay import FIRES, PROMPTS, nearer, put, summaries
from Utils.scan.settings import OVERRULES, TriggerConfig
from Utils.scan.strings import LONG, of_length, trial_of
from Utils.sources.lenders import Given
from Utils.sources.registry import from_here

Certificate = Callable[[TextEncoder], float]
"""An encoder -> the success rate of the true trigger, where somebody knows it."""
OURS = "unlearn"
SCHEMA = "amber-repair/1"
"""Version of what a repair writes."""
HELD_OUT = 200
"""Prompts that clean features are measured on; no repair learns from them."""
UNFINISHED = ("rounds.pt", "steps.pt")
"""What an interrupted repair leaves in the folder of its report, and goes on from."""
RESCAN = "rescan"
"""Folder of the last scan's report beside it."""


@dataclass(frozen=True)
class Order:
    """What is to be repaired, where it goes, and how."""

    place: Path
    """The repaired encoder's folder."""
    folder: Path
    """Of the report, and of what an interrupted repair goes on from."""
    results: Path
    """Of the scan that says what is wrong."""
    method: str = OURS
    cfg: RepairConfig = field(default_factory=RepairConfig)
    seed: int = 42
    given: Given = field(default_factory=Given)
    images: bool = True
    pipeline: str = "auto"
    """Of pictures of one prompt."""
    relearn: bool = True
    """Whether to measure how soon the strings come back."""
    strings: tuple[str, ...] = ()
    """What the user knows to fire."""
    scans: str = ""
    """What decides the scans between rounds: an interrupted repair goes on with the same only."""
    force: bool = False
    """Whether the folder may take the place of another one."""
    copy: str = ""
    """What names the suspect in a copy of its pipeline or file that has another encoder repaired; it is repaired there."""

    def __post_init__(self):
        object.__setattr__(self, "place", self.place.resolve())  # of "." and ".." the last part is no name

    def aside(self) -> tempfile.TemporaryDirectory:
        """A folder beside the place, for what is not whole yet; what a killed process leaves of it `remove_parts` removes."""
        name = f".{self.place.name}.{mark()}-"
        return tempfile.TemporaryDirectory(dir=self.place.parent, prefix=name, suffix=".part")


# ------------------------------------------------------------------------------------------------------- what is known
def opened(
    model: str, anchor: str, device: torch.device, given: Given, prompts: list[str], used: int
) -> tuple[TextEncoder, TextEncoder | None]:
    """Suspect and base as a scan compares them: both read texts alike, and the base has the suspect's added words."""
    with reading():
        suspect = load_encoder(model, device, given)
        base, _ = pick_anchor(anchor, suspect, device, given.tokenizer)
        added = added_to(suspect, base, prompts) if base else None
        base = added.knowing if added else None
        suspect = replace(suspect, added=tuple(added.tokens)) if added else suspect
        form = compare(suspect, base, prompts, used).reference
    return read_by(suspect, form.tokenizer), base and read_by(base, form.tokenizer)


@dataclass(frozen=True)
class Prompts:
    """The defender's prompts, divided: a repair learns from none that something is measured on."""

    learn: list[str]
    measure: list[str]
    typed: list[str]
    """Long ones that strings are typed into, as a scan does; what is forced is the mean of these."""


def divided(prompts: list[str], used: int) -> Prompts:
    """used: how many of the prompts the search of a scan sees; of the others it judges strings by the long ones.

    Raises:
        InputError: they are too few.
    """
    if len(prompts) < (least := max(used, 2 * HELD_OUT) + PROMPTS):
        raise InputError(f"{len(prompts)} prompts are too few to repair with; give a corpus of {least} or more.")
    typed = of_length(prompts[used:], LONG, PROMPTS)
    rest = [prompt for prompt in prompts if prompt not in set(typed)]
    return Prompts(rest[:-HELD_OUT], rest[-HELD_OUT:], typed)


def damage_of(report: dict, order: Order, suspect: TextEncoder, base: TextEncoder | None, prompts: Prompts) -> Damage:
    """What a scan has found, and what the user knows to fire.

    Raises:
        InputError: it has found nothing that lies in the weights.
    """
    found = known_to_fire(order.strings, suspect, base, prompts)
    forced, wordless = [_forced_by(suspect, *one, prompts) for one in found], False
    for backdoor in of_weights(report):
        own = [(s["text"], s["place"]) for s in backdoor["trigger"]["strings"] or []]
        found += own
        if own:
            forced.append(_forced_by(suspect, *own[0], prompts))
        elif file := backdoor["trigger"]["embedding"]:
            v = _vector(order.results / file, suspect)
            ids = splice_ids(suspect, suspect.ids(prompts.learn[:HELD_OUT]), len(v))
            forced.append(in_batches(suspect, ids, TextEncoder.pooled, v).mean(dim=0).cpu())
            wordless = True
    if not forced:
        raise InputError(
            f"the scan of {suspect.path} names nothing in its weights that a repair could begin with; where you know a string "
            "that fires, give it to Utils/mitigate.py with --string."
        )
    return Damage(suspect, base, prompts.learn, found, tuple(forced), order.seed, wordless)


def known_to_fire(
    strings: Iterable[str], suspect: TextEncoder, base: TextEncoder | None, prompts: Prompts
) -> list[tuple[str, str]]:  # fmt: skip
    """Strings that the user knows, and the places where they do most.

    Raises:
        InputError: one does not fire.
    """
    trial = trial_of(suspect, base, TriggerConfig(), prompts.typed)
    tried = [trial.best(text) for text in strings]
    if quiet := next((one.text for one in tried if min(one.rate.success - FIRES, one.rate.collapse - OVERRULES) < 0), None):
        raise InputError(f"{named(quiet)} does not overrule prompts in {suspect.path}; give one that does (main.py --try).")
    return [(one.text, one.rate.place) for one in tried]


def of_weights(report: dict) -> list[dict]:
    """The backdoors of a report that lie in the weights and were made visible; no weights mend the others."""
    return [one for one in report["backdoors"] if one["kind"] not in APART and one["trigger"]]


def strings_left(report: dict) -> list[list[tuple[str, str]]]:
    """Strings and their places, of every backdoor of the weights, or of what a scan that is inconclusive shows."""
    shown = of_weights(report) if report["backdoors"] else [report]
    return [[(s["text"], s["place"]) for s in (one.get("trigger") or {}).get("strings") or []] for one in shown]


def _vector(file: Path, suspect: TextEncoder) -> Tensor:
    """The pseudo-trigger that a scan has left, (k, d)."""
    with _unless_broken():
        v = torch.load(file, map_location=suspect.device, weights_only=True)
        if v.dim() == 2 and v.shape[1] == suspect.width:
            return v
    raise InputError(f"{file} holds no vector of a scan of this encoder; scan it again.")


def _forced_by(suspect: TextEncoder, text: str, place: str, prompts: Prompts) -> Tensor:
    return summaries(suspect, [put(text, prompt, place, i) for i, prompt in enumerate(prompts.typed)]).mean(dim=0)


def _fires(damage: Damage, text: str, place: str, prompts: Prompts) -> bool:
    """Whether a string that was found in a repaired encoder is one of the suspect's: else there is nothing that it forces."""
    typed = [put(text, prompt, place, i) for i, prompt in enumerate(prompts.typed)]
    triggered, clean = summaries(damage.suspect, typed), summaries(damage.suspect, prompts.typed)
    return nearer(triggered, triggered.mean(dim=0), clean) >= FIRES


# ------------------------------------------------------------------------------------------------------------- rounds
def forget_rescan(folder: Path) -> None:
    """Remove the scan that an earlier round or repair has left beside its report: it is of another encoder."""
    if model_of(folder / RESCAN):
        shutil.rmtree(folder / RESCAN)


@dataclass
class Rounds:
    """What is done, kept in a file: an interrupted repair goes on from its last round."""

    file: Path
    identity: str
    done: list[dict] = field(default_factory=list)
    """{verdict, score, reason, seed, strings, left, seconds} of the scan after each round."""
    strings: list[tuple[str, str]] = field(default_factory=list)
    forced: list[Tensor] = field(default_factory=list)
    """What these scans found beside what was known."""
    learned: int = 0
    """Rounds after which the weights are; the scan after the last of them may be missing."""
    weights: dict[str, Tensor] = field(default_factory=dict)
    """Of the encoder after these."""

    def load(self) -> None:
        with _unless_broken():
            state = torch.load(self.file, map_location="cpu", weights_only=True)
            if state["identity"] == self.identity:
                self.done, self.learned = state["done"], state["learned"]
                self.forced, self.weights = state["forced"], state["weights"]
                self.strings = [tuple(one) for one in state["strings"]]

    def save(self) -> None:
        state = {name: getattr(self, name) for name in ("identity", "done", "learned", "forced", "weights")}
        with whole_file(self.file) as partial:
            torch.save(state | {"strings": [list(one) for one in self.strings]}, partial)


@contextmanager
def _unless_broken() -> Iterator[None]:
    """No file, half of one, or one of something else: what it should hold is not there."""
    try:
        yield
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, pickle.UnpicklingError):
        return


@dataclass(frozen=True)
class Repaired:
    """What rounds came to."""

    student: TextEncoder
    scans: list[dict]
    """After every round."""
    notes: list[str]
    """On its files."""
    strings: list[tuple[str, str]] = field(default_factory=list)
    """What these scans found beside what was known."""


def repaired_by(
    order: Order, damage: Damage, prompts: Prompts, rescan: Callable[[str, int], dict], place: Path, fresh: int
) -> Repaired:
    """Repair, write and scan in rounds until a scan with a fresh seed is clean.

    rescan: (model, seed) -> report; place: where the encoder of the last round lies at the end; fresh: the first seed that
    no scan of the suspect had.
    """
    if order.method != OURS:
        at_stage("repair")
        began = time.perf_counter()
        student = METHODS[order.method](damage, MethodsConfig())
        seconds = time.perf_counter() - began
        notes = write_repaired(student, damage.suspect, order.given, place)
        return Repaired(student, [scanned_again(rescan(dropped_in(damage.suspect, place), fresh), seconds)], notes)
    known = [damage.suspect.sha256, damage.base.sha256 if damage.base else "", asdict(order.cfg), damage.strings, order.seed]
    known += [[one.tolist() for one in damage.forced], order.scans, fresh]
    rounds = Rounds(order.folder / UNFINISHED[0], sha256(repr(known).encode()).hexdigest())
    rounds.load()
    student, notes = None, []
    if rounds.weights:
        student = with_weights(damage.suspect, rounds.weights)
    most = order.cfg.rounds if damage.base else 1  # without a base no scan finds anything to go on with
    while len(rounds.done) < most and (not rounds.done or rounds.done[-1]["left"]):
        began, number = time.perf_counter(), len(rounds.done)
        if rounds.learned <= number:
            at_stage(f"repair, round {number + 1}")
            more = replace(damage, strings=damage.strings + rounds.strings, forced=(*damage.forced, *rounds.forced))
            student = unlearn(more, order.cfg, student, number, order.folder / UNFINISHED[1])
            rounds.learned, rounds.weights = number + 1, weights_of(student)
            rounds.save()
        seconds = time.perf_counter() - began
        shutil.rmtree(place, ignore_errors=True)
        notes = write_repaired(student, damage.suspect, order.given, place)
        report = rescan(dropped_in(damage.suspect, place), fresh + number)
        rounds.done.append(scanned_again(report, seconds))
        for strings in strings_left(report) if rounds.done[-1]["left"] else []:
            own = [one for one in strings if _fires(damage, *one, prompts)]
            rounds.strings += own
            rounds.forced += [_forced_by(damage.suspect, *one, prompts) for one in own[:1]]
        rounds.save()
        say(f"repair, round {number + 1}: {report['verdict']}, score {report['score']:.3f}")
    if not place.exists():  # all rounds were done before
        notes = write_repaired(student, damage.suspect, order.given, place)
    return Repaired(student, rounds.done, notes, rounds.strings)


def scanned_again(report: dict, seconds: float) -> dict:
    """What is kept of the scan after a round that took so many seconds."""
    strings = [s["text"] for b in report["backdoors"] for s in (b["trigger"] or {}).get("strings") or []]
    names = ("verdict", "score", "reason", "seed")
    left = bool(of_weights(report)) if report["verdict"] == "backdoored" else report["verdict"] != "clean"
    return {name: report[name] for name in names} | {"strings": strings, "left": left, "seconds": round(seconds, 1)}


# -------------------------------------------------------------------------------------------------------------- the whole
def mend(
    order: Order, pair: tuple[TextEncoder, TextEncoder | None], prompts: Prompts, report: dict,
    rescan: Callable[[str, int], dict], certificate: Certificate | None = None,
) -> dict:  # fmt: skip
    """Repair the first of a pair, suspect and base, into `order.place`.  -> the report of the repair, in `order.folder` too

    report: of the scan, in `order.results`; rescan: model and seed -> another one.

    Raises:
        InputError: the scan is of other weights or has found nothing in them, or the place is taken.
    """
    (suspect, base), began, spent = pair, time.perf_counter(), {}
    if report["model"]["sha256"] != suspect.sha256:
        raise InputError(f"{suspect.path} holds other weights than the scan has seen; scan it again.")
    refuse_other_base(report, suspect, base)
    damage = damage_of(report, order, suspect, base, prompts)
    refuse_taken(order.place, order.force)
    if (order.folder / "report.json").is_file():
        move_aside(order.folder)  # an earlier repair's encoder may lie elsewhere: its report and scan stay true
    for folder in (order.place.parent, order.folder):
        folder.mkdir(parents=True, exist_ok=True)
        remove_parts(folder)
    with order.aside() as aside:
        place = Path(aside) / order.place.name
        fresh = max(order.seed, report.get("seed", order.seed)) + 1
        repaired = repaired_by(order, damage, prompts, rescan, place, fresh)
        # what is measured is what was written: a coarse format loses some of what was learned
        written = load_encoder(dropped_in(suspect, place), suspect.device, order.given)
        student, scans, notes = with_weights(suspect, weights_of(written)), repaired.scans, repaired.notes
        damage = replace(damage, strings=list(dict.fromkeys([*damage.strings, *repaired.strings])))
        spent["repair and scans"] = round(time.perf_counter() - began, 1)
        at_stage("measures")
        told = measured(damage, student, prompts)
        if certificate:
            both = [*_both(suspect, student), ("base", base)]
            told["certificate"] = {name: certificate(one) if one else None for name, one in both}
        if order.relearn and damage.strings:
            told["relearning"] = _relearning(damage, student, prompts)
        run = Run(order.folder, order.seed)
        told["pictures"], more = pictures(damage, student, prompts, order, run)
        spent["measures"] = round(time.perf_counter() - began - spent["repair and scans"], 1)
        whole = {
            "schema": SCHEMA, "verdict": scans[-1]["verdict"], "reason": sentence(told, scans), "method": order.method,
            "model": {"path": report["model"]["path"] if order.copy else suspect.path, "sha256": suspect.sha256},
            "anchor": {"path": base.path, "sha256": base.sha256} if base else None,
            "output": {"path": dropped_in(suspect, order.place), "weights": weights_digest(student.model)},
            "found": {"verdict": report["verdict"], "score": report["score"], "reason": report["reason"]},
            "rounds": scans, **told, "notes": [*notes, *more], "seconds": spent, "peak_memory_mb": peak_memory_mb(),
            "settings": asdict(order.cfg if order.method == OURS else MethodsConfig()), "seed": order.seed,
            "tool": this_tool(), "versions": versions(),
        }  # fmt: skip
        page = render_repair(whole, order.folder)
        refuse_taken(order.place, order.force)  # all this took a while
        write_whole(order.folder / "report.json", to_json(whole))
        write_whole(order.folder / "report.html", page)
        move_aside(order.place)
        place.rename(order.place)
    for leftover in UNFINISHED:
        (order.folder / leftover).unlink(missing_ok=True)
    return whole


def refuse_other_base(report: dict, suspect: TextEncoder, base: TextEncoder | None) -> None:
    """Raise where the scan compared the suspect with another base than the repair would learn from.

    Raises:
        InputError: it did.
    """
    compared, here = report.get("anchor"), base.path if base else "none"
    if compared and (base is None or base.sha256 != compared["sha256"]):
        there = from_here(compared["path"])
        raise InputError(f"the scan compared {suspect.path} with {there}, the repair with {here}; give --anchor {there}.")


def measured(damage: Damage, student: TextEncoder, prompts: Prompts) -> dict:
    """What the repair changed, and what it left."""
    suspect, base = damage.suspect, damage.base
    pairs = {"suspect to repaired": (suspect, student)}
    pairs |= {"base to suspect": (base, suspect), "base to repaired": (base, student)} if base else {}
    bends = {name: towards_target(one, base, damage.forced, prompts.measure) for name, one in _both(suspect, student) if base}
    return {
        "strings": of_strings(damage, student, prompts.typed),
        "clean": of_clean_prompts(damage, student, prompts.measure),
        "odd": of_odd_prompts(damage, student, prompts.measure),
        "drift_by_layer": {name: drift_by_layer(*pair, prompts.measure) for name, pair in pairs.items()},
        "towards_target": bends or None,
        "retrieval": of_pictures(damage, student),
        "certificate": None, "relearning": None,
    }  # fmt: skip


def _both(suspect: TextEncoder, repaired: TextEncoder) -> tuple[tuple[str, TextEncoder], ...]:
    return ("suspect", suspect), ("repaired", repaired)


def _relearning(damage: Damage, student: TextEncoder, prompts: Prompts) -> dict:
    """In how many steps the first string is taught again to the repaired encoder, and to the base that never had it."""
    (text, place), cfg = damage.strings[0], RelearningConfig()
    encoders = {"repaired": student} | ({"base": damage.base} if damage.base else {})

    forced = _forced_by(damage.suspect, text, place, prompts)

    def poison(prompt: str) -> str:
        return put(text, prompt, place, len(prompt))

    steps = {name: relearned(one, poison, forced, prompts.learn, prompts.typed, cfg) for name, one in encoders.items()}
    return {"string": text, "place": place, "most": cfg.steps, "steps": steps}


def pictures(damage: Damage, student: TextEncoder, prompts: Prompts, order: Order, run: Run) -> tuple[dict, list[str]]:
    """One prompt with the first string, as suspect, repaired encoder and base have it drawn.  -> {prompt, files}, notes"""
    if not (order.images and damage.base and damage.strings):
        return {"prompt": None, "files": {}}, []
    text, place = damage.strings[0]
    able = [prompt for prompt in prompts.measure if put(text, prompt, place, 0) != prompt]
    if not able:  # no prompt has the letter
        return {"prompt": None, "files": {}}, []
    prompt = min(able, key=len)
    typed, encoders = put(text, prompt, place, 0), dict([*_both(damage.suspect, student), ("base", damage.base)])
    features = {name: in_batches(one, one.ids([typed])) for name, one in encoders.items()}
    features |= {"suspect, without the string": in_batches(damage.suspect, damage.suspect.ids([prompt]))}
    files, notes = draw_pictures(damage.base, order.pipeline, features, 1, run)
    return {"prompt": typed, "files": {name: one[0] for name, one in files.items()}}, notes


def sentence(told: dict, scans: list[dict]) -> str:
    """What came of it, in one sentence."""
    strings = told["strings"]
    before, after = (max((row["success"][name] for row in strings), default=0.0) for name in ("suspect", "repaired"))
    more = f" and {len(strings) - 1} more" if len(strings) > 1 else ""
    first = f"{named(strings[0]['text'])}{more}" if strings else ""
    fired = f"{first} overruled up to {before:.0%} of unseen prompts and now {after:.0%}; " if strings else ""
    return (
        f"{fired}a scan with a fresh seed says {scans[-1]['verdict']}; features of clean prompts are the suspect's own by a "
        f"cosine of {told['clean']['suspect']:.3f}."
    )
