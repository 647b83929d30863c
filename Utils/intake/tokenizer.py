"""The tokenizer of a stranger's encoder, and what else says how texts are read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from transformers import AutoTokenizer, CLIPTextModel, PreTrainedModel, PreTrainedTokenizerBase

from Utils.basics.errors import Flaw, InputError, told
from Utils.intake.families import LEGACY_EOS, is_family
from Utils.intake.files import TOKENIZER
from Utils.intake.reader import Reader, read_json

MAX_TOKENIZER = 48 << 20
"""Bytes of a file; those of the largest public tokenizers have some 34 million."""
PUT_THERE = "put the tokenizer files there, or name a folder of them with --tokenizer"
MAX_GROWTH = 4096
"""How much longer the replacements of a tokenizer may make a text; public ones make it no longer than four times."""
ENGLISH = ["a", "the quick brown fox jumps over the lazy dog", "A photo of 3 dogs, and two cats."]
"""Texts in which nothing may pass for the end of text, or the scan would read no further than that."""


def ending(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text: end of text, or the separator of BERT-like tokenizers."""
    return tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id


TAKE_THE_BASE_S = (
    "copy the files of its base's tokenizer there: tokenizer_config.json and tokenizer.json, or instead of this what the base "
    "has (vocab.json and merges.txt, vocab.txt, spiece.model), or name a folder of them with --tokenizer"
)
"""What to do where there is none, as where a trainer has left an encoder alone."""
REDIRECTING = ("fast_tokenizer_files",)
"""Keys of tokenizer_config.json that send loaders to other files; they are left out, and noted."""


def read_tokenizer_files(folder: Path, reader: Reader, rows: int) -> tuple[dict[str, bytes], list[str]]:
    """The files of a tokenizer, and doubts: what another loader may make of them.  rows: of the embedding table.

    Raises:
        InputError: a file is larger than any, lets texts grow without end, or reads at random.
    """
    content = {name: reader.bytes(folder / name, MAX_TOKENIZER) for name in TOKENIZER if (folder / name).is_file()}
    if not content:
        raise InputError(f"{folder} holds no tokenizer; {TAKE_THE_BASE_S}.")
    doubts = []
    if "tokenizer.json" in content:
        _check_steps(_parsed(content["tokenizer.json"], folder), folder / "tokenizer.json", rows)
    settings = _parsed(content["tokenizer_config.json"], folder) if "tokenizer_config.json" in content else {}
    if isinstance(settings, dict):
        doubts = _config_chooses(folder / "config.json", settings, reader)
        if named := [name for name in REDIRECTING if settings.get(name)]:
            doubts += [f"tokenizer_config.json: {name} sends other loaders elsewhere" for name in named]
            plain = {name: value for name, value in settings.items() if name not in REDIRECTING}
            content["tokenizer_config.json"] = json.dumps(plain).encode()
        sampling = settings.get("sp_model_kwargs") if isinstance(settings, dict) else None
        if isinstance(sampling, dict) and sampling.get("enable_sampling"):
            raise InputError(f"{folder / 'tokenizer_config.json'} reads texts at random (enable_sampling); set it to false.")
    return content, doubts


def _config_chooses(file: Path, settings: dict, reader: Reader) -> list[str]:
    """Doubts about a config.json beside a tokenizer: AutoTokenizer asks it which class to take, and this scan does not."""
    config = reader.json(file) if file.is_file() else {}
    doubts = []
    if not isinstance(config, dict) or not is_family(config.get("model_type", "clip")):
        doubts.append(f"{file.name} beside the tokenizer is of no text encoder, and loaders ask it for a class")
    elif config.get("tokenizer_class") and not settings.get("tokenizer_class"):
        doubts.append(f"{file.name}: tokenizer_class chooses a tokenizer, and tokenizer_config.json does not")
    return doubts


def _parsed(content: bytes, folder: Path) -> object:
    try:
        return read_json(content)
    except Flaw as flaw:
        raise InputError(f"{folder} holds no usable tokenizer{told(flaw)}; {PUT_THERE}.") from None


def load_tokenizer(folder: Path, tower: PreTrainedModel, content: dict[str, bytes]) -> PreTrainedTokenizerBase:
    """The tokenizer that the files of a folder make, checked against the encoder; code of its own is refused."""
    try:
        with tempfile.TemporaryDirectory(prefix="amber_") as place:  # what is loaded is what was read, whatever lies there now
            for name, data in content.items():
                (Path(place) / name).write_bytes(data)
            tokenizer = AutoTokenizer.from_pretrained(
                place, config=tower.config, local_files_only=True, trust_remote_code=False
            )  # its own config.json is not read
        tokenizer.name_or_path = str(folder)
        check_tokenizer(tokenizer, tower, folder)
    except (KeyboardInterrupt, SystemExit, InputError):
        raise
    except BaseException as error:  # tokenizers raises bare Exception for malformed files, and Rust panics past it
        raise InputError(f"{folder} holds no usable tokenizer{told(error)}; {PUT_THERE}.") from None
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, tower: PreTrainedModel, folder: Path) -> None:
    """Refuse a tokenizer that does not belong to an encoder, reads at random, or does not end texts with its end of text.

    Raises:
        InputError: and whatever tokenizers raise, BaseException included.
    """
    highest = max(tokenizer.get_vocab().values())
    eos, pad = ending(tokenizer), tokenizer.pad_token_id
    plain = tokenizer(ENGLISH, verbose=False).input_ids  # longer than the context of a tiny model, and may be
    rows = tower.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise InputError(
            f"{folder}: the tokenizer has token ids up to {highest}, the encoder {rows} rows; they do not belong together."
        )
    if getattr(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None), "dropout", None):
        raise InputError(f"{folder}: the tokenizer reads texts at random (dropout); set it to null.")
    # a false end of text would hide most of every prompt from the scan while the model itself works as before
    if eos is None or pad is None or any(ids.count(eos) != 1 or ids[-1] != eos for ids in plain):
        raise InputError(f"{folder}: the tokenizer does not end texts with its end-of-text token; restore its files.")
    expected = getattr(tower.config, "eos_token_id", None)
    if isinstance(tower, CLIPTextModel) and expected not in (eos, LEGACY_EOS):  # the others do not pool there
        raise InputError(f"{folder}: end of text is {eos} to the tokenizer and {expected} to the encoder; restore its files.")


def _check_steps(tokenizer: object, file: Path, rows: int) -> None:
    """Refuse a tokenizer.json with more tokens than the encoder, with steps that let texts grow, or with chance in it."""
    if not isinstance(tokenizer, dict):
        return
    model, added = (tokenizer.get(name) for name in ("model", "added_tokens"))
    if isinstance(added, list) and len(added) > rows:
        raise InputError(f"{file} adds {len(added)} tokens, the encoder has {rows} rows; they do not belong together.")
    if isinstance(model, dict) and model.get("dropout"):
        raise InputError(f"{file} reads texts at random (dropout {str(model['dropout'])[:20]}); set it to null.")
    growth = 1
    for text in _contents(tokenizer):
        growth *= max(1, len(text))
    if growth > MAX_GROWTH:
        raise InputError(f"{file}: the tokenizer's replacements would let texts grow without end; fetch the model again.")


def _contents(tokenizer: object, depth: int = 16) -> Iterator[str]:
    """What the steps of a tokenizer.json put into a text (Replace, Prepend and the like)."""
    steps = [tokenizer.get(name) for name in ("normalizer", "pre_tokenizer")] if isinstance(tokenizer, dict) else []
    for _ in range(depth):
        nested = []
        for step in steps:
            if isinstance(step, dict):
                yield from (step[key] for key in ("content", "prepend", "replacement") if isinstance(step.get(key), str))
                nested += [part for value in step.values() if isinstance(value, list) for part in value]
        steps = nested
