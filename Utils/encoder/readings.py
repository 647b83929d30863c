"""Does the suspect's tokenizer read texts as the base's does, however it is loaded?

One folder makes several tokenizers: AutoTokenizer's, tokenizer.json word for word, the class that a pipeline names, vocabulary
and merges alone.  Each that differs from the base's is compared with it on the corpus, on the vocabulary, on generated strings
and on those that the serialised tokenizers differ by.  The base is trusted, and its reading is the reference.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path

import transformers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from Utils.basics.errors import InputError, told
from Utils.encoder import probes
from Utils.encoder.loading import check_reading
from Utils.encoder.text_encoder import TextEncoder
from Utils.intake.folders import index_of
from Utils.intake.tokenizer import check_tokenizer

OWN, BASE = "AutoTokenizer", "the base's tokenizer"
CLASSES = {
    "clip": "CLIPTokenizer", "siglip": "SiglipTokenizer", "siglip2": "Siglip2Tokenizer", "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer", "xlm-roberta": "XLMRobertaTokenizer", "mpnet": "MPNetTokenizer",
    "distilbert": "DistilBertTokenizer", "t5": "T5Tokenizer",
}  # fmt: skip
"""Family -> the class that its pipelines load; these classes run no code of a stranger."""
VOCABULARIES = (
    ("vocab.json", "merges.txt"), ("vocab.txt",), ("spiece.model",), ("sentencepiece.bpe.model",), ("tokenizer.model",),
)  # fmt: skip
"""What tokenizers were made of before there was tokenizer.json; loaders without the fast library still take these."""
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
READ_WITH = (
    "pad_token_id", "eos_token_id", "bos_token_id", "sep_token_id", "padding_side", "truncation_side", "split_special_tokens",
)  # fmt: skip
"""What a tokenizer is told beside its serialised form."""
MOST = 10
"""Differences that a report lists."""
RANKED = 3000
"""Differences that are compared in detail."""
FAILURES = 20
"""Texts that a tokenizer may fail on before the rest is not tried."""


@dataclass(frozen=True)
class Maker:
    """One way to load a tokenizer from a folder."""

    name: str
    make: Callable[[str, PreTrainedTokenizerBase], PreTrainedTokenizerBase]
    """(folder, the encoder's own tokenizer) -> tokenizer"""
    without: tuple[str, ...] = ()
    """Files that this loader does not look at."""
    usual: bool = True
    """Whether somebody's loader takes this way, so that there is doubt where it fails."""


@dataclass(frozen=True)
class Form:
    """A tokenizer as some loaders build it."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    maker: Maker | None = None
    """None: the encoder's own."""


@dataclass(frozen=True)
class Difference:
    """A text that is read otherwise than by the base."""

    text: str
    read_as: str
    share: float
    """How much of its ids differs, 0..1."""
    rewritten: bool
    """It says something else now; else the same in other pieces."""

    def __str__(self) -> str:
        return f"reads `{short(self.text)}` as `{short(self.read_as)}`" + ("" if self.rewritten else " (other pieces)")


@dataclass(frozen=True)
class Reading:
    """How one form reads."""

    form: str
    tokenizer: PreTrainedTokenizerBase
    corpus: int = 0
    """Prompts of the corpus that it reads otherwise than the base."""
    differs_on: int = 0
    """Texts, of all that were compared."""
    compared: int = 0
    examples: list[Difference] = field(default_factory=list)
    """Those that differ most."""
    fails: int = 0
    """Prompts of the corpus that it cannot read at all."""
    strings: list[str] = field(default_factory=list)
    """What may be behind them: strings to try as triggers."""


@dataclass(frozen=True)
class Readings:
    """What was found about a tokenizer."""

    differing: list[Reading]
    """The forms that read some text otherwise than the base."""
    reference: Reading
    """The base's own, or the suspect's where there is no base."""
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)

    @property
    def to_judge(self) -> list[Reading]:
        """The reading that the weights are judged in, and those in which the corpus says something else."""
        return [self.reference, *(reading for reading in self.differing if reading.corpus and not reading.fails)]


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."


def read_by(encoder: TextEncoder, tokenizer: PreTrainedTokenizerBase) -> TextEncoder:
    """The same weights with another tokenizer; a fresh object, as much of an encoder is kept once it was asked for."""
    return replace(encoder, tokenizer=tokenizer)


# ------------------------------------------------------------------------------------------------------------- the forms
def makers(encoder: TextEncoder) -> list[Maker]:
    """The ways in which users load the tokenizer of an encoder, beside AutoTokenizer."""
    files = encoder.files.tokenizer
    named, usual = _named_class(encoder), _family_class(encoder)
    found = []
    if "tokenizer.json" in files:
        found += [Maker("tokenizer.json", _word_for_word), Maker("PreTrainedTokenizerFast", _with_settings)]
    # a pipeline's class is what users load; the family's they may
    found += [Maker(name, partial(_of_class, name), usual=name == named) for name in dict.fromkeys((named, usual)) if name]
    for group in VOCABULARIES:
        if "tokenizer.json" in files and all(name in files for name in group):
            others = tuple(name for others in VOCABULARIES if others != group for name in others)
            make = partial(_of_class, named or usual) if named or usual else _with_settings
            found.append(Maker(" and ".join(group), make, ("tokenizer.json", *others)))
    return found


def _word_for_word(folder: str, own: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    names = {name: value for name, value in own.special_tokens_map.items() if isinstance(value, str)}
    return PreTrainedTokenizerFast(
        tokenizer_file=str(Path(folder) / "tokenizer.json"), model_max_length=own.model_max_length, **names
    )


def _with_settings(folder: str, _: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)


def _of_class(name: str, folder: str, _: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    return getattr(transformers, name).from_pretrained(folder, local_files_only=True)


def _named_class(encoder: TextEncoder) -> str | None:
    """The class that model_index.json names for the tokenizer, if it is one that we know."""
    parts = encoder.files.parts
    if not (parts.root / "model_index.json").exists():
        return None
    entry = index_of(parts.root).get(parts.tokenizer.name)
    name = entry[1] if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[1], str) else ""
    name = name.removesuffix("Fast")
    return name if name in CLASSES.values() else None


def _family_class(encoder: TextEncoder) -> str | None:
    kind = encoder.model.config.model_type
    return CLASSES.get(kind) or CLASSES.get(kind.removesuffix("_text_model"))


def built(maker: Maker, encoder: TextEncoder) -> PreTrainedTokenizerBase:
    """A tokenizer made from the files that were read, in a folder of our own, and checked against the encoder.

    Raises:
        InputError: it cannot be made or does not fit.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="amber_") as place:
            for name, data in encoder.files.tokenizer.items():
                if name not in maker.without:
                    (Path(place) / name).write_bytes(data)
            tokenizer = maker.make(place, encoder.tokenizer)
        check_tokenizer(tokenizer, encoder.model, encoder.files.parts.tokenizer)
        check_reading(read_by(encoder, tokenizer), encoder.files.parts.tokenizer)
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for malformed files, and Rust panics past it
        raise InputError(f"the files make none{told(error)}") from None
    return tokenizer


def forms(encoder: TextEncoder, anchor: TextEncoder | None = None) -> tuple[list[Form], list[str]]:
    """Every tokenizer that users' loaders make of a folder, the encoder's own first, those that are one as one; and doubts.

    anchor: what cannot be made of its files either says nothing about the suspect.
    """
    found, states, doubts = [Form(OWN, encoder.tokenizer)], [state(encoder.tokenizer)], []
    for maker in makers(encoder) if encoder.files else []:
        try:
            tokenizer = built(maker, encoder)
        except InputError as error:
            if (maker.usual and not _alike_files(maker, encoder, anchor)) or (anchor and same_form(maker, anchor)):
                doubts.append(f"its tokenizer is of no use when loaded as {maker.name} ({error})")
            continue
        said = state(tokenizer)
        if said in states:
            i = states.index(said)
            found[i] = replace(found[i], name=f"{found[i].name}, {maker.name}")
        else:
            found.append(Form(maker.name, tokenizer, maker))
            states.append(said)
    return found, doubts


def same_form(maker: Maker, anchor: TextEncoder) -> PreTrainedTokenizerBase | None:
    """What a loader makes of the base's files; None: nothing."""
    try:
        return built(maker, anchor) if anchor.files else None
    except InputError:
        return None


def _alike_files(maker: Maker, encoder: TextEncoder, anchor: TextEncoder | None) -> bool:
    """Whether a loader finds in the anchor's folder what it finds in the suspect's."""
    if not (anchor and anchor.files):
        return False
    return all(
        anchor.files.tokenizer.get(name) == data
        for name, data in encoder.files.tokenizer.items()
        if name not in (*maker.without, *SETTINGS)
    )


def state(tokenizer: PreTrainedTokenizerBase) -> dict:
    """All that a tokenizer's reading depends on, in one order; how it was last told to cut and pad is not."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    said = {"vocab": tokenizer.get_vocab()} if backend is None else json.loads(backend.to_str())
    said = {name: value for name, value in said.items() if name not in ("truncation", "padding", "version", "decoder")}
    said["added_tokens"] = sorted(said.get("added_tokens") or [], key=lambda token: (token["id"], token["content"]))
    return said | {"settings": {name: getattr(tokenizer, name, None) for name in READ_WITH}}


# ------------------------------------------------------------------------------------------------------------ comparing
def read(tokenizer: PreTrainedTokenizerBase, texts: list[str], context: int, size: int = 1000) -> list[tuple[int, ...] | None]:
    """Token ids of texts, cut to the context; None: it fails on this one."""
    options = {"truncation": True, "max_length": context, "return_attention_mask": False, "verbose": False}
    rows, failed = [], 0
    todo = [texts[start : start + size] for start in range(0, len(texts), size)][::-1]
    while todo:
        part = todo.pop()
        try:
            if failed <= FAILURES:
                rows += [tuple(ids) for ids in tokenizer(part, **options).input_ids]
                continue
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # Rust panics past Exception
            if len(part) > 1:  # one of them, and which?
                half = len(part) // 2
                todo += [part[half:], part[:half]]
                continue
            failed += 1
        rows += [None] * len(part)
    return rows


def compare(suspect: TextEncoder, anchor: TextEncoder | None, prompts: list[str], used: int) -> Readings:
    """Compare every form of the suspect's tokenizer with the base's, or with each other where there is no base.

    prompts: all at hand, of which the first `used` are the corpus.
    """
    found, doubts = forms(suspect, anchor)
    comparison = Comparison(anchor or suspect, prompts, used, trusted=anchor is not None)
    reference = Reading(BASE if anchor else found[0].name, comparison.tokenizer)
    differing, notes = [], []
    for form in found if anchor else found[1:]:
        reading = comparison.of(form)
        if reading.differs_on:
            differing.append(reading)
        elif reading.compared > used:
            notes.append(f"the tokenizer ({form.name}) is written otherwise than the base's, and reads all texts tried alike")
    if not anchor:
        doubts += [f"its tokenizer loaded as {r.form} {r.examples[0]}, unlike {OWN}" for r in differing]
        return Readings([], reference, notes, doubts)
    doubts += [f"its tokenizer loaded as {r.form} fails on {r.fails} prompts" for r in differing if r.fails]
    for reading in differing:
        notes.append(
            f"the tokenizer ({reading.form}) reads {reading.differs_on} of {reading.compared} texts otherwise than the base's, "
            f"{reading.corpus} of {used} prompts of the corpus among them"
        )
        notes += [f"the tokenizer ({reading.form}) {example}" for example in reading.examples]
    return Readings(differing, reference, notes, doubts)


class Comparison:
    """Tokenizers against the one of the base, each text of which is read once."""

    def __init__(self, base: TextEncoder, prompts: list[str], used: int, trusted: bool):
        self.base, self.prompts, self.used, self.trusted = base, prompts, used, trusted
        self.tokenizer, self.context, self.state = base.tokenizer, base.context, state(base.tokenizer)
        self._rows: dict[str, tuple[int, ...] | None] = {}

    def of(self, form: Form) -> Reading:
        """How a form reads: the corpus only if it is the base's own tokenizer once more."""
        said = state(form.tokenizer)
        if said == self.state:
            texts, mined = self.prompts[: self.used], []
        else:
            mined = probes.mined(said, self.state)
            texts = list(dict.fromkeys([*self.prompts, *self._further(form.tokenizer), *probes.in_prompts(mined)]))
        told = dict(zip(texts, read(form.tokenizer, texts, self.context), strict=True))
        pads = [said["settings"][name] for name in ("pad_token_id", "padding_side")]
        padded = pads != [self.state["settings"][name] for name in ("pad_token_id", "padding_side")]
        texts_of = {text: ids for text, ids in self.known(texts) if told[text] != ids}
        # what a loader makes of the base's files too is nothing of the suspect's
        if texts_of and self.trusted and form.maker and (same := same_form(form.maker, self.base)):
            again = zip(texts_of, read(same, list(texts_of), self.context), strict=True)
            alike = {text for text, ids in again if ids == told[text]}
            texts_of = {text: ids for text, ids in texts_of.items() if text not in alike}
        corpus = [text for text in self.prompts[: self.used] if padded or text in texts_of]
        fails = sum(told[text] is None for text in corpus)
        examples = self._examples(form.tokenizer, texts_of, told)
        if padded:  # behind every text
            examples.insert(0, Difference("(padding)", _decoded(self.tokenizer, [form.tokenizer.pad_token_id]), 1.0, True))
        strings = dict.fromkeys([*(d.text for d in examples), *mined, *(text for text in texts_of if len(text) < 30)])
        counts = len(corpus), len(texts) if padded else len(texts_of), len(texts)
        return Reading(form.name, form.tokenizer, *counts, self._listed(examples), fails, list(strings))

    def known(self, texts: list[str]) -> Iterable[tuple[str, tuple[int, ...] | None]]:
        """Texts with the base's reading of them."""
        new = [text for text in texts if text not in self._rows]
        self._rows |= zip(new, read(self.tokenizer, new, self.context), strict=True)
        return ((text, self._rows[text]) for text in texts)

    def _further(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
        """Every token's text, generated strings, and special tokens in prompts."""
        for one in (self.tokenizer, tokenizer):
            yield from token_texts(one)
        strings = probes.generated()
        yield from strings
        yield from (probes.AROUND[1].replace("{}", s) for s in strings)
        yield from probes.odd_prompts(sorted(self.prompts, key=len)[:: max(1, len(self.prompts) // 30)])
        special = [t for one in (self.tokenizer, tokenizer) for t in (*one.all_special_tokens, *one.get_added_vocab())]
        yield from probes.in_prompts(list(dict.fromkeys(special))[:200])

    def _difference(self, tokenizer: PreTrainedTokenizerBase, text: str) -> Difference | None:
        """How one text is read otherwise, if it is."""
        (own,), ((_, reference),) = read(tokenizer, [text], self.context), self.known([text])
        return None if own == reference else self._described(text, own, reference)

    def _described(self, text: str, own: tuple[int, ...] | None, reference: tuple[int, ...] | None) -> Difference:
        if own is None or reference is None:
            return Difference(text, "nothing: it fails", 1.0, True)
        special = set(self.tokenizer.all_special_ids)
        inner = [[i for i in ids if i not in special] for ids in (own, reference)]
        said = [_decoded(self.tokenizer, ids) for ids in inner]
        share = 1 - SequenceMatcher(None, *inner, autojunk=False).ratio() if inner[0] != inner[1] else 1 / max(1, len(own))
        plain = [text.replace(" ", "") for text in said]
        if self.context in (len(own), len(reference)):  # other pieces leave other ends of a text that is cut
            plain = [text[: min(map(len, plain))] for text in plain]
        rewritten = plain[0] != plain[1]
        return Difference(text, said[0] if rewritten else _pieces(self.tokenizer, inner[0]), share, rewritten)

    def _examples(self, tokenizer: PreTrainedTokenizerBase, differing: dict, told: dict) -> list[Difference]:
        """The texts whose ids differ most, cut down to what makes them differ."""
        texts = sorted(differing, key=len)
        texts = texts[: RANKED // 2] + texts[RANKED // 2 :: max(1, len(texts) // RANKED)]
        found = sorted((self._described(t, told[t], differing[t]) for t in texts), key=_rank)
        cut = [self._cut_down(tokenizer, difference) for difference in found[: 3 * MOST]]
        return sorted({d.text: d for d in [*cut, *found]}.values(), key=_rank)

    def _listed(self, found: list[Difference]) -> list[Difference]:
        """The first of a ranking that do not all say the same."""
        listed, seen = [], {}
        for difference in found:
            seen[difference.read_as] = seen.get(difference.read_as, 0) + 1
            if seen[difference.read_as] <= 3:
                listed.append(difference)
            if len(listed) == MOST:
                break
        return listed

    def _cut_down(self, tokenizer: PreTrainedTokenizerBase, difference: Difference) -> Difference:
        """The same without the words, and the letters, that do not make it differ."""
        for sign in (" ", ""):
            best = difference
            parts = best.text.split(sign) if sign else list(best.text)
            size = len(parts) // 2 if len(parts) <= 100 else 0
            while size:
                for start in range(len(parts) - size, -1, -size):
                    fewer = parts[:start] + parts[start + size :]
                    less = self._difference(tokenizer, sign.join(fewer)) if fewer else None
                    if less and less.rewritten == difference.rewritten and less.share >= difference.share - 1e-6:
                        parts, best = fewer, less
                size //= 2
            difference = best
            if not difference.rewritten:  # words in other pieces are told best as words
                break
        return difference


def _rank(difference: Difference) -> tuple:
    """What says something else first, then by how much differs; short texts tell most, of other pieces whole words do."""
    length = len(difference.text) if difference.rewritten else abs(len(difference.text) - 8)
    odd = not difference.text.isprintable() or difference.text != difference.text.strip().lower() or not difference.text
    return not difference.rewritten, -round(difference.share), odd, length, difference.text


def _decoded(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    try:
        return " ".join(tokenizer.decode(ids).split())
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        return "tokens " + " ".join(map(str, ids))


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return "|".join(str(token).removesuffix("</w>") for token in tokenizer.convert_ids_to_tokens(ids))


def token_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """What every token of a vocabulary says."""
    numbers = sorted(set(tokenizer.get_vocab().values()))
    try:
        texts = tokenizer.backend_tokenizer.decode_batch([[i] for i in numbers], skip_special_tokens=False)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # no fast library behind it, or a decoder that fails
        texts = [str(token) for token in tokenizer.convert_ids_to_tokens(numbers)]
    return list(dict.fromkeys(text.replace("</w>", "").strip() for text in texts))
