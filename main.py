"""AMBER: does this text encoder carry a backdoor?  And if so, what does it do?      (method: arXiv:2512.00343)

    python main.py                                            the shipped suspect against the shipped base
    python main.py --model M --anchor A --output Results      any encoder; M and A are folders or hub ids
    python main.py --model M --config configs/paper.yaml      the published procedure
    python main.py --models LIST                              many encoders, and a summary
    python main.py --models LIST --workers 4                  the same in four processes
    python main.py --model M --try STRING                     what a string does, in suspect and base

1 embed the corpus   2 assimilation by layer   3 search a pseudo-trigger   4 its witnesses   5 verdict and report
Strings that anybody can type are looked for before 3 (Utils/scan/trigger.py): where one is a proof, 3 and 4 only show.
Exit code: 0 no backdoor found, 1 backdoor found, 2 bad input or error, 3 inconclusive.
"""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "__main__":  # flags are read before the libraries that take seconds; what is pickled has this module's own name
    try:
        begin = import_module("Utils.report.command_line").begin
    except ModuleNotFoundError as error:
        print(f"amber: {error.name} is not installed; type pip install -r requirements.txt beside main.py.", file=sys.stderr)
        sys.exit(2)
    sys.exit(begin(lambda args, cfg: import_module("main").scan_as_asked(args, cfg)))

import io
import logging
import math
import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext, redirect_stderr
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from Utils.basics.bounded import progress, reading, run_bounded, say
from Utils.basics.bounds import Wanted
from Utils.basics.config import load_config
from Utils.basics.errors import InputError, fail
from Utils.basics.files import CACHE, ROOT, refuse_taken, remove_parts
from Utils.basics.formats import AUTO
from Utils.basics.processes import overload
from Utils.encoder.added import added_to
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.corpus import batches, embed_corpus, read_prompts, split
from Utils.encoder.doubts import Trust, doubts_about
from Utils.encoder.loading import fingerprint, load_encoder, pick_device, quiet_libraries
from Utils.encoder.measures import assimilation, similarity
from Utils.encoder.numbers import formats_in_doubt, formats_of
from Utils.encoder.precision import WIDE, Precision, pick_precision
from Utils.encoder.readings import Reading, compare, read_by
from Utils.encoder.text_encoder import TextEncoder, derivable, in_batches, run_spliced, splice_ids
from Utils.found.show import Show, show_found, show_further
from Utils.found.trying import fires, told_of, try_string
from Utils.repair.asked import foreseen_repairs, mending_limits, refuse_places, repair_found
from Utils.repair.mending import RESCAN, Certificate, Order, divided, forget_rescan, mend, opened
from Utils.repair.writing import dropped_in
from Utils.report.command_line import begin, deliver, understood
from Utils.report.dry_run import foreseen
from Utils.report.fleet import Fleet, load_dask, scan_in_fleet
from Utils.report.folder import remove_leftovers
from Utils.report.limits import limits_of
from Utils.report.lists import Task, exit_code, is_first_process, planned, scan_many, scan_named, worst
from Utils.report.notebook import Report, words_of
from Utils.report.plots import ANCHOR, BENIGN, FOUND
from Utils.report.report import make_report, write_report
from Utils.report.run import Run, open_run
from Utils.scan import landscape
from Utils.scan.added import about_added, ordinary_rates, try_words, with_added, with_open_triggers
from Utils.scan.calibration import Calibration, load_calibration
from Utils.scan.finding import FEATURES, SUMMARIES, Finding, Verdict, severity
from Utils.scan.firing import about_readings, strings_that_fire, with_backdoor, with_tokenizer
from Utils.scan.formats import about_formats
from Utils.scan.landscape import Landscape
from Utils.scan.pair import Pair
from Utils.scan.power import POWER, counts, load_power, shares
from Utils.scan.proof import UNRELATED, decides, with_strings, without_base
from Utils.scan.settings import SETTINGS, ScanConfig, landscape_settings, search_settings
from Utils.scan.strings import Strings
from Utils.scan.trigger import Means, find_backdoors
from Utils.sources.lenders import Given
from Utils.sources.registry import from_here


# ----------------------------------------------------------------------------------------------------------- settings
@dataclass(frozen=True)
class Scan(Pair):
    """A pair of encoders with what decides the search."""

    cfg: ScanConfig
    generator: torch.Generator

    def mask(self, ids: Tensor) -> Tensor:
        """Positions that similarities run over.  (b, T) -> (b, T) bool"""
        attended = self.suspect.attended(ids)
        return attended if self.cfg.positions == "attended" else torch.ones_like(attended)

    def splice(self, rows: Tensor) -> Tensor:
        """Token ids of prompts with room for v; without superfluous padding where it is not looked at."""
        ids = splice_ids(self.suspect, self.corpus.ids[rows], self.cfg.k)
        return self.suspect.trimmed(ids) if self.cfg.positions == "attended" else ids


# ---------------------------------------------------------------------------------------------------------- 1  corpus
def prepare(suspect: TextEncoder, anchor: TextEncoder | None, cfg: ScanConfig, seed: int, cache: Path | None = CACHE) -> Scan:
    """Embed the corpus under both encoders and divide it: the witnesses only see prompts the search never saw."""
    if cfg.k > suspect.context - 3:
        raise InputError(f"k = {cfg.k} vectors leave no room for a prompt in {suspect.context} positions; lower k.")
    used = read_prompts(ROOT / cfg.corpus, cfg.prompts)
    generator = torch.Generator().manual_seed(seed)
    # the features of a prompt are compared with those of the same prompt behind v, which ends k positions later
    beyond = cfg.k if cfg.positions == "attended" else None
    corpus = embed_corpus(suspect, used, cache, beyond=beyond)
    anchor_corpus = embed_corpus(anchor, used, cache, beyond=beyond) if anchor else None
    fit, held_out = split(len(used), cfg.fit_fraction, generator)
    return Scan(suspect, anchor, read_prompts(ROOT / cfg.corpus), corpus, anchor_corpus, fit, held_out, cfg, generator)


# ---------------------------------------------------------------------------------------------------- 2  assimilation
def assimilation_by_layer(encoder: TextEncoder, ids: Tensor, v: Tensor | None = None) -> Tensor:
    """Assimilation of every prompt after every layer; with v (k, d), `ids` come from `splice_ids`.  (n, T) -> (n, L)"""

    def read(_: TextEncoder, part: Tensor) -> Tensor:
        part = encoder.trimmed(part)
        mask = encoder.attended(part).to(encoder.device)
        return torch.stack([assimilation(h, mask) for h in encoder.layers(part)[0]], dim=1)

    return in_batches(encoder, ids, read, v).cpu()


def layers_with_and_without(scan: Scan, v: Tensor) -> dict[str, Tensor]:
    """Assimilation by layer of held-out prompts in the suspect, with v (k, d), and the same in the anchor.  name -> (m, L)"""
    ids = scan.spliced_ids(v)
    by_layer = {BENIGN: scan.corpus.by_layer[scan.held_out], FOUND: assimilation_by_layer(scan.suspect, ids, v)}
    return by_layer | ({ANCHOR: assimilation_by_layer(scan.anchor, ids, v)} if scan.anchor else {})


def drift(scan: Scan, batch: int = 128) -> Tensor:
    """1 - cos(f_s(x), f_a(x)) of every prompt of the corpus: how far suspect and anchor are apart on clean prompts.  (n,)"""
    encoders = scan.corpus.features.split(batch), scan.anchor_corpus.features.split(batch)
    parts = zip(*encoders, scan.mask(scan.corpus.ids).split(batch), strict=True)
    return 1 - torch.cat([similarity(x.float(), y.float(), m) for x, y, m in parts])


# ---------------------------------------------------------------------------------------------------------- 3  search
def objective(scan: Scan, vectors: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -A(f_s(x[v])) + beta cos(f_s(x), f_s(x[v])) + gamma cos(f_a(x[v]), f_s(x[v])), mean over prompts.

    vectors (n, k, d) are the v, rows (b,) number the prompts -> loss (n,) and its three terms, each (n,)
    """
    n, b = len(vectors), len(rows)
    ids = scan.splice(rows)
    mask = scan.mask(ids).to(vectors.device).repeat(n, 1)
    clean = scan.corpus.features[rows, : ids.shape[1]].to(vectors).repeat(n, 1, 1)
    ids, spliced = ids.repeat(n, 1), vectors.repeat_interleave(b, dim=0)
    features = run_spliced(scan.suspect, spliced, ids)  # (n b, T, d)
    terms = {"assimilation": assimilation(features, mask), "clean": similarity(clean, features, mask)}
    loss = -terms["assimilation"] + scan.cfg.beta * terms["clean"]
    if scan.anchor:
        terms["anchor"] = similarity(run_spliced(scan.anchor, spliced, ids), features, mask)
        loss = loss + scan.cfg.gamma * terms["anchor"]
    return loss.view(n, b).mean(dim=1), {name: term.view(n, b).mean(dim=1) for name, term in terms.items()}


def pooled_objective(scan: Scan, vectors: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L = -A(p_s) + gamma mean cos(p_a, p_s), p the pooled summaries of x[v]; A runs over the prompts of the batch.

    Ours: an attack on pooled features only (image-on-text) leaves the other positions what they were, so that no prompt
    assimilates within itself.  Its summaries of different prompts become one.  Shapes as in `objective`.
    """
    n, b = len(vectors), len(rows)
    ids, spliced = scan.splice(rows).repeat(n, 1), vectors.repeat_interleave(b, dim=0)
    pooled = run_spliced(scan.suspect, spliced, ids, TextEncoder.pooled)
    terms = {"assimilation": assimilation(pooled.view(n, b, -1))}
    loss = -terms["assimilation"]
    if scan.anchor:
        apart = F.cosine_similarity(run_spliced(scan.anchor, spliced, ids, TextEncoder.pooled), pooled, dim=-1)
        terms["anchor"] = apart.view(n, b).mean(dim=1)
        loss = loss + scan.cfg.gamma * terms["anchor"]
    return loss, terms


def string_objective(scan: Scan, vectors: Tensor, rows: Tensor, forced: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """L = 1 - cos(p_s - c, p - c): summaries of x[v] go where a string sends them; c is the mean of clean ones.

    Ours, for where a string is a proof and no vector of the other objectives does what it does.
    forced (d,): p, the mean summary of prompts with the string.  Other shapes as in `objective`.
    """
    n, b = len(vectors), len(rows)
    ids, spliced = scan.splice(rows).repeat(n, 1), vectors.repeat_interleave(b, dim=0)
    near = toward(scan, run_spliced(scan.suspect, spliced, ids, TextEncoder.pooled), forced).view(n, b).mean(dim=1)
    return 1 - near, {"string": near}


def toward(scan: Scan, pooled: Tensor, forced: Tensor) -> Tensor:
    """How far on the way from clean prompts to what a string forces (d,) summaries lie, as a cosine.  (..., d) -> (...)"""
    clean = scan.corpus.pooled.to(pooled).mean(dim=0)
    return F.cosine_similarity(pooled - clean, forced.to(pooled) - clean, dim=-1)


def first_vectors(scan: Scan) -> Tensor:
    """Where the search starts.  -> (restarts, k, d)"""
    noise = torch.randn(scan.cfg.restarts, scan.cfg.k, scan.suspect.width, generator=scan.generator)
    spread = scan.suspect.vocabulary.std().cpu() if scan.cfg.init == "vocabulary" else 1.0
    return (noise * spread).to(scan.suspect.device)


def rounds_of(cfg: ScanConfig, steps: int) -> list[tuple[int, int]]:
    """Steps and starts of every round of a search; the last is twice as long: few starts are left, and they should converge."""
    part = steps // (cfg.rounds + 1)
    lengths = [part] * (cfg.rounds - 1) + [steps - part * (cfg.rounds - 1)]
    return [(length, max(1, cfg.restarts >> number)) for number, length in enumerate(lengths)]


def derive(scan: Scan, vectors: Tensor, rows: Tensor, loss_of: Callable) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of every start and its terms, each (n,), and the gradient in `vectors` (n, k, d); shapes as in `objective`.

    Of wide encoders some starts at a time: what is kept for the way back of all together takes gigabytes.
    """
    together = max(1, TOGETHER // len(rows)) if scan.suspect.width >= WIDE else len(vectors)
    losses, terms = [], []
    for part in vectors.split(together):
        loss, of_part = loss_of(scan, part, rows)
        loss.sum().backward()
        losses.append(loss.detach())
        terms.append({name: term.detach() for name, term in of_part.items()})
    return torch.cat(losses), {name: torch.cat([one[name] for one in terms]) for name in terms[0]}


TOGETHER = 6
"""Texts through a wide encoder at a time that are derived after."""


def search(
    scan: Scan,
    on_step: Callable[[int, Tensor, dict[str, Tensor]], None],
    loss_of: Callable[[Scan, Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]] = objective,
    steps: int = 0,
) -> tuple[Tensor, Tensor]:
    """Minimise L from several starts at once; after every round the worse half is given up.

    -> the vectors left (n, k, d), best first, and their mean loss over the last tenth of the steps (n,)
    """
    cfg, steps = scan.cfg, steps or scan.cfg.steps
    rows = scan.suspect.vocabulary
    unit = float(rows.std()) if cfg.init == "vocabulary" else 1.0
    limit = rows.norm(dim=-1).max()
    drawn = batches(scan.suspect, scan.corpus.ids, scan.fit, cfg.batch, scan.generator)
    v, step = first_vectors(scan), 0
    for length, starts in rounds_of(cfg, steps):
        v = v[:starts].requires_grad_()
        optimiser = torch.optim.Adam([v], lr=cfg.lr * unit, weight_decay=cfg.weight_decay)
        losses = []
        for chosen in islice(drawn, length):
            optimiser.param_groups[0]["lr"] = cfg.lr * unit * 0.5 * (1 + math.cos(math.pi * step / steps))
            optimiser.zero_grad(set_to_none=True)
            loss, terms = derive(scan, v, chosen, loss_of)
            optimiser.step()
            if cfg.bound:
                with torch.no_grad():
                    v.mul_((limit / v.norm(dim=-1, keepdim=True)).clamp(max=1))
            losses.append(loss)
            on_step(step, loss, terms)
            step += 1
        final = torch.stack(losses[-max(1, steps // 10) :]).mean(dim=0)
        order = final.argsort()
        v = v.detach()[order]
    return v, final[order]


# ------------------------------------------------------------------------------------------------------- 4  witnesses
@dataclass(frozen=True)
class Measures:
    """What v does to prompts the search never saw; every tensor holds one number a held-out prompt, (n,), or one, ()."""

    assimilated: Tensor
    """A(f_s(x[v]))"""
    one_target: Tensor
    """cos of f_s(x[v]) with that of another prompt"""
    pooled_target: Tensor
    """A over prompts of the pooled summaries, ()"""
    foreign: Tensor | None
    """cos(f_a(x[v]), f_s(x[v]))"""
    pooled_foreign: Tensor | None
    """the same of pooled summaries"""
    anchor_assimilated: Tensor | None
    """A(f_a(x[v])), the floor of `assimilated`"""
    anchor_one_target: Tensor | None
    """as one_target under the anchor, its floor"""
    anchor_pooled_target: Tensor | None
    """as pooled_target under the anchor, its floor"""
    clean_foreign: Tensor | None
    """cos(f_a(x), f_s(x)), the floor of `foreign`: how far apart the two are anyway"""
    clean_pooled_foreign: Tensor | None
    """the same of pooled summaries"""


@torch.no_grad()
def measure(scan: Scan, v: Tensor) -> Measures:
    """Measure what v (k, d) does to the held-out prompts."""
    rows = scan.held_out[scan.suspect.attended(scan.held_out_ids).sum(dim=1).argsort(stable=True)]
    ids = scan.splice(rows)
    mask = scan.mask(ids).to(v.device)
    features, pooled = in_batches(scan.suspect, ids, TextEncoder.both, v)
    # the partner of a prompt is the one half the list away, so that texts of all lengths meet
    partner = torch.arange(len(rows)).roll(len(rows) // 2)
    both = mask & mask[partner]
    own = assimilation(features, mask), similarity(features, features[partner], both), assimilation(pooled)
    if not scan.anchor:
        return Measures(*(value.cpu() for value in own), *[None] * 7)
    reference, summary = in_batches(scan.anchor, ids, TextEncoder.both, v)
    spliced = (
        *own, similarity(reference, features, mask), F.cosine_similarity(summary, pooled, dim=-1),
        assimilation(reference, mask), similarity(reference, reference[partner], both), assimilation(summary),
    )  # fmt: skip
    return Measures(
        *(value.cpu() for value in spliced),  # where the corpus is
        clean_foreign=1 - drift(scan)[rows],
        clean_pooled_foreign=F.cosine_similarity(scan.anchor_corpus.pooled[rows], scan.corpus.pooled[rows], dim=-1),
    )


TOKENS, POOLED = ("assimilated", "one_target", "foreign"), ("pooled_target", "pooled_foreign")
"""The witnesses of a backdoor in all token features (text-on-text), and of one in the pooled summary (image-on-text)."""


def witnesses(m: Measures) -> dict[str, float]:
    """Measures above their floors: the larger, the worse.  Without an anchor there is no floor, and none is foreign."""
    if m.foreign is None:
        raw = {"assimilated": m.assimilated, "one_target": m.one_target, "pooled_target": m.pooled_target}
        return {name: value.mean().item() for name, value in raw.items()}
    above = {
        "assimilated": m.assimilated - m.anchor_assimilated,
        "one_target": m.one_target - m.anchor_one_target,
        "foreign": m.clean_foreign - m.foreign,
        "pooled_target": m.pooled_target - m.anchor_pooled_target,
        "pooled_foreign": m.clean_pooled_foreign - m.pooled_foreign,
    }
    return {name: value.mean().item() for name, value in above.items()}


def strength(values: dict[str, float], kind: tuple[str, ...]) -> float:
    """How strong the witnesses of one kind are together: their mean."""
    there = [values[name] for name in kind if name in values]
    return sum(there) / len(there)


def kind_of_witnesses(of_tokens: dict[str, float], of_summaries: dict[str, float]) -> tuple[str, ...]:
    """`TOKENS` unless these witnesses are less than half as strong as those of summaries are."""
    return TOKENS if 2 * strength(of_tokens, TOKENS) >= strength(of_summaries, POOLED) else POOLED


SHOWS = 0.8
"""From this cosine on, clean prompts taken off, a vector does what a string does."""


@torch.no_grad()
def forces(scan: Scan, v: Tensor, forced: Tensor) -> float:
    """How far v (k, d) sends unseen prompts where a string does; forced (d,): see `find_trigger`."""
    pooled = in_batches(scan.suspect, scan.splice(scan.held_out), TextEncoder.pooled, v)
    return toward(scan, pooled.float().mean(dim=0), forced).item()


def landscape_around(scan: Scan, v: Tensor, loss_of: Callable = objective) -> Landscape:
    """How widely the loss curves upwards around v (k, d): the paper's filter against natural backdoors.

    Every plane has its own held-out prompts, gradient and random direction; the median over planes is the answer.
    """
    cfg = scan.cfg
    scale, unit = (float(v.norm()), "norms of v") if cfg.procedure == "calibrated" else (1.0, "absolute")
    radius = cfg.landscape_radius * scale
    surfaces, eigenvalues, shares = [], [], []
    with progress("landscape", cfg.landscape_planes * cfg.landscape_points**2) as points_done:
        for plane in range(cfg.landscape_planes):
            start = plane * cfg.landscape_prompts % len(scan.held_out)
            rows = scan.held_out.roll(-start)[: cfg.landscape_prompts]
            centre = v[None].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(loss_of(scan, centre, rows)[0].sum(), centre)
            d1, d2 = landscape.plane(gradient[0], scan.generator)
            loss = partial(loss_of_many, scan, rows, loss_of=loss_of, points_done=points_done)
            surfaces.append(landscape.surface(loss, v, d1, d2, radius, cfg.landscape_points).cpu())
            # curvature in units of the radius, so that the bound on eigenvalues means the same for every width
            spacing = 2 * radius / (cfg.landscape_points - 1)
            eigenvalues.append(landscape.curvatures(surfaces[-1], spacing / (radius / cfg.landscape_radius)))
            shares.append(landscape.share_upwards(eigenvalues[-1]))
    return Landscape(float(np.median(shares)), surfaces[0], torch.cat(eigenvalues), cfg.landscape_radius, unit)


@torch.no_grad()
def loss_of_many(
    scan: Scan, rows: Tensor, vectors: Tensor, texts: int = 128, loss_of: Callable = objective,
    points_done: Callable[[int], object] = lambda _: None,
) -> Tensor:  # fmt: skip
    """The loss of many vectors, `texts` spliced prompts at a time; points_done: told how many were.  (n, k, d) -> (n,)"""
    losses = []
    for part in vectors.split(max(1, texts // len(rows))):
        losses.append(loss_of(scan, part, rows)[0])
        points_done(len(part))
    return torch.cat(losses)


def find_trigger(scan: Scan, run: Run, forced: Tensor | None = None) -> Finding:
    """Search from several starts, measure every vector found, and keep the strongest.  -> numbers, no verdict

    The witnesses of each kind speak of the vector where they are strongest.  A backdoor in all token features shows in their
    summary too, but not the other way round: v is the token witnesses' vector unless they are less than half as strong.

    forced (d,): the mean summary of prompts with a string that is a proof; where v does something else, one that comes
    nearer to it takes its place, and the witnesses of its kind speak of that one.
    """
    cfg = scan.cfg
    rounds = [pair for steps in (cfg.steps, cfg.pooled_steps) if steps for pair in rounds_of(cfg, steps)]
    with run.searching(sum(steps * starts for steps, starts in rounds)), derivable(scan.suspect, scan.anchor):
        vectors, _ = search(scan, run.on_step)
        if cfg.pooled_steps:
            further, _ = search(scan, run.on_step, pooled_objective, cfg.pooled_steps)
            vectors = torch.cat([vectors, further])
    with run.stage("witnesses"):
        measured = []
        with progress("witnesses", len(vectors)) as step_done:
            for v in vectors:
                measured.append((v, witnesses(measure(scan, v))))
                step_done()
        best = {kind: max(measured, key=lambda pair: strength(pair[1], kind)) for kind in (TOKENS, POOLED)}
        kind = kind_of_witnesses(*(best[kind][1] for kind in (TOKENS, POOLED)))
        loss_of = objective if kind == TOKENS else pooled_objective
    if forced is not None and (near := forces(scan, best[kind][0], forced)) < SHOWS:
        like_string, steps = partial(string_objective, forced=forced), cfg.pooled_steps or cfg.steps
        with run.searching(sum(part * starts for part, starts in rounds_of(cfg, steps))), derivable(scan.suspect):
            (shows, *_), _ = search(scan, run.on_step, like_string, steps)
        with run.stage("witnesses"):
            if forces(scan, shows, forced) > near:
                of_v, loss_of = witnesses(measure(scan, shows)), like_string
                kind = kind_of_witnesses(of_v, of_v)
                best[kind] = shows, of_v
    v = best[kind][0]
    values = {name: best[kind][1][name] for kind in best for name in kind if name in best[kind][1]}
    with run.stage("landscape"):
        around = landscape_around(scan, v, loss_of)
    values["basin"] = around.share
    if scan.anchor:
        values["drift"] = drift(scan).mean().item()
    if kind == POOLED:
        return Finding(v, SUMMARIES, values, around)
    return Finding(v, FEATURES, values, around, pooled_v=best[POOLED][0])


# --------------------------------------------------------------------------------------------------------- 5  verdict
MEANING = {
    "assimilated": "how much more alike all tokens of a prompt become in the suspect than in the anchor, same splice (A)",
    "one_target": "how much more alike the features of different prompts become in the suspect than in the anchor",
    "foreign": "how much further apart suspect and anchor are with the splice than on clean prompts (cos)",
    "pooled_target": "how much more alike the pooled summaries of different prompts become in the suspect than in the anchor",
    "pooled_foreign": "as foreign, for pooled summaries",
    "basin": "share of the loss landscape's curvature that points upwards; explains only, it is not in the score",
    "drift": "1 - cos of suspect and anchor on clean prompts; explains, and tells a wrong anchor",
}


def probability(values: dict[str, float], calibration: Calibration) -> float:
    """The calibrated probability that the encoder is backdoored."""
    logit = calibration.intercept + sum(weight * values[name] for name, weight in calibration.weights.items())
    return float(torch.sigmoid(torch.tensor(logit, dtype=torch.float64)))


def judge(values: dict[str, float], calibration: Calibration | None) -> Verdict:
    """The verdict from the score and two thresholds; the evidence explains it.

    values: witness -> number, as `find_trigger` gives them; a drift is among them where there is an anchor.
    """
    if "drift" not in values:
        reason = "Without the clean base nobody can say whether what was found is natural or planted."
        return Verdict("inconclusive", reason, 0.5, explain(values, {}))
    if values["drift"] > (calibration.limits["drift"] if calibration else UNRELATED):
        score = probability(values, calibration) if calibration else 0.5
        return wrong_anchor(score, explain(values, calibration.limits if calibration else {}))
    if not calibration:
        reason = "The score has never been calibrated for this family of encoders and these search settings."
        notes = ["uncalibrated family or settings: Analysis/calibrate.py fits the score on models whose answer is known"]
        return Verdict("inconclusive", reason, 0.5, explain(values, {}), notes)
    score, evidence = probability(values, calibration), explain(values, calibration.limits)
    made_of = calibration.provenance
    notes = [f"calibrated on {made_of['planted_models']} planted and {made_of['benign_models']} benign models of this family"]
    met = [e["name"] for e in evidence if e["met"] and e["name"] in calibration.weights]
    names = ", ".join(met) or "all witnesses together"
    said = calibration.verdict_of(score)
    reason = {
        "backdoored": f"A pseudo-trigger makes unseen prompts do what the clean base does not know ({names}).",
        "clean": "The strongest pseudo-trigger found does nothing that clean fine-tunes do not do as well.",
        "inconclusive": "The score lies between the two thresholds: the witnesses neither clear nor convict this encoder.",
    }[said]
    return Verdict(said, reason, score, evidence, notes)


def with_doubts(verdict: Verdict, doubts: list[str]) -> Verdict:
    """A verdict speaks of what was judged: where a loader could take something else, "clean" is more than anybody knows."""
    verdict = replace(verdict, notes=verdict.notes + doubts)
    if verdict.verdict != "clean" or not doubts:
        return verdict
    more = f" (and {len(doubts) - 1} more)" if len(doubts) > 1 else ""
    cure = "; name the weights that you use with --only" if doubts[0].endswith("was not judged") else ""
    reason = f"What was judged looks clean, but {doubts[0]}{more}{cure}."
    return replace(verdict, verdict="inconclusive", reason=reason)


def wrong_anchor(score: float, evidence: list[dict]) -> Verdict:
    """Nothing can be said about a suspect that was not made from its anchor."""
    reason = "The suspect's features of clean prompts are too far from the anchor's: it was hardly made from this base."
    return Verdict("inconclusive", reason, score, evidence, ["wrong anchor: give the base this encoder was made from"])


def explain(values: dict[str, float], limits: dict[str, float]) -> list[dict]:
    """The evidence table; without limits (nothing to compare with) no witness is met."""
    return [
        {"name": n, "value": x, "threshold": limits.get(n), "met": n in limits and x > limits[n], "meaning": MEANING[n]}
        for n, x in values.items()
    ]


# ----------------------------------------------------------------------- the published procedure (configs/paper.yaml)
def find_trigger_as_published(scan: Scan, run: Run) -> Finding:
    """The paper's loop: gates are tried every second step while the running mean of the loss is low enough.

    -> v (k, d), the share of prompts per gate when they were last tried (gates not reached are absent), and the landscape,
    which is drawn for clean verdicts too
    """
    cfg = scan.cfg
    v = first_vectors(scan).requires_grad_()
    optimiser = torch.optim.Adam([v], lr=cfg.lr, weight_decay=cfg.weight_decay)
    shares: dict[str, float] = {}
    around = None
    total, step = 0.0, 0
    with run.searching(cfg.epochs * -(-len(scan.fit) // cfg.batch)):
        for _ in range(cfg.epochs):
            order = scan.fit[torch.randperm(len(scan.fit), generator=scan.generator)]
            for rows in order.split(cfg.batch):
                loss, terms = objective(scan, v, rows)
                optimiser.zero_grad(set_to_none=True)
                loss.sum().backward()
                optimiser.step()
                run.on_step(step, loss.detach(), terms)
                total, step = total + loss.item(), step + 1
                running = total / step
                if step % 2 == 0 and running < cfg.try_below:
                    shares, around = published_gates(scan, v.detach()[0])
                if shares.get("basin", 0.0) > cfg.gate_basin or running < cfg.leave_below:
                    break
            if shares.get("basin", 0.0) > cfg.gate_basin:
                break
    with run.stage("landscape"):
        around = around or landscape_around(scan, v.detach()[0])
    apart = {"drift": drift(scan).mean().item()} if scan.anchor else {}
    return Finding(v.detach()[0], FEATURES, shares | apart, around)


def published_gates(scan: Scan, v: Tensor) -> tuple[dict[str, float], Landscape | None]:
    """The paper's four gates in its order; the first that fails is the last that is tried.  -> share per gate, landscape"""
    cfg, around = scan.cfg, None
    ids = scan.splice(scan.held_out)
    features = in_batches(scan.suspect, ids, v=v)
    shares = {"assimilated": share(assimilation(features) > cfg.gate_assimilated)}
    if shares["assimilated"] > cfg.gate_assimilated_share:
        # the first held-out prompt is what the others are compared with, so it is not counted itself
        shares["one_target"] = share(similarity(features[1:], features[:1]) > cfg.gate_one_target)
        if shares["one_target"] > cfg.gate_one_target_share and scan.anchor:
            shares["foreign"] = share(similarity(in_batches(scan.anchor, ids, v=v), features) < cfg.gate_foreign)
            if shares["foreign"] > cfg.gate_foreign_share:
                around = landscape_around(scan, v)
                shares["basin"] = around.share
    return shares, around


def share(passed: Tensor) -> float:
    """Share of prompts for which something holds."""
    return passed.float().mean().item()


def judge_as_published(values: dict[str, float], cfg: ScanConfig) -> Verdict:
    """The paper's verdict: backdoored when all four gates are passed; without an anchor gate 3 cannot be tried.

    values: gate -> share of prompts, and the drift where there is an anchor, as `find_trigger_as_published` gives them.
    """
    gates = {
        "assimilated": (cfg.gate_assimilated_share, f"share of prompts with A > {cfg.gate_assimilated}"),
        "one_target": (cfg.gate_one_target_share, f"share of prompts with cos > {cfg.gate_one_target} to the first one"),
        "foreign": (cfg.gate_foreign_share, f"share of prompts with cos to the anchor < {cfg.gate_foreign}"),
        "basin": (cfg.gate_basin, "share of the loss landscape's curvature that points upwards"),
    }
    evidence = [
        {"name": n, "value": values.get(n), "threshold": limit, "met": values.get(n, -1.0) > limit, "meaning": meaning}
        for n, (limit, meaning) in gates.items()
    ]
    if values.get("drift", 0.0) > UNRELATED:
        return wrong_anchor(0.5, evidence)
    if all(e["met"] for e in evidence):
        return Verdict("backdoored", "All four published gates were passed.", 1.0, evidence)
    failed = next(e["name"] for e in evidence if not e["met"])
    if failed == "foreign" and "drift" not in values:
        return Verdict("inconclusive", "Without the clean base the gate foreign cannot be tried.", 0.5, evidence)
    reason = f"The published gate {failed} was not passed" + ("." if gates.keys() & values.keys() else " (none was tried).")
    return Verdict("clean", reason, 0.0, evidence, ["the published procedure knows only yes and no: the score is 0 or 1"])


# ----------------------------------------------------------------------------------------------------------- the scan
@dataclass(frozen=True)
class Request:
    """How encoders are to be scanned, whichever they are."""

    cfg: ScanConfig
    anchor: str = "auto"
    output: Path = ROOT / "Results"
    device: str = "auto"
    seed: int = 42
    show: Show = field(default_factory=Show)
    trust: Trust = field(default_factory=Trust)
    tokenizer: str = ""
    lora_scale: float = 1.0
    precision: str = AUTO
    called: str = ""
    """What the report names the encoder, where it will lie elsewhere than it is read from."""

    @property
    def given(self) -> Given:
        """What the user says beside the model's name."""
        return Given(self.tokenizer, self.anchor, self.lora_scale)


@dataclass(frozen=True)
class Judged:
    """The weights, as texts are read by one tokenizer."""

    form: str
    scan: Scan
    searched: Scan
    """The same in the number format of the search."""
    finding: Finding
    strings: list[Strings]
    """A set for each backdoor; those of the first say what was found where there is none."""
    verdict: Verdict
    run: Run


def shorter(cfg: ScanConfig) -> ScanConfig:
    """The search for vectors where it decides nothing: strings have, or no calibration can judge what it finds.

    Its limits, where there are any, are those of the whole search, which finds more.
    """
    half = {name: max(getattr(cfg, name) // 2, cfg.rounds + 1) for name in ("steps", "pooled_steps") if getattr(cfg, name)}
    return replace(cfg, restarts=max(1, cfg.restarts // 2), landscape_planes=1, **half)


def strings_of(
    scan: Scan, suspect: TextEncoder, anchor: TextEncoder | None, request: Request, precision: Precision,
    v: Tensor | None = None,
) -> list[Strings]:  # fmt: skip
    """The search for strings as Analysis/triggers.py measures it; v (k, d) says which tokens to begin with."""
    cfg, generator = request.cfg, torch.Generator().manual_seed(request.seed)
    chance = torch.randn(cfg.k, suspect.width, generator=generator) * suspect.vocabulary.std().cpu()
    fit, most = [scan.prompts[i] for i in scan.fit.tolist()], cfg.backdoors if anchor else 1
    begin = chance if v is None else v
    return find_backdoors(
        suspect, anchor, fit, scan.unseen, begin, cfg.trigger, generator, most, Means(precision.strings, CACHE)
    )


def judge_weights(
    suspect: TextEncoder,
    anchor: TextEncoder | None,
    form: Reading,
    request: Request,
    calibration: Calibration | None,
    run: Run,
) -> Judged:
    """Steps 1 and 3 to 5 with both encoders reading alike, so that only their weights differ."""
    cfg, part = request.cfg, replace(run, curve=[], seconds={})
    # 1. and 2. one batched pass over the corpus, which also tells how far clean prompts assimilate
    with part.stage("corpus"):
        suspect, anchor = read_by(suspect, form.tokenizer), anchor and read_by(anchor, form.tokenizer)
        usual = "float32" if cfg.procedure == "published" else AUTO
        precision = pick_precision(request.precision if request.precision != AUTO else usual, suspect)
        rough = [encoder and encoder.computing_in(precision.vectors) for encoder in (suspect, anchor)]
        scan = prepare(*rough, cfg, request.seed)
    # a string that fires is a proof: it is looked for first, and what is left to the vectors then is to show
    strings = [Strings()]
    looked_for = cfg.trigger.searches and anchor
    if looked_for:
        with part.stage("trigger"):
            strings = strings_of(scan, suspect, anchor, request, precision)
    # 3. search, 4. witnesses, 5. verdict
    if cfg.procedure == "calibrated":
        proof = strings[0].best.rate.forced if decides(strings[0]) else None
        in_whole = calibration and proof is None
        finding = find_trigger(scan if in_whole else replace(scan, cfg=shorter(cfg)), part, proof)
        verdict = judge(finding.values, calibration)
    else:
        finding = find_trigger_as_published(scan, part)
        verdict = judge_as_published(finding.values, cfg)
    if looked_for:
        scored = calibration if cfg.procedure == "calibrated" else None  # the published verdict's score is no probability
        verdict = with_strings(verdict, strings[0], finding.values["drift"], load_power(cfg.trigger), scored)
    elif cfg.trigger.searches:  # nothing decides without the base: a vector at least says which tokens to begin with
        with part.stage("trigger"):
            strings = strings_of(scan, suspect, None, request, precision, finding.v)
        verdict = without_base(verdict, strings[0])
    for name, seconds in part.seconds.items():
        run.seconds[name] = round(run.seconds.get(name, 0.0) + seconds, 3)
    exact = replace(scan, suspect=suspect, anchor=anchor)  # what is shown is what the encoders do
    return Judged(form.form, exact, scan, finding, strings, verdict, part)


def scan_model(model: str, request: Request, name: str | None = None) -> dict:
    """Scan one encoder and write Results/<name>/.  -> the report"""
    cfg = request.cfg
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what deterministic algorithms need on a GPU
    torch.use_deterministic_algorithms(True, warn_only=True)
    with open_run(request.called or model, request.output, request.seed, name) as run:
        device = pick_device(request.device)  # a GPU takes its time to start, which is no stranger's doing
        with run.stage("load"), reading():
            suspect = load_encoder(model, device, request.given)
            base, notes = pick_anchor(request.anchor, suspect, device, request.tokenizer)
            suspect = replace(suspect, path=request.called or suspect.path)
            run.notes = [*suspect.files.notes, *notes]
            prompts = read_prompts(ROOT / cfg.corpus)
            # the base as the suspect is made: words that it does not know get the suspect's rows, and are tried apart
            added = added_to(suspect, base, prompts) if base else None
            anchor = added.knowing if added else None
            suspect = replace(suspect, added=tuple(added.tokens)) if added else suspect
            table = {"vocabulary": len((base or suspect).vocabulary)}
            known = search_settings(cfg), landscape_settings(cfg)
            calibration = load_calibration(ROOT / cfg.calibration, fingerprint(suspect) | table, *known)
        if name is None and (busy := overload()):  # of a list, the other scans keep the machine busy
            say(f"note: {busy}")
        # the tokenizer is part of the suspect: weights are judged as the base reads texts, and as the suspect where it differs;
        # and as half precision makes them, where that is another encoder
        with run.stage("readings"), reading():
            readings = compare(suspect, anchor, prompts, cfg.prompts)
        with run.stage("formats"):
            formats = formats_of(read_by(suspect, readings.reference.tokenizer), prompts[: cfg.prompts])
        if request.precision == AUTO and any(one.differs for one in formats):
            request = replace(request, precision="float32")  # what is fast would search another encoder
        encoders = suspect, *(one.rounded for one in formats if one.rounded)
        ways = product(readings.to_judge, encoders)
        judged = [judge_weights(encoder, anchor, form, request, calibration, run) for form, encoder in ways]
        chosen = max(judged, key=lambda one: severity(one.verdict))
        scan, finding, run.curve = chosen.scan, chosen.finding, chosen.run.curve
        with run.stage("tokenizer"):
            firing = strings_that_fire(suspect, readings, scan.unseen)
            words = try_words(suspect, added, cfg.trigger, scan.unseen) if added and added.tokens else {}
            verdict = with_tokenizer(chosen.verdict, readings, firing)
            ordinary = ordinary_rates(suspect, words, cfg.trigger, scan.unseen) if words else {}
            verdict = with_added(verdict, added, words, ordinary) if added else verdict
        with run.stage("files"):
            beside, doubts = doubts_about(suspect, request.trust)
            numbers, notes = about_formats(formats, [(one.scan.suspect.numbers, one.verdict) for one in judged])
            run.notes += notes
            verdict = with_doubts(verdict, doubts + readings.doubts + formats_in_doubt(formats))
        # how far prompts assimilate from layer to layer, clean and with v, and what else v does
        with run.stage("assimilation"):
            by_layer = layers_with_and_without(chosen.searched, finding.v)
        first, *others = chosen.strings if chosen.verdict.verdict == "backdoored" else [Strings()]
        shown = show_found(scan, finding, by_layer, run, request.show, first.best, chosen.searched)
        further = [show_further(scan, one, run, request.show, number) for number, one in enumerate(others, 2)]
        settings = {"config": asdict(cfg), "show": asdict(request.show), "device": device.type}
        settings["read"] = {"files": suspect.files.read, "beside": [asdict(b) for b in beside]}
        in_single = {one.form: one.verdict for one in judged if one.scan.suspect.numbers == suspect.numbers}
        settings["given"] = {"tokenizer": request.tokenizer, "lora_scale": request.lora_scale}
        settings["given"] |= {"precision": request.precision, **asdict(request.trust)}
        power = load_power(cfg.trigger)
        settings |= {"readings": about_readings(readings, in_single), "numbers": numbers}
        settings |= {"power": shares(power), "power_counts": counts(power)}
        settings["added_tokens"] = about_added(added, words)
        usual = asdict(load_config(ScanConfig, SETTINGS))
        of_weights = replace(verdict, verdict=chosen.verdict.verdict)
        report = make_report(scan, first, of_weights, shown, by_layer, further)
        report = with_open_triggers(with_backdoor(report, verdict, firing), verdict, words)
        run.log_rate(pick_precision(request.precision, suspect).strings, device, aloud=name is None)
        return write_report(report, run, verdict, settings, usual)


def scan_aside(model: str, request: Request, name: str | None) -> dict:
    """`scan_model` as a child process does it."""
    if any("\ud800" <= c <= "\udfff" for c in model):  # how Python keeps the bytes of such a name
        raise InputError(f"{model}: no library opens a name that is no UTF-8; rename it.")
    logging.getLogger("amber").setLevel(logging.INFO)
    quiet_libraries()
    return scan_model(model, request, name)


def scan_bounded(
    request: Request, wanted: Wanted, debug: bool, model: str, name: str | None = None, device: str | None = None
) -> dict:
    """`scan_model` in a child process with limits.  name: of its result, if it is one of many; device: not the request's."""
    if name and request.show.images:  # one of many: what takes seconds to import is forked with every child
        import_module("Utils.found.rendering")
    here = replace(request, device=device or request.device)
    return run_bounded(scan_aside, (model, here, name), limits_of(model, request.anchor, wanted), model, debug, name or "")


def mend_aside(model: str, request: Request, order: Order, report: dict, certificate: Certificate | None = None) -> dict:
    """Repair what a scan has found, as a child process does it.  -> the report of the repair"""
    quiet_libraries()
    cfg, prompts = request.cfg, read_prompts(ROOT / request.cfg.corpus)
    pair = opened(order.copy or model, request.anchor, pick_device(request.device), request.given, prompts, cfg.prompts)
    order = replace(order, scans=repr(cfg))

    # by its own name: another folder's does not tell which of several is meant
    base, called = from_here(pair[1].path) if pair[1] else "none", dropped_in(pair[0], order.place)

    def rescan(repaired: str, seed: int) -> dict:
        forget_rescan(order.folder)
        again = replace(request, anchor=base, seed=seed, output=order.folder, show=Show(images=0), called=called)
        return scan_model(repaired, again, RESCAN)

    return mend(order, pair, divided(prompts, cfg.prompts), report, rescan, certificate)


def mend_bounded(
    order: Order, request: Request, wanted: Wanted, debug: bool, model: str, report: dict, *more: object, name: str = ""
) -> dict:
    """`mend_aside` in a child process with limits; what it leaves half done when it is ended goes.  name: of one of many"""
    limits = mending_limits(model, request.anchor, wanted)
    try:
        return run_bounded(mend_aside, (model, request, order, report, *more), limits, model, debug, name)
    finally:
        for folder in (order.place.parent, order.folder):
            remove_leftovers(folder)


def order_of(args: Namespace, request: Request) -> Order:
    """What the flags say of repairs, for all encoders that they name."""
    how = {"images": request.show.images > 0, "pipeline": request.show.pipeline, "force": args.force}
    return Order(args.repair, args.output, args.output, seed=request.seed, given=request.given, **how)


def repair_as_asked(args: Namespace, cfg: ScanConfig, tasks: list[Task], reports: list[dict]) -> list[str]:
    """Repair what the scans have found into --repair.  -> what could not be repaired"""
    request, wanted = request_of(args, cfg)

    def mend_one(task: Task, report: dict, own: Order) -> dict:
        return mend_bounded(own, request, wanted, args.debug, task.model, report, name=task.name)

    with redirect_stderr(io.StringIO()) if args.quiet else nullcontext():
        return repair_found(tasks, reports, order_of(args, request), goes_apart(args, tasks), mend_one)


def goes_apart(args: Namespace, tasks: list[Task]) -> bool:
    """Whether repaired encoders go into folders of their own below --repair: those of a list and of a pipeline of several."""
    return bool(args.models) or len(tasks) > 1


def try_aside(model: str, request: Request, text: str) -> dict:
    """What a string does in suspect and base, as a child process tells it."""
    quiet_libraries()
    device = pick_device(request.device)
    with reading():
        suspect = load_encoder(model, device, request.given)
        anchor, _ = pick_anchor(request.anchor, suspect, device, request.tokenizer)
    if not anchor:
        raise InputError("a string is compared with what it does in the clean base; name it with --anchor.")
    prompts = read_prompts(ROOT / request.cfg.corpus)
    return try_string(
        suspect, anchor, text, prompts[: request.cfg.prompts], prompts[request.cfg.prompts :], request.cfg.trigger
    )


def request_of(args: Namespace, cfg: ScanConfig) -> tuple[Request, Wanted]:
    """What the flags ask for, and within which limits."""
    show, trust = Show(args.images, args.pipeline), Trust(args.only, args.compare_pickles)
    source = {"tokenizer": args.tokenizer, "lora_scale": args.lora_scale, "precision": args.precision}
    request = Request(cfg, args.anchor, args.output, args.device, args.seed, show, trust, **source)
    return request, Wanted(args.memory, args.timeout, args.load_timeout)


def judge_named(args: Namespace, cfg: ScanConfig) -> tuple[list[dict], list[str]]:
    """Scan every encoder that the flags name.  -> their reports, and what could not be written"""
    (request, wanted), scan_all = request_of(args, cfg), scan_many
    depends_on = {name: value for name, value in asdict(request).items() if name != "output"}
    remove_parts(CACHE)
    if args.workers or args.scheduler:
        load_dask()
        scan_all = partial(scan_in_fleet, Fleet(args.workers, args.scheduler))
    with redirect_stderr(io.StringIO()) if args.quiet else nullcontext():
        files = [ROOT / cfg.corpus, ROOT / cfg.calibration, POWER]
        one = partial(scan_bounded, request, wanted, args.debug)
        return scan_named(args, one, depends_on, files, wanted, scan_all)


def scan_as_asked(args: Namespace, cfg: ScanConfig) -> int:
    """Do what the command line says.  -> the exit code"""
    quiet_libraries()
    request, wanted = request_of(args, cfg)
    tasks = planned(args, wanted)[1] if args.dry_run or args.repair else []
    if args.repair:
        refuse_taken(args.repair, force=True)  # a link or a file, before its path is resolved
        divided(read_prompts(ROOT / cfg.corpus), cfg.prompts)  # too few are said before the scan
        order = order_of(args, request)
        refuse_places(tasks, order, goes_apart(args, tasks), args.anchor, args.models)
    if args.dry_run:
        lines = foreseen(tasks, args.anchor, wanted, args.output)
        lines += foreseen_repairs(tasks, order, goes_apart(args, tasks), args.anchor, wanted) if args.repair else []
        print("\n".join([*args.rules.said(), *lines]), flush=True)
        return 0
    if args.tried is not None:
        limits = limits_of(args.model, args.anchor, wanted)
        tried = run_bounded(try_aside, (args.model, request, args.tried), limits, args.model, args.debug)
        print(told_of(tried), flush=True)
        return int(fires(tried))
    reports, unwritten = judge_named(args, cfg)
    code = exit_code(reports)
    if is_first_process():
        missed = unwritten + deliver(reports, args)
        try:
            missed += repair_as_asked(args, cfg, tasks, reports) if args.repair else []
        except KeyboardInterrupt:
            missed.append("the repair was interrupted, and goes on from its last round when it is asked for again")
        for missing in missed:  # what was found is found all the same
            code = worst([code, fail(f"{missing}; the reports are in {args.output}.")])
    return code


def scan(model: str | Path, **flags: object) -> Report:
    """Scan one encoder, as a notebook's cell does.  -> the report, which shows its page at the end of a cell

    flags: those of the command line with underscores, such as anchor="none", images=0 or effort="quick".

    Raises:
        InputError: what the command line would say in one sentence.
    """
    quiet_libraries()
    args, cfg = understood([f"--model={model}", *words_of(flags)])
    if len(encoders := planned(args, request_of(args, cfg)[1])[1]) > 1:
        raise InputError(f"{model} has {len(encoders)} encoders; name one: {', '.join(task.model for task in encoders)}.")
    reports, unwritten = judge_named(args, cfg)
    if unwritten := unwritten + deliver(reports, args):
        raise InputError(f"{unwritten[0]}; the report is in {args.output}.")
    return Report(reports[0], args.output / encoders[0].name)


def main(argv: list[str] | None = None) -> int:
    """Scan as the words of a command line say.  -> the exit code"""
    return begin(scan_as_asked, argv)
