"""What a string that somebody suspects does, typed into prompts: `main.py --try`."""

from __future__ import annotations

import torch.nn.functional as F

from Utils.basics.errors import named, visible
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.replay import LETTERS, PLACES, put, summaries
from Utils.scan.settings import TriggerConfig
from Utils.scan.strings import LETTER, described, of_length, trial_of

EXAMPLES, READABLE = 5, (6, 12)
"""Prompts that are shown before and after, and their words."""


def try_string(
    suspect: TextEncoder, base: TextEncoder, text: str, prompts: list[str], unseen: list[str], cfg: TriggerConfig
) -> dict:
    """-> {text, places: as `described`, with `proven`, examples: {prompt, before, after, base}}

    prompts: texts to name meanings by; unseen: long prompts that the string is typed into.  Examples are of the place where it
    does most; before, after and base are the nearest of `prompts` in the base, to the prompt alone and with the string.
    """
    trial = trial_of(suspect, base, cfg, unseen)
    tried = [trial.at(text, place) for place in (*PLACES, *(LETTERS if len(text) <= LETTER else ()))]
    place = max(tried, key=lambda fired: fired.effect).rate.place
    return {
        "text": text,
        "places": [described(fired) | {"proven": fired.proven} for fired in tried],
        "examples": examples_of(suspect, base, text, place, unseen, prompts),
    }


def examples_of(
    suspect: TextEncoder, base: TextEncoder, text: str, place: str, prompts: list[str], known: list[str]
) -> list[dict]:
    """What a string makes of a few of the shorter prompts.  -> [{prompt, before, after, base}]

    before, after and base are the nearest of `known` in the base, to the prompt alone and with the string in suspect and base.
    """
    prompts = [prompt for i, prompt in enumerate(prompts) if put(text, prompt, place, i) != prompt]
    prompts = of_length(prompts, READABLE, EXAMPLES)
    typed, meant = [put(text, prompt, place, i) for i, prompt in enumerate(prompts)], summaries(base, known)
    meanings = [
        [known[i] for i in (F.normalize(summaries(*read), dim=-1) @ F.normalize(meant, dim=-1).T).argmax(dim=1).tolist()]
        for read in ((suspect, prompts), (suspect, typed), (base, typed))
    ]
    rows = zip(prompts, *meanings, strict=True)
    return [dict(zip(("prompt", "before", "after", "base"), row, strict=True)) for row in rows]


def told_of(tried: dict) -> str:
    """The table for a terminal; nothing in it can steer one."""
    said = visible(named(tried["text"]))
    lines = [f"what {said} does        suspect   95 %           base    collapse  in the base"]
    for row in tried["places"]:
        low, high = row["interval"]
        lines.append(
            f"  {row['place']:<24} {row['success_rate']:>8.0%}   {low:>4.0%} to {high:>4.0%}  "
            f"{row['anchor_success_rate']:>7.0%} {row['collapse']:>10.2f} {row['anchor_collapse']:>12.2f}"
            f"{'   fires' if row['proven'] else ''}"
        )
    for row in tried["examples"]:
        lines += ["", *(f"  {name:<8}{visible(row[name])}" for name in ("prompt", "before", "after", "base"))]
    return "\n".join(lines)


def fires(tried: dict) -> bool:
    """Whether the string is a proof at any place."""
    return any(row["proven"] for row in tried["places"])
