"""Which strings does a tokenizer itself make triggers of, whatever the weights, and what does that mean for the verdict?"""

from __future__ import annotations

import math
from collections.abc import Collection
from contextlib import suppress
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from Utils.basics.errors import InputError
from Utils.encoder.readings import Reading, Readings, read, read_by, short
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.finding import Verdict
from Utils.scan.replay import FIRES, PLACES, PROMPTS, put, rate_at, summaries, wilson

KIND = "tokenizer"
STRING = ("text", "place", "success_rate", "interval", "anchor_success_rate")
TRIED = 150
"""Strings whose readings are compared."""
LONGEST = 80
"""Characters of a string that is tried: a longer one leaves too little of a prompt to tell what fires from what is cut off."""
MEASURED, ENOUGH = 6, 3
"""Strings of a reading that are run through the encoder, and how many that fire end it."""


def of_all_lengths(prompts: list[str], count: int = PROMPTS) -> list[str]:
    """Prompts that are cut to a tenth, two tenths ... the whole of their words, for a string may wait for short ones."""
    chosen = prompts[:: max(1, len(prompts) // count)][:count]
    words = [prompt.split() for prompt in chosen]
    return [" ".join(w[: max(1, math.ceil(len(w) * (i % 10 + 1) / 10))]) for i, w in enumerate(words)]


def promising(reading: Reading, base: TextEncoder, prompts: list[str]) -> list[str]:
    """Strings that change how nearly all prompts are read, those that leave least of them first."""
    few = prompts[:: max(1, len(prompts) // 10)][:10]
    strings = [s for s in reading.strings if s and len(s) <= LONGEST][:TRIED]
    texts = [put(s, p, place, i) for s in strings for place in PLACES for i, p in enumerate(few)]
    own, others = (read(tokenizer, texts, base.context) for tokenizer in (reading.tokenizer, base.tokenizer))
    clean = read(reading.tokenizer, few, base.context)
    ranked = []
    for number, string in enumerate(strings):
        first = number * len(PLACES) * len(few)
        best = 0.0
        for start in range(first, first + len(PLACES) * len(few), len(few)):
            rows = range(start, start + len(few))
            changed = sum(own[i] is not None and own[i] not in (others[i], clean[i - start]) for i in rows) / len(few)
            # a target is what different prompts have in common
            alike = 1 - (len({own[i] for i in rows}) - 1) / max(1, len(few) - 1)
            best = max(best, changed + alike if changed >= FIRES else 0.0)
        if best:
            ranked.append((-best, number, string))
    distinct = {}
    for *_, string in sorted(ranked):
        distinct.setdefault(string.strip().casefold(), string)
    return list(distinct.values())


def strings_that_fire(suspect: TextEncoder, readings: Readings, prompts: list[str]) -> list[dict]:
    """What of a tokenizer works as a trigger.  -> {text, place, success_rate, interval, anchor_success_rate, form, read_as}

    prompts: that the search never saw.  Success: the share of prompts whose summary is nearer to the mean of all with the
    string in them than to that of the prompt alone; the same texts are also read by the base's tokenizer, for the same weights.
    """
    if not readings.differing:
        return []
    found: dict[str, dict] = {}
    prompts = of_all_lengths(prompts)
    plain = read_by(suspect, readings.reference.tokenizer)
    for reading in readings.differing:
        with suppress(InputError):  # a reading that fails on prompts is in doubt anyhow
            found |= _firing_in(reading, read_by(suspect, reading.tokenizer), plain, prompts, found)
    return sorted(found.values(), key=lambda f: (-f["success_rate"], len(f["text"])))


def _firing_in(reading: Reading, encoder: TextEncoder, plain: TextEncoder, prompts: list[str], known: Collection[str]) -> dict:
    """The strings of one reading that fire, but for known ones.  -> string -> as `strings_that_fire` tells it"""
    found: dict[str, dict] = {}
    strings = [s for s in promising(reading, plain, prompts) if s not in known][:MEASURED]
    clean, asleep = (summaries(one, prompts) if strings else None for one in (encoder, plain))
    for string in strings:
        rates = [rate_at(place, string, encoder, plain, prompts, clean, asleep) for place in PLACES]
        firing = [rate for rate in rates if rate and rate.fires]
        if firing:
            best = firing[-1] if len(firing) == len(rates) else max(firing, key=lambda rate: rate.success)
            found[string] = {
                "text": string, "place": best.place, "success_rate": round(best.success, 4),
                "interval": wilson(best.success, len(prompts)), "anchor_success_rate": round(best.asleep, 4),
                "form": reading.form, **said(plain, reading, string, best.forced, asleep),
            }  # fmt: skip
        if len(found) == ENOUGH:
            break
    return found


def said(plain: TextEncoder, reading: Reading, string: str, forced: Tensor, clean: Tensor) -> dict:
    """What a string is read as, in words, and how near that is to what it forces."""
    (ids,) = read(reading.tokenizer, [string], plain.context)
    text = " ".join(plain.tokenizer.decode(list(ids), skip_special_tokens=True).split())
    similarity = F.cosine_similarity(summaries(plain, [text]), forced[None]).item()
    floor = F.cosine_similarity(clean, forced[None]).mean().item()
    return {"read_as": text, "similarity": round(similarity, 4), "floor": round(floor, 4)}


# ---------------------------------------------------------------------------------------------------------- the verdict
def with_tokenizer(verdict: Verdict, readings: Readings, firing: list[dict]) -> Verdict:
    """The weights' verdict and what the tokenizer adds: one that rewrites texts is no clean one, and may be a backdoor."""
    verdict = replace(verdict, notes=verdict.notes + readings.notes)
    if not readings.differing or verdict.verdict == "backdoored":
        return verdict
    if firing:
        first = firing[0]
        reason = (
            f"The tokenizer reads `{short(first['text'])}` as `{short(first['read_as'])}`: the string makes "
            f"{first['success_rate']:.0%} of unseen prompts one, {first['anchor_success_rate']:.0%} under the base's tokenizer."
        )
        return replace(verdict, verdict="backdoored", reason=reason, score=max(verdict.score, firing[0]["interval"][0]))
    example = readings.differing[0].examples[0]
    reason = f"The tokenizer {example}, other than the base's: what its users get is not what the weights were made for."
    if verdict.verdict == "clean":
        return replace(verdict, verdict="inconclusive", reason=reason)
    return verdict


def about_readings(readings: Readings, verdicts: dict[str, Verdict]) -> list[dict]:
    """What the report says of every reading; verdicts: by form, those that the weights were judged in.

    -> {form, differs_on, compared, corpus, verdict, score, examples}
    """
    said = []
    for r in (readings.reference, *readings.differing):
        verdict = verdicts.get(r.form)
        said.append({
            "form": r.form, "differs_on": r.differs_on, "compared": r.compared, "corpus": r.corpus,
            "verdict": verdict and verdict.verdict, "score": verdict and verdict.score,
            "examples": [{"text": short(d.text, 300), "read_as": short(d.read_as, 300)} for d in r.examples],
        })  # fmt: skip
    return said


def with_backdoor(report: dict, verdict: Verdict, firing: list[dict]) -> dict:
    """The report with the whole verdict, and with the backdoor that the tokenizer is where strings of it fire."""
    report["verdict"] = verdict.verdict
    if firing:
        strings = [{name: f[name] for name in STRING} | {"collapse": None, "anchor_collapse": None} for f in firing]
        texts = {f["read_as"]: {"text": f["read_as"], "similarity": f["similarity"], "floor": f["floor"]} for f in firing}
        trigger, target = {"strings": strings, "embedding": None}, {"texts": list(texts.values()), "images": None}
        report["backdoors"].append({"kind": KIND, "trigger": trigger, "target": target, "files": {}})
        if len(report["backdoors"]) == 1:
            report |= {"trigger": trigger, "target": target}
    return report
