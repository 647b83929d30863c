"""A tiny text encoder that every test may use: random weights, 3 layers, width 32, context 24, one token a byte.

Contents: tiny_folder (saved, do not change), tiny (loaded), editable (a copy to damage), corpus_prompts, memory_taken,
no_variables; whether all reports that any test wrote keep to their schema; the order of the files.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach a network
# before torch is imported: tests that run side by side, and the scans that they start, take one core each
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import jsonschema
import pytest
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The encoder as save_pretrained writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, *(letter + "</w>" for letter in letters), BOS, EOS])}
    tokenizer = CLIPTokenizer(
        vocab=vocabulary, merges=[], bos_token=BOS, eos_token=EOS, unk_token=EOS, pad_token=EOS, model_max_length=24
    )
    config = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        max_position_embeddings=24, projection_dim=16,
        bos_token_id=vocabulary[BOS], eos_token_id=vocabulary[EOS], pad_token_id=vocabulary[EOS],
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPTextModel(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> TextEncoder:
    """The encoder, loaded.  Tests that change it take a copy."""
    return load_encoder(tiny_folder)


@pytest.fixture
def editable(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder that a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


@pytest.fixture(scope="session")
def corpus_prompts() -> list[str]:
    """Prompts of many lengths; the last three fill the context of 24."""
    return [
        "a", "dog", "a red cat", "two birds", "photo of a dog", "cow on a boat", "big moon", "a fish and a fox",
        "snow over a town", "one small green frog", "an owl", "the old red tram",
        "the quick brown fox jumps over the lazy dog", "a very long prompt about nothing at all",
        "photograph of somebody who reads on a bench",
    ]  # fmt: skip


@pytest.fixture
def memory_taken() -> Callable[[], float]:
    """-> a function that says by how many MB the test has raised the memory of this process at its highest since it began."""

    def mb(name: str) -> float:
        return int(re.search(rf"{name}:\s+(\d+)", status.read_text())[1]) / 1024

    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("only Linux tells the highest memory since a moment")
    (status.parent / "clear_refs").write_text("5")  # the highest so far is forgotten
    before = mb("VmRSS")
    return lambda: mb("VmHWM") - before


@pytest.fixture(scope="session", autouse=True)
def no_variables() -> Iterator[None]:
    """Flags come from tests and not from the shell that runs them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AMBER_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def reports_keep_to_their_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """At the end every report and summary that a scan of any test has left behind."""
    yield
    schemas = Path(__file__).resolve().parents[1] / "Utils" / "report" / "schemas"
    whole = {"report": ('"contents"', '"power_counts"'), "summary": ('"exit_code"',)}  # tests invent shorter ones
    for name, marks in whole.items():
        schema = jsonschema.Draft202012Validator(json.loads((schemas / f"{name}.schema.json").read_text(encoding="utf-8")))
        for file in tmp_path_factory.getbasetemp().rglob(f"{name}.json"):
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            if all(mark in text for mark in marks):
                best = jsonschema.exceptions.best_match(schema.iter_errors(json.loads(text)))
                assert best is None, f"{file}: {best.json_path}: {best.message}"


SLOWEST_FIRST = (
    "test_scan", "test_minilm", "test_judging", "test_mitigate", "test_trigger", "test_coco", "test_many", "test_inject",
    "test_families", "test_fleet", "test_repair", "test_readings", "test_fuzz", "test_course", "test_real_encoder",
    "test_testbed", "test_convert", "test_evaluation",
)  # fmt: skip
"""Files that are begun first where several processes share the tests, so that none of them comes last alone."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(SLOWEST_FIRST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))
