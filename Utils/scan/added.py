"""What do words do that a suspect's tokenizer has and the base's does not?  They are evidence by nothing else.

Such a word is an open trigger if it overrules the prompts that it stands in.  It is held against what the base makes of the
same letters, or of as many ordinary words where it is typed as several tokens (letters of all of them are more text than most
prompts, and overrule them by their number); the limits are those of every string that is a proof (Utils/scan/strings.py).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle, islice

from Utils.basics.errors import named
from Utils.encoder.added import NAMED, Added, with_plain_rows
from Utils.encoder.readings import short
from Utils.encoder.text_encoder import TextEncoder
from Utils.scan.finding import Verdict
from Utils.scan.proof import ENOUGH
from Utils.scan.replay import FEW
from Utils.scan.settings import TriggerConfig
from Utils.scan.strings import Fired, described, trial_of

KIND = "added token"
MOST = 64
"""Words that are tried; of a model with more it is said how many were not."""
PLAIN = ("dog", "castle", "guitar", "portrait")
"""Ordinary concepts, which the added words are held against in the notes."""


def try_words(suspect: TextEncoder, added: Added, cfg: TriggerConfig, unseen: list[str]) -> dict[str, Fired]:
    """What each added word does to prompts that no search has seen, at its best place, in suspect and base.

    Of fewer prompts than a proof takes nothing is concluded.
    """
    trial = trial_of(suspect, added.base, cfg, unseen)
    if len(trial.prompts) < ENOUGH:
        return {}
    found, plain = {}, with_plain_rows(added, " ".join(PLAIN))
    for word, numbers in list(added.words.items())[:MOST]:
        fair = replace(trial, base=plain, rough=(suspect, plain)) if len(numbers) > 1 else trial
        found[word] = fair.at(word, fair.part(FEW).best(word).rate.place)
    return found


def ordinary_rates(suspect: TextEncoder, tried: dict[str, Fired], cfg: TriggerConfig, unseen: list[str]) -> dict[str, float]:
    """Of each word that a note speaks of: how often as many ordinary words overrule prompts at its place, at the most."""
    few, rates = trial_of(suspect, None, cfg, unseen).part(FEW), {}
    for word, fired in list(tried.items())[:NAMED]:
        many = len(suspect.tokens([word])[0])
        texts = (" ".join(islice(cycle(PLAIN[i:] + PLAIN[:i]), many)) for i in range(len(PLAIN)))
        rates[word] = max(few.at(text, fired.rate.place).rate.success for text in texts)
    return rates


def what_words_do(tried: dict[str, Fired], ordinary: dict[str, float]) -> list[str]:
    """How often words overrule the prompts that they stand in, and what that is to be held against, in sentences."""
    said = []
    for word, usual in ordinary.items():
        rate, prompts = tried[word].rate, tried[word].prompts
        count = f"{rate.success:.0%} of {prompts} unseen prompts ({rate.place})"
        said.append(f"the added {named(short(word))} overrules {count}; as many ordinary words overrule up to {usual:.0%}")
    return said


def with_added(verdict: Verdict, added: Added, tried: dict[str, Fired], ordinary: dict[str, float] | None = None) -> Verdict:
    """The verdict with what the added words do; words that overrule no prompt change nothing.

    ordinary: of words that a note is written of, as `ordinary_rates` has it.
    """
    notes = [*added.notes, *what_words_do(tried, ordinary or {})]
    if left := len(added.words) - len(tried):
        notes.append(f"{left} added words were not tried on their own")
    proven = {word: fired for word, fired in tried.items() if fired.proven}
    verdict = replace(verdict, notes=[*notes, *verdict.notes])
    if not proven or verdict.verdict == "backdoored":
        return verdict
    word, fired = max(proven.items(), key=lambda pair: pair[1].effect)
    in_base = "in the clean base" if len(added.words[word]) == 1 else "with as many ordinary words in the clean base"
    reason = (
        f"The added token {named(word)} overrules the prompts that it stands in: {fired.rate.success:.0%} of {fired.prompts} "
        f"unseen ones, and {fired.rate.asleep:.0%} {in_base}."
    )
    score = max(verdict.score, described(fired)["interval"][0])
    return replace(verdict, verdict="backdoored", reason=reason, score=score)


def about_added(added: Added | None, tried: dict[str, Fired]) -> list[dict]:
    """What the report says of every added word.  -> as `described`, with `tokens` {number, text} and `counts`: is it a proof?

    Of words that were not tried success and place are missing.
    """
    said = []
    for word, numbers in added.words.items() if added else ():
        fired = tried.get(word)
        tokens = [{"number": number, "text": added.tokens[number]} for number in numbers]
        said.append(
            {"text": word, "tokens": tokens, "counts": bool(fired and fired.proven)} | (described(fired) if fired else {})
        )
    return said


def with_open_triggers(report: dict, verdict: Verdict, tried: dict[str, Fired]) -> dict:
    """The report with the whole verdict, and with the added words that are a proof as a backdoor of their own."""
    report["verdict"] = verdict.verdict
    strings = [described(fired) for fired in tried.values() if fired.proven]
    if strings:
        trigger, target = {"strings": strings, "embedding": None}, {"texts": [], "images": None}
        report["backdoors"].append({"kind": KIND, "trigger": trigger, "target": target, "files": {}})
        if len(report["backdoors"]) == 1:
            report |= {"trigger": trigger, "target": target}
    return report
