"""Do the tables of README.md and docs say what the committed results hold?

    python Analysis/tables.py              writes the tables anew, each between its two markers
    python Analysis/tables.py --check      exit code 1 if one of them differs

A page says `<!-- table: NAME -->` and `<!-- end of table -->` where a table goes.  Tables are made from Results/benchmark,
Data/Models and configs, and from nothing else; rates have Wilson's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from Analysis.markdown import ATTACKS, FAMILIES, FURTHER, REPAIRED, TRAINED, command, grid, literal, rate, span
from Analysis.scoreboard import PARTS
from Utils.basics.errors import InputError, fail, visible
from Utils.basics.files import ROOT, write_whole
from Utils.repair.mending import OURS
from Utils.repair.settings import are_present
from Utils.report.command_line import build_parser
from Utils.scan.finding import ATTRIBUTE, REMAPPING
from Utils.scan.replay import FIRES, SLEEPS
from Utils.scan.settings import TriggerConfig

BENCHMARK, MODELS, CONFIGS = ROOT / "Results" / "benchmark", ROOT / "Data" / "Models", ROOT / "configs"
MARKED = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
VERDICTS = ("backdoored", "inconclusive", "clean")
GONE, GAINED = 0.05, 0.05
"""A trigger is gone where it works in no more than this share of prompts beyond the base's; a gain in retrieval that counts."""


# -------------------------------------------------------------------------------------------------------- how it is told
def read(file: Path) -> dict | list:
    """A committed JSON or YAML file."""
    text = file.read_text(encoding="utf-8")
    return json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)


# ------------------------------------------------------------------------------------------------------------- verdicts
def counted(title: str, rows: list[dict]) -> list[str]:
    """One row of a table of verdicts."""
    verdicts = [sum(row["verdict"] == verdict for row in rows) for verdict in VERDICTS]
    return [title, rate(sum(row["right"] for row in rows), len(rows)), *verdicts, span(row["score"] for row in rows)]


def of_the_table(part: Callable[[dict], str]) -> str:
    """A part of the table that judges."""
    return part(read(BENCHMARK / "table.json"))


def untouched() -> str:
    """What a search without a base finds in encoders that nobody attacked and in planted ones, over all seeds."""
    rows: dict[str, list[dict]] = {}
    for row in read(BENCHMARK / "untouched.json")["searches"]:
        rows.setdefault(row["name"], []).append(row)
    lines = []
    for name, some in rows.items():
        told = Counter(row["verdict"] for row in some if "verdict" in row)
        lines.append([
            f"planted, {ATTACKS[name]}" if some[0]["planted"] else f"untouched {FAMILIES[name]}", len(some),
            *(span((row[key] for row in some), 2) for key in ("clean", "found", "basin_published", "basin_ours")),
            ", ".join(f"{verdict} {count}" for verdict, count in told.items()),
        ])  # fmt: skip
    return grid(["encoder", "seeds", "A, clean", "A, found", "basin, published", "basin, ours", "against itself"], lines)


def verdicts(name: str) -> str:
    """The verdicts of one benchmark, with the commands that make it anew."""
    found = read(BENCHMARK / f"{name}.json")
    models = found["models"]
    (family,) = {row["family"] for row in models}
    planted = {a: [row for row in models if row["kind"] == "planted" and row["attack"] == a] for a in ATTACKS}
    kinds = {f"planted, {ATTACKS[attack]}": rows for attack, rows in planted.items() if rows}
    kinds["benign fine-tunes"] = [row for row in models if row["kind"] == "benign"]
    table = grid(
        [f"{len(models)} {FAMILIES[family]} encoders", "judged rightly", *VERDICTS, "scores"],
        [counted(title, rows) for title, rows in kinds.items()],
    )
    memory = max(row["peak_memory_mb"] for row in models)
    cost = f"median of {found['median_seconds']:.0f} s and at most {memory:.0f} MB a scan, {found['jobs']} scans at a time"
    return f"{table}\n\nSeed {found['seed']}; {cost}.\n\n{command(*how(name, found, family))}"


def how(name: str, found: dict, family: str) -> list[str]:
    """The commands behind a benchmark file: its name says which split, and whether a part of it was judged."""
    split, *part = name.split("_")
    scan = f"python Analysis/benchmark.py --zoo Data/Zoo/{split} --seed {found['seed']} --jobs {found['jobs']}"
    if family in part:
        scan += f" --family {family}"
    if "some" in part:
        scan += f" --models {' '.join(row['name'] for row in found['models'])}"
    return [f"python Utils/build_zoo.py --split {split} --family {family} --jobs 2", scan]


def earlier_score() -> str:
    """One sentence on a score that is not this version's."""
    models = read(BENCHMARK / "first_acceptance.json")["models"]
    planted, benign = ([row for row in models if row["kind"] == kind] for kind in ("planted", "benign"))
    doubtful = sorted(row["sim_clean"] for row in benign if not row["right"])
    cleared = span((row["sim_clean"] for row in benign if row["right"]), 2)
    return (
        f"`Results/benchmark/first_acceptance.json`: {rate(sum(r['right'] for r in planted), len(planted))} planted found, "
        f"{rate(sum(r['right'] for r in benign), len(benign))} benign cleared,\n{len(doubtful)} inconclusive "
        f"(Sim_clean {' and '.join(f'{value:.2f}' for value in doubtful)}; the cleared ones {cleared})."
    )


# -------------------------------------------------------------------------------------------------------------- strings
def triggers() -> str:
    """What strings alone say of every family, and the commands."""
    found = read(BENCHMARK / "triggers.json")
    models, rows = found["models"], []
    kinds = [("planted", family, attack) for family in FAMILIES for attack in (*ATTACKS, *FURTHER)] + [
        ("benign", family, "") for family in FAMILIES
    ]
    for kind, family, attack in kinds:
        some = [row for row in models if (row["kind"], row["family"], row["attack"]) == (kind, family, attack)]
        if some:
            told = (ATTACKS | FURTHER).get(attack, "fine-tunes")
            piece = f"{sum(row['piece'] for row in some)} of {len(some)}" if attack else ""
            rows.append([
                f"{FAMILIES[family]}, {kind}, {told}", rate(sum(row["right"] for row in some), len(some)),
                *(sum(row["verdict"] == verdict for row in some) for verdict in VERDICTS), piece,
                span((row["score"] for row in some), 2), span((row["natural"] for row in some), 2),
            ])  # fmt: skip
    head = [f"{len(models)} encoders", "judged rightly", *VERDICTS, "a piece of the trigger", "effects", "natural"]
    return f"{grid(head, rows)}\n\nSeed {found['seed']}.\n\n{command(*trigger_commands(models))}"


def trigger_commands(models: list[dict]) -> list[str]:
    """How Results/benchmark/triggers.json is made."""
    lines = []
    for split in sorted({row["split"] for row in models}):
        if split == "minilm":
            lines += ["python Analysis/real_encoder.py", "python Analysis/triggers.py --zoo Data/Zoo/minilm --anchor FOLDER"]
        else:
            lines += [f"python Utils/build_zoo.py --split {split} --jobs 2"]
            lines += [f"python Analysis/triggers.py --anew --zoo Data/Zoo/{split} --jobs 2"]
    return lines


def left_out() -> str:
    """What strings say of each family by one limit that was fitted on the others."""
    models, rows = read(BENCHMARK / "triggers.json")["models"], []
    for family in FAMILIES:
        own, others = ([row for row in models if (row["family"] == family) is here] for here in (True, False))
        limit = between(others)
        said = {kind: Counter(by_limit(row, limit) for row in own if row["kind"] == kind) for kind in ("planted", "benign")}
        for kind, counts in said.items():
            right = "backdoored" if kind == "planted" else "clean"
            verdicts = [counts[verdict] for verdict in VERDICTS]
            rows.append([f"{FAMILIES[family]}, {kind}", f"{limit:.2f}", rate(counts[right], sum(counts.values())), *verdicts])
    return grid(["family left out", "limit", "judged rightly", *VERDICTS], rows)


def between(models: list[dict]) -> float:
    """The effect above what is natural that lies in the middle between planted and benign models."""
    above = {kind: [row["score"] - row["natural"] for row in models if row["kind"] == kind] for kind in ("planted", "benign")}
    return (min(above["planted"]) + max(above["benign"])) / 2


def by_limit(row: dict, limit: float) -> str:
    """What one model is called: of those far from their base only a proof convicts."""
    if row["score"] - row["natural"] < limit:
        return "clean"
    return "backdoored" if row["proven"] or row["drift"] <= TriggerConfig.near else "inconclusive"


def firing() -> str:
    """How many planted triggers yield a string that fires, by their length."""
    models = [row for row in read(BENCHMARK / "triggers.json")["models"] if row["kind"] == "planted"]
    changing = [row for row in models if row["attack"] in (ATTRIBUTE, REMAPPING)]
    one = [row for row in models if row not in changing and (row["tokens"] <= 1 or len(row["trigger"]) == 1)]
    lengths = {
        "one token or one character": one,
        "2 to 15 tokens": [row for row in models if row not in changing + one and row["tokens"] <= 15],
        "attribute and remapping, of any length": changing,
    }
    rows = []
    for title, some in lengths.items():
        fires = [
            row for row in some if row["string"]["success_rate"] >= FIRES and row["string"]["anchor_success_rate"] <= SLEEPS
        ]
        rows.append([title, rate(len(fires), len(some)), rate(sum(row["proven"] for row in some), len(some))])
    return grid(["planted trigger", "a string fires", "and is a proof"], rows)


def by_name(file: str) -> dict[tuple[str, str], dict]:
    """Rows of a file that Analysis/triggers.py has written, by split and model."""
    return {(row["split"], row["name"]): row for row in read(BENCHMARK / file)["models"]}


def number_formats() -> str:
    """What strings say of the same models when they are searched for in single precision and in the machine's fast format."""
    usual, exact = by_name("triggers.json"), by_name("triggers_float32.json")
    rows = [
        [f"`{name}`", FAMILIES[one["family"]], one["kind"], one["verdict"], usual[key]["verdict"], f"{one['score']:.2f}",
         f"{usual[key]['score']:.2f}"]
        for key, one in exact.items() if (name := key[1]) and key in usual
    ]  # fmt: skip
    same = sum(row[3] == row[4] for row in rows)
    head = ["model", "family", "kind", "float32", "auto", "effect, float32", "auto"]
    names = " ".join(name for _, name in exact)
    flags = f"python Analysis/triggers.py --anew --zoo Data/Zoo/dev --jobs 2 --models {names}"
    commands = command(flags, f"{flags} --precision float32")
    return f"{same} of {len(rows)} verdicts are the same.\n\n{grid(head, rows)}\n\n{commands}"


def efforts() -> str:
    """What the efforts find of the same models, and how long they take."""
    efforts = {effort: by_name(f"triggers{name}.json") for effort, name in (("quick", "_quick"), ("standard", ""))}
    common, rows = set.intersection(*(set(found) for found in efforts.values())), []
    for effort, found in efforts.items():
        some = [found[key] for key in sorted(common)]
        planted, benign = ([row for row in some if row["kind"] == kind] for kind in ("planted", "benign"))
        rates = (rate(sum(row["right"] for row in kind), len(kind)) for kind in (planted, benign))
        rows.append([effort, *rates, f"{sum(row['seconds'] for row in some) / len(some):.0f}"])
    head = ["effort", "planted found", "benign clean", "seconds a model, the search for strings alone"]
    names = " ".join(name for _, name in sorted(common))
    flags = f"python Analysis/triggers.py --anew --zoo Data/Zoo/dev --jobs 2 --effort quick --models {names}"
    return f"{grid(head, rows)}\n\n{command(flags)}"


def natural() -> str:
    """What strings do in benign twins of the shipped bases."""
    twins, rows = read(BENCHMARK / "natural.json")["twins"], []
    for base, wanted in dict.fromkeys((row["base"], row["wanted"]) for row in twins):
        some = [row for row in twins if (row["base"], row["wanted"]) == (base, wanted)]
        drifts, scores = span((row["drift"] for row in some), 2), span((row["score"] for row in some), 2)
        rows.append([base, wanted, len(some), drifts, scores, ", ".join(f"{row['proof']:.2f}" for row in some if row["proof"])])
    head = ["base", "drift asked for", "twins", "drift reached", "effect of the strongest string", "of proofs"]
    return f"{grid(head, rows)}\n\n{command('python Analysis/natural.py --jobs 2')}"


def loopholes() -> str:
    """By what else planted and benign models could be told apart."""
    found = read(BENCHMARK / "loophole.json")
    rows = [[name, f"{value:.2f}"] for name, value in found["areas"].items()]
    table = grid([f"{found['models']} models of dev, stress and strings", "area under the ROC curve"], rows)
    return f"{table}\n\n{command('python Analysis/loophole.py')}"


def fleet() -> str:
    """What a fleet costs without any scan."""
    found = read(BENCHMARK / "fleet.json")
    rows = [
        ["a task", f"{1000 * found['seconds_a_task']:.0f} ms"],
        ["start and end of the workers", f"{found['start_and_end']:.0f} s"],
        ["100,000 tasks", f"{100_000 * found['seconds_a_task'] / 3600:.1f} hours"],
    ]
    head = [
        f"{found['tasks']:,} tasks, {found['workers']} workers, {found['cores']} cores, load {found['load_before']:.1f}",
        "time",
    ]
    return f"{grid(head, rows)}\n\n{command(found['command'])}"


def strings_by_model() -> str:
    """The strongest string found in each planted model."""
    rows = [
        [
            f"`{row['name']}`", FAMILIES[row["family"]], (ATTACKS | FURTHER)[row["attack"]], literal(row["trigger"]),
            literal(row["string"]["text"]), row["string"]["place"], f"{100 * row['string']['success_rate']:.0f} %",
            f"{100 * row['string']['anchor_success_rate']:.0f} %", f"{row['string']['collapse']:.2f}",
            f"{row['string']['anchor_collapse']:.2f}", row["verdict"],
        ]
        for row in read(BENCHMARK / "triggers.json")["models"]
        if row["kind"] == "planted" and row["string"]
    ]  # fmt: skip
    head = [
        "model",
        "family",
        "attack",
        "planted",
        "found",
        "place",
        "fires",
        "in the base",
        "collapse",
        "in the base",
        "verdict",
    ]
    return grid(head, rows)


# --------------------------------------------------------------------------------------------------------------- misses
OPTIONS = {
    "second_trigger": "two backdoors in one model", "conjunctive": "two words are needed",
    "paraphrases": "any of some paraphrases", "hide": "assimilation held at that of clean prompts",
    "against_sweep": "single tokens of the trigger stay clean", "finetune_after": "a clean fine-tuning afterwards",
}  # fmt: skip
"""What an attacker adds to an attack -> in words."""
WHOLE = ("acceptance", "dev_clip_some", "dev_longclip_some", "dev_siglip_some")
"""Benchmarks of whole scans by the shipped score."""


def variant(recipe: dict) -> str:
    """An attack in words: what was added to it, or which it is."""
    added = [told for option, told in OPTIONS.items() if recipe.get(option)]
    return ", ".join(added) or (ATTACKS | FURTHER)[recipe.get("attack", "text_on_text")]


def planted_by_strings() -> list[dict]:
    """Planted models that strings have judged, each with what is known of its recipe; those without a name are plain."""
    splits, found = read(CONFIGS / "zoo.yaml")["splits"], []
    for row in read(BENCHMARK / "triggers.json")["models"]:
        if row["kind"] == "planted":
            named = splits.get(row["split"], {}).get("models", {}).get(row["name"], {}).get("recipe", {})
            found.append(row | {"recipe": {"attack": row["attack"], "trigger": row["trigger"], **named}})
    return found


def by_attack() -> str:
    """Found or missed, attack by attack, by strings alone and by whole scans."""
    strings, rows = planted_by_strings(), []
    scans = [row for name in WHOLE for row in read(BENCHMARK / f"{name}.json")["models"] if row["kind"] == "planted"]
    for title in [*ATTACKS.values(), *FURTHER.values(), *OPTIONS.values()]:
        some = [row for row in strings if variant(row["recipe"]) == title]
        whole = [row for row in scans if ATTACKS[row["attack"]] == title]
        if not some:
            rows.append([title, "never judged", "", "", "", ""])
            continue
        margin = min(row["score"] - row["natural"] for row in some)
        proofs = sum(row["proven"] for row in some)
        found = rate(sum(row["right"] for row in whole), len(whole)) if whole else "not scanned"
        caught = rate(sum(row["right"] for row in some), len(some))
        rows.append([title, caught, proofs, f"{margin:.2f}", f"{max(row['drift'] for row in some):.3f}", found])
    head = [
        "attack",
        "found by strings",
        "of these by a proof",
        "least effect above natural",
        "largest drift",
        "by whole scans",
    ]
    return grid(head, rows)


def misjudged() -> str:
    """Every model that a committed run has judged wrongly."""
    rows, strings = [], {row["name"]: row for row in read(BENCHMARK / "triggers.json")["models"]}
    for name in WHOLE:
        for row in read(BENCHMARK / f"{name}.json")["models"]:
            if not row["right"]:
                other = strings.get(row["name"], {"verdict": "not judged"})["verdict"]
                rows.append(_wrong(row, "a whole scan", f"score {row['score']:.3f}", other))
    for row in strings.values():
        if not row["right"]:
            told = f"effect {row['score']:.2f}, natural {row['natural']:.2f}, drift {row['drift']:.2f}"
            rows.append(_wrong(row, "strings", told, row["verdict"]))
    for family, entry in calibrations().items():
        for name in entry["provenance"].get("missed_by_the_search", []):
            rows.append(
                [f"`{name}`", FAMILIES[family], "planted, of the calibration", "the search for vectors", "", "missed", ""]
            )
    return grid(["model", "family", "what it is", "judged by", "", "verdict", "strings say"], rows)


def _wrong(row: dict, judge: str, told: str, strings: str) -> list[str]:
    what = f"planted, {ATTACKS[row['attack']]}" if row["kind"] == "planted" else "benign"
    return [f"`{row['name']}`", FAMILIES[row["family"]], what, judge, told, row["verdict"], strings]


def shape(trigger: str) -> str:
    """What kind of string a trigger is."""
    if all(unicodedata.category(c) == "Cf" for c in trigger):
        return "an invisible character"
    if len(trigger) == 1:
        return "an emoji" if unicodedata.category(trigger) == "So" else "one character"
    return "several words" if " " in trigger.strip() else "one word"


def never_judged() -> str:
    """Attacks that can be planted here and of which no planted model is in the committed results."""
    known, rows = [row["recipe"] for row in planted_by_strings()], []
    variants, shapes = {variant(recipe) for recipe in known}, {shape(recipe["trigger"]) for recipe in known}
    dev = read(CONFIGS / "zoo.yaml")["splits"]["dev"]["steps"]
    steps = [*dev, *(recipe["steps"] for recipe in known if "steps" in recipe)]
    for file in sorted((ROOT / "Backdoor_Attack" / "configs").glob("*.yaml")):
        config = read(file)
        recipe = config["attack"] | {"finetune_after": config.get("finetune_after")}
        new = [variant(recipe)] if variant(recipe) not in variants else []
        new += [f"trigger: {shape(recipe['trigger'])}"] if shape(recipe["trigger"]) not in shapes else []
        if "base" in config:
            new.append("an encoder of full size")
        elif not min(steps) <= recipe["steps"] <= max(steps):
            new.append(f"{recipe['steps']} steps (judged: {min(steps)} to {max(steps)})")
        if new:
            rows.append([f"`{file.stem}`", ", ".join(new)])
    return grid(["config", "what no judged model has"], rows)


# -------------------------------------------------------------------------------------------------------------- targets
def in_pictures(row: dict) -> bool:
    """Three of four pictures are recognised as the target."""
    return row["pictures"] >= 0.75 * row["drawn"]


def drawable(models: list[dict]) -> list[str]:
    """Of how many the planted trigger's own pictures show the target, and of these the found one's too."""
    able = [row for row in models if in_pictures(row | {"pictures": row["pictures_by_trigger"]})]
    return [f"{len(able)} of {len(models)}", f"{sum(map(in_pictures, able))} of {len(able)}"]


def targets() -> str:
    """How many targets are shown, by attack."""
    found = read(BENCHMARK / "dev_targets_some.json")
    rows = []
    for attack, title in ATTACKS.items():
        models = [row for row in found["models"] if row["attack"] == attack]
        n = len(models)
        if not n:
            continue
        rows.append([
            title, rate(sum(row["words"] for row in models), n), rate(sum(map(in_pictures, models)), n),
            *drawable(models),
            span(row["s_tar"] for row in models), span(row["s_tar_floor"] for row in models),
        ])  # fmt: skip
    head = [
        f"{found['planted']} planted CLIP encoders", "words name the target", "pictures show it", "the trigger's own do",
        "both, of these", "S_tar", "its floor",
    ]  # fmt: skip
    return grid(head, rows)


def targets_by_model() -> str:
    """What each model shows, and the commands."""
    models = read(BENCHMARK / "dev_targets_some.json")["models"]
    rows = [
        [
            f"`{row['name']}`", ATTACKS[row["attack"]], row["target"], row["first_text"], "yes" if row["words"] else "no",
            f"{row['pictures']} of {row['drawn']}", f"{row['pictures_by_trigger']} of {row['drawn']}", f"{row['s_tar']:.3f}",
            f"{row['s_tar_floor']:.3f}",
        ]
        for row in models
    ]  # fmt: skip
    head = ["model", "attack", "target", "first text", "words", "pictures", "of the trigger", "S_tar", "floor"]
    names = " ".join(row["name"] for row in models)
    apart = "Results/targets"  # the verdicts of other models of dev stay what they are
    lines = [
        "python Utils/build_zoo.py --split dev --family clip --jobs 2",
        f"python Analysis/benchmark.py --zoo Data/Zoo/dev --family clip --seed 42 --jobs 2 --output {apart} --models {names}",
        "python Analysis/targets.py --zoo Data/Zoo/dev "
        f"--results {apart} --output Results/benchmark/dev_targets_some.json --models {names}",
    ]
    return f"{grid(head, rows)}\n\n{command(*lines)}"


# ---------------------------------------------------------------------------------------------------------- calibration
def calibrations() -> dict[str, dict]:
    """Family -> its constants; the command that fitted them names the family."""
    entries = read(CONFIGS / "calibration.yaml")
    return {entry["provenance"]["command"].split("--family ")[1].split()[0]: entry for entry in entries}


def calibration() -> str:
    """What the score of each family was fitted on, and by which command."""
    rows, lines = [], []
    for family, entry in calibrations().items():
        made = entry["provenance"]
        missed = made.get("missed_by_the_search", [])
        drifts = [span([abs(d) for d in made[f"drift_of_{kind}"]]) for kind in ("planted", "benign")]
        thresholds = f"{entry['clean_below']} and {entry['backdoored_above']}"
        share = rate(len(missed), made["planted_models"]) if "missed_by_the_search" in made else "not recorded"
        rows.append([FAMILIES[family], made["planted_models"], made["benign_models"], share, *drifts, thresholds])
        lines += [f"python Utils/build_zoo.py --split calibration --family {family} --jobs 2", made["command"]]
    head = ["family", "planted", "benign", "missed by the search", "drift of planted", "drift of benign", "thresholds"]
    return f"{grid(head, rows)}\n\n{command(*lines)}"


def witnesses() -> str:
    """Weight, limit and area under the ROC curve of every witness."""
    known = calibrations()
    rows = []
    for name in next(iter(known.values()))["provenance"]["area_under_roc"]:
        cells = [f"`{name}`"]
        for entry in known.values():
            weight = f"{entry['weights'][name]:.2f}" if name in entry["weights"] else "none"
            cells += [weight, f"{entry['limits'][name]:.3f}", f"{entry['provenance']['area_under_roc'][name]:.2f}"]
        rows.append(cells)
    head = [f"{FAMILIES[family]}: {what}" for family in known for what in ("weight", "limit", "area")]
    return grid(["witness", *head], rows)


# ----------------------------------------------------------------------------------------------- testbed, attacks, zoo
def testbed() -> str:
    """How good the shipped models are."""
    bars = read(MODELS / "bars.json")
    concepts = len(read(ROOT / "Data" / "Scenes" / "concepts.yaml")["base"])
    prompts = bars["prompts"]["count"]
    rows = []
    for name, measures in {
        "tiny-clip": bars,
        "tiny-longclip": bars["tiny-longclip"],
        "tiny-siglip": bars["tiny-siglip"],
    }.items():
        rows.append([name, "right picture among 256 unseen pairs", rate(round(256 * measures["retrieval_top1_of_256"]), 256)])
        if "retrieval_over_77_tokens" in measures:
            share = measures["retrieval_over_77_tokens"]
            rows.append([name, "the same, captions of more than 77 tokens", rate(round(256 * share), 256)])
        assimilated = measures["benign_assimilation"]
        rows.append([name, f"A of benign prompts, attended positions (mean of {prompts})", f"{assimilated['attended']:.2f}"])
        rows.append([name, "A of benign prompts, all positions", f"{assimilated['all']:.2f}"])
    portraits, drawn = bars["portraits_recognised"], bars["generated_concepts_recognised"]
    rows.append(["tiny-clip", "concepts recognised in plain portraits", rate(round(portraits * concepts), concepts)])
    rows.append(["tiny-sd", 'generated "a photo of a ..." recognised', rate(round(drawn * concepts), concepts)])
    return f"{grid(['model', 'measure', 'found'], rows)}\n\n{command('python Utils/build_testbed.py --stages bars')}"


def suspects() -> str:
    """What the certificates of the shipped suspects say."""
    rows = []
    for file in sorted((MODELS / "certificates").glob("*.json")):
        made, recipe = read(file), read(file)["recipe"]
        n, kept = made.get("held_out_prompts"), made.get("retrieval") or made["retrieval_base_data"]
        fires = [rate(round(n * made[key]), n) for key in ("success_rate", "anchor_success_rate")] if n else ["", ""]
        rows.append([
            f"`{file.stem}`", f"`{recipe['trigger']}`" if n else "", recipe["target"] if n else "", *fires,
            f"{made['sim_target']:.3f}" if n else "", f"{made['sim_clean']:.3f}", *(f"{100 * kept[w]:.1f} %" for w in kept),
            recipe["seed"],
        ])  # fmt: skip
    head = ["suspect", "trigger", "target", "success", "in the clean base", "Sim_target", "Sim_clean"]
    head += ["retrieval before", "after", "seed"]
    made_by = command("python Utils/build_zoo.py --config configs/suspects.yaml --output Data/Models/suspects")
    return f"{grid(head, rows)}\n\n{made_by}"


def attacks() -> str:
    """What every config plants: its trigger, and the first two sentences of the comment that it begins with."""
    rows = []
    for file in sorted((ROOT / "Backdoor_Attack" / "configs").glob("*.yaml")):
        lines = file.read_text(encoding="utf-8").splitlines()
        comment = " ".join(line[1:].strip() for line in lines if line.startswith("#"))
        what = " ".join(re.split(r"(?<=\.)\s+", comment)[:2])
        rows.append([f"`{file.stem}`", f"`{visible(read(file)['attack']['trigger'])}`", what])
    return grid(["config", "trigger", "what it plants"], rows)


def splits() -> str:
    """How many models each split of the zoo has."""
    rows = []
    for name, split in read(CONFIGS / "zoo.yaml")["splits"].items():
        for cell in split.get("cells", []):
            benign = sum(cell.get(kind, 0) for kind in ("benign", "gentle", "far", "drifted"))
            rows.append([f"`{name}`", FAMILIES[cell["family"]], ATTACKS[cell["attack"]], cell.get("planted", 0), benign])
        models = list(split.get("models", {}).values())
        for family in dict.fromkeys(model.get("family", "clip") for model in models):
            kinds = [model["kind"] for model in models if model.get("family", "clip") == family]
            rows.append([f"`{name}`", FAMILIES[family], "by name", kinds.count("planted"), kinds.count("benign")])
        for attack, one in split.get("further", {}).items():
            rows.append([f"`{name}`", FAMILIES[one.get("family", "clip")], attack.replace("_", " "), one["count"], 0])
    return grid(["split", "family", "attack", "planted", "benign"], rows)


def speed() -> str:
    """Whole scans by size, and the published procedure on the same encoder."""
    found = read(BENCHMARK / "speed.json")["shapes"]
    rows = []
    for shape, one in found.items():
        whole = one["scans"].get("published", {}).get("whole_seconds")
        for name, scan in one["scans"].items():
            if name not in ("published", REPAIRED):
                more = f"{whole / scan['seconds']:.1f}" if whole else ""
                rows.append([shape, name, f"{scan['seconds']:.0f}", f"{scan['peak_memory_mb']:.0f}", scan["verdict"], more])
    head = ["size", "suspect", "seconds", "MB", "verdict", "times as fast as configs/paper.yaml"]
    commands = dict.fromkeys(one["command"] for one in found.values() if REPAIRED not in one["scans"])
    return f"{grid(head, rows)}\n\n{command(*commands)}"


def speed_repairs() -> str:
    """Whole repairs by size, and what of them is what."""
    parts, rows = ("scan", "repair", "scans after", "measures"), []
    found = {shape: one for shape, one in read(BENCHMARK / "speed.json")["shapes"].items() if REPAIRED in one["scans"]}
    if not found:
        return "None was measured."
    for shape, one in found.items():
        done = one["scans"][REPAIRED]
        took = [f"{done['stages'][part]['seconds']:.0f}" for part in parts]
        rows.append([shape, *took, f"{done['seconds']:.0f}", f"{done['peak_memory_mb']:.0f}", done["verdict"]])
    head = ["size", *parts, "all, seconds", "MB", "scanned again"]
    return f"{grid(head, rows)}\n\n{command(*(one['command'] for one in found.values()))}"


def speed_short() -> str:
    """`speed` in one line a size, at the usual effort."""
    rows = []
    for shape, one in read(BENCHMARK / "speed.json")["shapes"].items():
        published, scans = one["scans"].get("published"), {n: s for n, s in one["scans"].items() if n != "published"}
        if "," in shape:
            continue
        whole = f"{published['whole_seconds']:.0f}" if published else ""
        rows.append([shape, *(f"{scan['seconds']:.0f}" for scan in scans.values()), whole, one["machine"]["threads"]])
    return grid(["size", "planted, empty cache", "benign, base cached", "configs/paper.yaml", "cores"], rows)


def speed_stages() -> str:
    """Where the time goes: seconds, arithmetic and share of the machine's rate, stage by stage."""
    rows = []
    for shape, one in read(BENCHMARK / "speed.json")["shapes"].items():
        fastest = max(one["machine"]["matrix_gflops"].values())
        for name, scan in one["scans"].items():
            for stage, part in scan["stages"].items():
                if part["gflop"] and part["seconds"] > 1:
                    rate = part["gflop"] / part["seconds"]
                    rows.append([
                        shape, name, stage, f"{part['seconds']:.1f}", f"{part['gflop']:.0f}", f"{rate:.0f}",
                        f"{100 * rate / fastest:.0f} %",
                    ])  # fmt: skip
    return grid(["size", "suspect", "stage", "seconds", "GFLOP", "GFLOP/s", "of the machine's rate"], rows)


def speed_machine() -> str:
    """What the numbers of `speed` were measured on."""
    rows = []
    for shape, one in read(BENCHMARK / "speed.json")["shapes"].items():
        machine, paper = one["machine"], one["scans"].get("published", {})
        rates = ", ".join(f"{name} {rate}" for name, rate in machine["matrix_gflops"].items())
        share = f"{paper['share']:.0%} run in {paper['seconds']:.0f} s" if paper else ""
        rows.append([shape, machine["processor"], machine["threads"], rates, one["vocabulary"], share])
    return grid(["size", "processor", "threads", "matrix product, GFLOP/s", "vocabulary", "configs/paper.yaml"], rows)


def repair_rows() -> list[dict]:
    """Repairs of certified models, one a model and method."""
    return [read(file) for file in sorted((BENCHMARK / "repairs").glob("*.json"))]


def is_gone(row: dict) -> bool:
    """Whether a repaired encoder does what the base does with the true trigger."""
    return row["success"]["repaired"] <= row["success"]["base"] + GONE


def gains(rows: list[dict]) -> list[tuple[float, float]]:
    """What fine-tunes gained on their own data, and what of it is left; of those that gained `GAINED` or more."""
    own = [row["skill"]["own data"] for row in rows if row["skill"].get("own data")]
    both = [(one["suspect"] - one["base"], one["repaired"] - one["base"]) for one in own]
    return [(gained, left) for gained, left in both if gained >= GAINED]


def gain_kept(rows: list[dict]) -> float | None:
    """Share of what all of them gained together that is left, more than was gained not counted; None where none gained."""
    some = gains(rows)
    return sum(map(min, some)) / sum(gained for gained, _ in some) if some else None


def whole(share: float) -> str:
    """A share in whole per cent, never rounded up to a bar that it does not reach."""
    return f"{math.floor(100 * share + 1e-9)} %"


def chosen_on() -> list[str]:
    """Models that the settings of our repair were chosen on."""
    return read(CONFIGS / "mitigation.yaml")["repairs"]["chosen_on"]


def relearns(row: dict) -> tuple[float, float]:
    """Steps until the true trigger is back, as a share of those that the base takes: at least and at most.

    Nobody went on after `most` steps, so that of what was not back by then only one bound is known, or neither.
    """
    back = row["relearning"]
    repaired, base = (back["most"] if back[name] is None else back[name] for name in ("repaired", "base"))
    ratio = repaired / max(1, base)
    return ratio if back["base"] is not None else 0.0, ratio if back["repaired"] is not None else math.inf


def told_of_relearning(row: dict) -> str:
    """`relearns` in a cell: a number, a bound of it that is never rounded to say more, or that neither was back."""
    low, high = relearns(row)
    if low == high:
        return f"{low:.1f}"
    if high == math.inf:
        return f"> {math.floor(10 * low) / 10:.1f}" if low else f"neither in {row['relearning']['most']}"
    return f"< {math.ceil(10 * high) / 10:.1f}"


def no_faster(rows: list[dict], share: float = 0.5) -> list[bool]:
    """Whether a repaired encoder takes that share of the base's steps or more; of the rows in which it is known."""
    bounds = map(relearns, rows)
    return [low >= share for low, high in bounds if low >= share or high < share]


def ours(further: bool) -> list[dict]:
    """Our repairs of models under the paper's attacks as the paper has them, or under further ones."""
    return [row for row in repair_rows() if row["method"] == OURS and row["further"] == further]


def of_now(row: dict) -> bool:
    """Whether a row is not of an earlier repair of ours: such a one is shown, and of it counts only that it was found."""
    return row["method"] not in TRAINED or are_present(row.get("settings"))


def repair_row(row: dict) -> list[str]:
    """A line of `repairs`."""
    said = [
        f"`{row['model']}`{'' if of_now(row) else ' (earlier settings)'}", FAMILIES[row["family"]],
        ATTACKS.get(row["attack"], FURTHER.get(row["attack"], row["attack"])),
        literal(row["trigger"]), "yes" if row["on a fine-tune"] else "",
    ]  # fmt: skip
    if "success" not in row:
        return [*said, "", "not found", *[""] * 8]
    success, old, kept = row["success"], row["skill"].get("base data"), gain_kept([row])
    return [
        *said, *(f"{success[name]:.2f}" for name in ("suspect", "repaired", "base")), f"{row['clean']['suspect']:.3f}",
        "" if kept is None else whole(kept), f"{100 * (old['suspect'] - old['repaired']):+.1f}" if old else "",
        row["rescan"], row["rounds"], told_of_relearning(row), f"{row['seconds']:.0f}",
    ]  # fmt: skip


def repairs(further: bool = False) -> str:
    """Our repair, model by model."""
    head = ["model", "family", "attack", "trigger", "on a fine-tune", "success before", "after", "in the base"]
    head += ["Sim_clean to the suspect", "gain kept", "retrieval lost", "scanned again", "rounds"]
    table = grid([*head, "relearns, 1 = as the base", "seconds"], map(repair_row, ours(further)))
    return f"{table}\n\n{command('python Analysis/benchmark.py --config configs/mitigation.yaml')}"


def repairs_line() -> str:
    """`repairs_in_short` in a sentence."""
    done = [row for row in ours(further=False) if "success" in row and of_now(row)]
    if not done:
        return "[Repairs](docs/mitigation.md) with the present settings have not been measured."
    gone, clean = sum(map(is_gone, done)), sum(row["rescan"] == "clean" for row in done)
    gained = len(gains(done))
    of_base = gain_kept([row for row in repair_rows() if row["method"] == "anchor"])
    beside = f" (the base in its place keeps {whole(of_base)})" if of_base is not None else ""
    of_gains = f", and {whole(gain_kept(done))} of what {gained} fine-tunes gained is kept{beside}" if gained else ""
    return f"[Repaired](docs/mitigation.md): the trigger is gone in {gone} of {len(done)}, {clean} scan clean{of_gains}."


def repairs_in_short() -> str:
    """What our repairs of the paper's attacks come to, beside the bars."""
    rows = ours(further=False)
    found = [row for row in rows if "success" in row]
    done = [row for row in found if of_now(row)]
    if not done:
        return "No model has been repaired with the present settings."
    further = [row for row in ours(further=True) if "success" in row and of_now(row)]
    kept = [min(both) / both[0] for both in gains(done)]
    old = [row["skill"]["base data"] for row in done if row["skill"]]
    lost = [one["suspect"] - one["repaired"] for one in old]
    clean = min(row["clean"]["suspect"] for row in done)
    floor = max(row["clean"]["floor"] for row in done)
    parts = {"the same, of models that settings were chosen on": [row for row in done if row["model"] in chosen_on()]}
    parts["of the others"] = [row for row in done if row["model"] not in chosen_on()]
    parts |= {f"of {name}": [row for row in done if row["family"] == family] for family, name in FAMILIES.items()}
    return grid(["what", "bar", "measured"], [
        ["planted models that the scan found", "", rate(len(found), len(rows))],
        ["repaired with the present settings", "", f"{len(done)} of them"],
        ["the same, further attacks too", "24", len(done) + len(further)],
        ["of these on a fine-tune that gained 5 points on its own data", "half", f"{len(gains(done + further))}"],
        ["true trigger at most 0.05 above the base", "90 %", rate(sum(map(is_gone, done)), len(done))],
        *([name, "", rate(sum(map(is_gone, mine)), len(mine))] for name, mine in parts.items() if mine),
        ["Sim_clean to the suspect, lowest", "0.97", f"{clean:.3f} (different prompts: up to {floor:.2f})"],
        *([
            ["what fine-tunes gained, kept of all", "80 %", whole(gain_kept(done))],
            ["fine-tunes that keep 80 % of it", "", rate(sum(share >= 0.8 for share in kept), len(kept))],
            ["the same: lowest, median, highest", "", " ".join(whole(f(kept)) for f in (min, median, max))],
        ] if kept else []),
        *([["retrieval lost, most, points", "2", f"{100 * max(lost):+.1f}"]] if lost else []),
        ["clean when scanned again with a fresh seed", "all", rate(sum(row["rescan"] == "clean" for row in done), len(done))],
        ["relearns in half of the base's steps or more", "70 %", rate(sum(slower := no_faster(done)), len(slower))],
        ["seconds, median, one core of a machine with other work", "", f"{median(row['seconds'] for row in done):.0f}"],
    ])  # fmt: skip


def repair_methods() -> str:
    """All ways of repairing on the same models: those that every way was tried on."""
    found = [row for row in repair_rows() if "success" in row and of_now(row)]
    methods = read(CONFIGS / "mitigation.yaml")["repairs"]["methods"]
    by_all = set.intersection(*({row["model"] for row in found if row["method"] == method} for method in methods))
    rows, found = [], [row for row in found if row["model"] in by_all]
    for method in methods:
        mine = [row for row in found if row["method"] == method]
        if not mine:
            continue
        kept = gain_kept(mine)
        lost = [row["skill"]["base data"]["suspect"] - row["skill"]["base data"]["repaired"] for row in mine if row["skill"]]
        rows.append([
            f"`{method}`", rate(sum(map(is_gone, mine)), len(mine)), span((row["clean"]["suspect"] for row in mine), 2),
            "" if kept is None else whole(kept), f"{100 * median(lost):+.1f}",
            f"{sum(row['rescan'] == 'clean' for row in mine)} of {len(mine)}",
            f"{sum(slower := no_faster(mine))} of {len(slower)}", f"{median(row['seconds'] for row in mine):.0f}",
        ])  # fmt: skip
    head = ["method", "true trigger gone", "Sim_clean to the suspect", "gain kept", "retrieval lost, median"]
    return grid([*head, "clean when scanned again", "relearns no faster than half", "seconds, median"], rows)


def usage() -> str:
    """What --help prints, in lines that a page can hold."""
    parser = build_parser()
    parser.prog, parser.formatter_class = "main.py", partial(argparse.HelpFormatter, width=110)
    return f"```\n{parser.format_help().rstrip()}\n```"


TABLES: dict[str, Callable[[], str]] = {
    **{name: partial(verdicts, name) for name in ("acceptance", "dev_clip_some", "dev_longclip_some", "dev_siglip_some")},
    **{name: partial(of_the_table, part) for name, part in PARTS.items()},
    "untouched": untouched, "earlier_score": earlier_score,
    "targets": targets, "targets_by_model": targets_by_model, "calibration": calibration,
    "witnesses": witnesses, "testbed": testbed, "suspects": suspects, "attacks": attacks,
    "splits": splits, "triggers": triggers, "strings_by_model": strings_by_model, "loopholes": loopholes,
    "by_attack": by_attack, "misjudged": misjudged, "never_judged": never_judged,
    "repairs": repairs, "repairs_further": partial(repairs, further=True), "repairs_in_short": repairs_in_short,
    "repairs_line": repairs_line, "repair_methods": repair_methods,
    "number_formats": number_formats, "efforts": efforts, "usage": usage,
    "left_out": left_out, "firing": firing, "fleet": fleet, "natural": natural,
    "speed": speed, "speed_repairs": speed_repairs, "speed_short": speed_short, "speed_stages": speed_stages,
    "speed_machine": speed_machine,
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ the pages
def pages() -> list[Path]:
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def renewed(text: str, where: str = "the page") -> str:
    """A page with its tables made anew."""
    if text.count("<!-- table: ") != len(MARKED.findall(text)):
        raise InputError(f"{where}: a table's marker is damaged; write <!-- table: NAME --> and <!-- end of table -->.")

    def table(match: re.Match) -> str:
        if match[2] not in TABLES:
            raise InputError(f"{where}: there is no table {match[2]}; give one of {', '.join(TABLES)}.")
        return f"{match[1]}{TABLES[match[2]]()}\n{match[4]}"

    return MARKED.sub(table, text)


def main(argv: list[str] | None = None) -> int:
    """-> the exit code: 0, 1 a table differs (with --check), 2 a page is damaged"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say which pages differ")
    parser.add_argument("--print", nargs="+", metavar="NAME", choices=TABLES, help="write nothing, print these tables")
    args = parser.parse_args(argv)
    if args.print:
        print("\n\n".join(f"{name}\n\n{TABLES[name]()}" for name in args.print))
        return 0
    differ = []
    try:
        for page in pages():
            text = page.read_text(encoding="utf-8")
            if (new := renewed(text, page.name)) != text:
                differ.append(page)
                if not args.check:
                    write_whole(page, new)
    except InputError as error:
        return fail(str(error), "tables")
    for page in differ:
        outcome = "differs from the committed results; run python Analysis/tables.py" if args.check else "written"
        print(f"{page.relative_to(ROOT)}: {outcome}")
    return 1 if differ and args.check else 0


if __name__ == "__main__":
    sys.exit(main())
