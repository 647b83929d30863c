"""A seeded fuzzer: whatever is in a model folder, the scan accepts it or says one sentence, soon and within bounds.

What it accepts without a doubt, transformers loads to the same features and reads to the same tokens.  Nothing is executed or
fetched.  mutants.py makes the mutants; AMBER_FUZZ_MUTANTS=4000 makes more of them, AMBER_FUZZ_SEED=6 others, and
AMBER_FUZZ_ONLY=137 the one of this number alone.  AMBER_FUZZ_COMMANDS=20 runs more of them through the command line.
"""

import os
import socket
import time
import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from mutants import CANARY, make_mutant, write_bases
from transformers import AutoModel, AutoTokenizer, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES
from typed import typed

import main
from Utils.basics.bounded import Limits, at_stage, run_bounded
from Utils.basics.errors import InputError
from Utils.encoder.doubts import Trust, doubts_about
from Utils.encoder.loading import load_encoder, quiet_libraries
from Utils.encoder.numbers import formats_in_doubt, formats_of
from Utils.encoder.text_encoder import TextEncoder, attended_positions
from Utils.intake.candidates import encoders_of
from Utils.intake.weights import weight_files

ROOT = Path(main.__file__).resolve().parent
MUTANTS = int(os.environ.get("AMBER_FUZZ_MUTANTS", "400"))
SEED = int(os.environ.get("AMBER_FUZZ_SEED", "5"))
ONLY = os.environ.get("AMBER_FUZZ_ONLY")
COMMANDS = int(os.environ.get("AMBER_FUZZ_COMMANDS", "6"))
AT_ONCE = 100
"""Mutants that one child works through: a death or a hang costs so many, and names the one that did it."""
LIMITS = Limits(memory_mb=1000, seconds=120, reading_seconds=60)
SLOWEST = 10
"""Seconds for one mutant, all loaders included; the slowest takes about one."""
PROMPTS = ["a photo of a dog", "two birds"]
TEXTS = [*PROMPTS, "", "A  DOG's 12 caf\u00e9s, e\u0301! <|endoftext|> x", " </s> [SEP] \u200bdog\n" + "aeiou " * 9]


@pytest.fixture(scope="module")
def bases(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_bases(tiny_folder, tmp_path_factory.mktemp("bases"))


# ------------------------------------------------------------------------------------------------------------- the oracle
def outcome(model: Path) -> tuple[str, list[str]]:
    """What the scan says of a model, and how other loaders disagree with it on what it accepted.

    "unusable": it was accepted, and nothing else loads it or reads a text with it.
    """
    ends, wrong = [], []
    try:
        for name in encoders_of(str(model)):
            encoder = load_encoder(name)
            if doubts_about(encoder, Trust())[1] or formats_in_doubt(formats_of(encoder, PROMPTS)):
                ends.append("doubted")
                continue
            differing = [features_differ(encoder), tokens_differ(encoder)]
            ends.append("unusable" if None in differing else "accepted")
            wrong += [sentence for found in differing for sentence in found or ()]
    except InputError as refused:
        ends.append("refused")
        message = str(refused)
        if not message.endswith(".") or "\n" in message.replace(str(model), "") or len(message) > 1500:
            wrong.append(f"is refused with more or less than a sentence: {message!r}")
    return next(end for end in ("refused", "doubted", "unusable", "accepted") if end in ends), wrong


@torch.no_grad()
def features_differ(encoder: TextEncoder) -> list[str] | None:
    """How what transformers takes from the same folder differs; None where nothing is taken."""
    parts, ids = encoder.files.parts, encoder.ids(PROMPTS)
    first, variant = weight_files(parts.weights)
    if parts.file not in (None, first.name):
        return []  # it takes other weights of this folder, which have a report of their own
    hidden = {"attention_mask": attended_positions(ids, encoder.eos).long()} if encoder.family.masks else {}
    # AutoModel has no class for some towers that stand alone, and imports all others to say so
    loader = AutoModel if encoder.model.config.model_type in MODEL_MAPPING_NAMES else encoder.family.tower
    try:
        theirs = loader.from_pretrained(
            parts.weights, local_files_only=True, trust_remote_code=False, dtype=torch.float32, variant=variant
        )
        out = _tower(theirs)(input_ids=ids, return_dict=True, **hidden)
    except Exception:  # nobody can use it, so nobody uses another one
        return None
    pairs = [("features", out.last_hidden_state, encoder(ids))]
    if encoder.family.head:
        pairs.append(("summaries", out.pooler_output, encoder.pooled(ids)))
    return [f"has other {what} in {loader.__name__}" for what, a, b in pairs if not _near(a, b)]


def _near(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=1e-4, rtol=1e-4, equal_nan=True)


def _tower(model: PreTrainedModel) -> torch.nn.Module:
    return model.encoder if model.config.model_type == "t5" else getattr(model, "text_model", model)


def tokens_differ(encoder: TextEncoder) -> list[str] | None:
    """How AutoTokenizer reads texts otherwise; None where it reads none, or the scan would say that it cannot."""
    try:
        theirs = AutoTokenizer.from_pretrained(encoder.files.parts.tokenizer, local_files_only=True, trust_remote_code=False)
        rows = theirs(TEXTS, padding="max_length", truncation=True, max_length=encoder.context).input_ids
        ours = encoder.ids(TEXTS).tolist()
    except BaseException:  # Rust panics are no Exception
        return None
    return [f"reads {text!r} otherwise: {a}, {b}" for text, a, b in zip(TEXTS, rows, ours, strict=True) if a != b][:1]


def try_mutants(bases: list[str], place: str, numbers: list[int]) -> dict:
    """A child's job.  -> what became of each kind, seconds of the slowest, what was wrong"""
    fetched = []

    def refuse(*address: object) -> None:
        fetched.append(address)
        raise OSError("no network in a test")

    socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse
    quiet_libraries()
    ends, wrong, slowest, canary = Counter(), [], 0.0, Path(place) / CANARY
    for number in numbers:
        kind, what = make_mutant([Path(base) for base in bases], Path(place), SEED, number)
        at_stage(f"{number} {what}")
        start = time.monotonic()
        try:
            end, differing = outcome(Path(place) / "model")
        except BaseException:
            end, differing = "died", [traceback.format_exc()]
        seconds = time.monotonic() - start
        slowest = max(slowest, seconds)
        ends[f"{kind} {end}"] += 1
        wrong += [f"{number} {kind}: {what} {sentence}" for sentence in differing]
        wrong += [f"{number} {kind}: {what} takes {seconds:.0f} s"] * (seconds > SLOWEST)
        wrong += [f"{number} {kind}: {what} is executed"] * canary.exists() + [f"{number}: {what} fetches {a}" for a in fetched]
        fetched.clear()
    return {"ends": ends, "slowest": slowest, "wrong": wrong}


# -------------------------------------------------------------------------------------------------------------- in process
def test_every_mutant_is_refused_with_one_sentence_or_loads_to_the_same_everywhere(bases: list[Path], tmp_path: Path):
    """In children of bounded memory and time: a hang or a death fails the test and names the mutant."""
    place, sources = tmp_path / "place", [str(base) for base in bases]
    place.mkdir()
    assert [outcome(base) for base in bases] == [("accepted", [])] * len(bases)  # children then find all imported
    numbers = [int(ONLY)] if ONLY else list(range(MUTANTS))
    began, ends, wrong, slowest = time.monotonic(), Counter(), [], 0.0
    for first in range(0, len(numbers), AT_ONCE):
        part = numbers[first : first + AT_ONCE]
        try:
            told = run_bounded(try_mutants, (sources, str(place), part), LIMITS, f"mutants from {part[0]}", debug=bool(ONLY))
        except InputError as ended:  # a child's end is a finding like others
            wrong.append(str(ended))
            continue
        ends.update(told["ends"])
        wrong += told["wrong"]
        slowest = max(slowest, told["slowest"])
    seconds = time.monotonic() - began
    print(f"{len(numbers)} mutants in {seconds:.0f} s, the slowest {slowest:.2f} s: {dict(sorted(ends.items()))}")
    print("\n".join(wrong))
    assert wrong == []
    assert sum(ends.values()) == len(numbers)
    assert ONLY or {end.rpartition(" ")[2] for end in ends} >= {"accepted", "doubted", "refused"}


@pytest.mark.parametrize("name", ["clip_text", "clip", "siglip", "bert", "roberta", "mpnet", "distilbert", "t5"])
def test_the_oracle_accepts_what_is_healthy_and_sees_what_differs(bases: list[Path], name: str):
    encoder = load_encoder(next(base for base in bases if base.name == name))
    assert features_differ(encoder) == tokens_differ(encoder) == []
    encoder.model.get_input_embeddings().weight.data += torch.arange(encoder.width)
    assert features_differ(encoder)
    encoder.tokenizer.backend_tokenizer.normalizer = None
    encoder.tokenizer.backend_tokenizer.pre_tokenizer = None
    assert tokens_differ(encoder)


# -------------------------------------------------------------------------------------------------------- the command line
STEPS = (
    "--prompts", "24", "--rounds", "1", "--steps", "3", "--pooled-steps", "0", "--trigger-searches", "0",
    "--landscape-points", "3", "--restarts", "1",
)  # fmt: skip


def test_mutants_end_the_command_line_with_a_verdict_or_one_sentence(bases: list[Path], tiny_folder: Path, tmp_path: Path):
    """The command line ends every kind of mutant with an exit code and, where there is no verdict, one sentence.

    What becomes of a mutant is shown above; this shows that nothing of it gets lost on the way out.
    """
    ends = []
    for number in range(COMMANDS):
        place = tmp_path / f"mutant{number}"
        place.mkdir()
        mutant, copy = make_mutant(bases, place, 6, number), place / "model"
        where = "--model", str(copy), "--anchor", str(tiny_folder), "--output", str(place / "out")
        ends.append((mutant, copy, typed(*where, *STEPS, "--device", "cpu", "--quiet", timeout=120)))
    assert len(ends) == COMMANDS
    for mutant, copy, done in ends:
        assert done.returncode in (2, 3), (mutant, done.stderr)
        assert "Traceback" not in done.stderr, (mutant, done.stderr)
        assert done.returncode == 3 or done.stderr.startswith("amber: "), (mutant, done.stderr)
        assert len(done.stderr.strip().splitlines()) == (done.returncode == 2), (mutant, done.stderr)
        assert not copy.with_name(CANARY).exists(), mutant
