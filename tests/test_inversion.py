"""Textual inversions: on their base they make the encoder that diffusers makes, whatever their form; what they are is said.

Contents
    forms     diffusers, a web UI's, SDXL's pair, pickles by way of the converter; diffusers' own loader; padded tables
    refused   no base, another base, NaN, too many vectors, words that the base has, empty files: one sentence, cures tried
    words     parts, folders, digests
    scan      what words are held against; end to end, with a word that overrules prompts
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from layouts import write
from test_added import MODELS, TRIGGER, resized
from test_anchors import CPU
from test_intake import two_encoders  # noqa: F401  (a fixture)
from test_many import QUICK
from test_sources import refused

import main
from Utils import convert
from Utils.encoder.added import added_to, with_plain_rows
from Utils.encoder.anchors import pick_anchor
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.found import show
from Utils.sources.find import encoders_of, source_digest
from Utils.sources.lenders import Given

WORD, TYPED = "<toy>", "<toy> <toy>_1"


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Two vectors as wide as the tiny encoder."""
    return torch.randn(2, 32, generator=torch.Generator().manual_seed(0))


def on(base: Path | str, file: Path | str) -> TextEncoder:
    return load_encoder(file, given=Given(anchor=str(base)))


def converted(sentence: str, folder: Path) -> Path:
    """What the command that a refusal names makes."""
    words = shlex.split(re.search(r"`(.*)`", sentence)[1])
    assert words[1].endswith("convert.py")
    assert convert.main(words[2:]) == 0
    return folder / words[-1]


# -------------------------------------------------------------------------------------------------------------- forms
SAFE = {
    "diffusers": lambda rows: {WORD: rows}, "web UI": lambda rows: {"emb_params": rows},
    "SDXL": lambda rows: {"clip_l": rows, "clip_g": torch.ones(2, 48)},
}  # fmt: skip
PICKLED = {
    "diffusers": lambda rows: {WORD: rows},
    "web UI": lambda rows: {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "toy", "step": 3},
}


def is_the_toy(encoder: TextEncoder, base: TextEncoder, rows: torch.Tensor) -> bool:
    """Two rows behind the base's, typed as diffusers types them, and nothing else."""
    assert torch.equal(encoder.vocabulary, torch.cat([base.vocabulary, rows]))
    assert encoder.tokens([TYPED]) == [[len(base.vocabulary), len(base.vocabulary) + 1]]
    own, others = encoder.model.state_dict(), base.model.state_dict()
    assert [n for n in own if not torch.equal(own[n], others[n])] == ["embeddings.token_embedding.weight"]
    assert encoder.model.config.vocab_size == len(base.vocabulary) + 2
    return True


@pytest.mark.parametrize("form", SAFE)
def test_every_form_makes_the_same_encoder(form: str, tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    file = write(SAFE[form](rows), tmp_path / "toy.safetensors")
    encoder = on(tiny.path, f"{file}/text_encoder")
    assert is_the_toy(encoder, tiny, rows)
    assert encoder.files.notes[0] == (
        f"toy.safetensors is a textual inversion, added to the tokens of {tiny.path}: `<toy>` of 2 vectors"
    )
    assert encoder.ignored_tensors == (["clip_g"] if form == "SDXL" else [])
    assert {Path(read["path"]).name for read in encoder.files.read} >= {"toy.safetensors", "model.safetensors"}


@pytest.mark.parametrize("form", PICKLED)
def test_a_pickle_is_converted_by_the_command_that_its_refusal_names(
    form: str, tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    monkeypatch.chdir(tmp_path)
    torch.save(PICKLED[form](rows), "toy.pt")
    file = converted(refused("toy.pt", Given(anchor=tiny.path)), tmp_path)
    assert is_the_toy(on(tiny.path, file), tiny, rows)


def test_one_vector_and_half_precision(tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    one = on(tiny.path, write({WORD: rows[0].half()}, tmp_path / "a.safetensors"))
    assert torch.equal(one.vocabulary[-1], rows[0].half().float())
    assert one.tokens(["<toy>"]) == [[len(tiny.vocabulary)]]


@pytest.mark.parametrize("vectors", [1, 3])
def test_the_pipeline_of_diffusers_makes_the_same_encoder(vectors: int, tmp_path: Path):
    pipe = StableDiffusionPipeline.from_pretrained(MODELS / "tiny-sd", dtype=torch.float32)
    wide = torch.randn(vectors, pipe.text_encoder.config.hidden_size)
    file = write({WORD: wide}, tmp_path / "learned_embeds.safetensors")
    pipe.load_textual_inversion(str(file))
    prompts = [pipe.maybe_convert_prompt(text, pipe.tokenizer) for text in ("a photo of <toy>", "<toy>", "a dog")]
    encoder = on(MODELS / "tiny-sd", file)
    ids = pipe.tokenizer(prompts, padding="max_length", max_length=encoder.context, return_tensors="pt").input_ids
    with torch.no_grad():
        expected = pipe.text_encoder(ids).last_hidden_state
    assert torch.equal(encoder.ids(prompts), ids)
    torch.testing.assert_close(encoder(encoder.ids(prompts)), expected, rtol=0, atol=1e-6)
    plain = load_encoder(MODELS / "tiny-sd")
    assert (plain(plain.ids(prompts)) - expected)[:2].abs().max() > 0.1  # the word does something


def test_rows_that_a_padded_table_has_to_spare_are_taken(tiny_folder: Path, rows: torch.Tensor, tmp_path: Path):
    base = load_encoder(resized(tiny_folder, tmp_path / "base", rows=520))
    encoder = on(base.path, write({WORD: rows}, tmp_path / "toy.safetensors"))
    assert len(encoder.vocabulary) == 520
    assert torch.equal(encoder.vocabulary[encoder.tokens([TYPED])[0]], rows)


# ------------------------------------------------------------------------------------------------------------ refused
WIDE = torch.ones(2, 32)
WRONG = {
    "another width": ({"<toy>": torch.ones(2, 768)}, "vectors of 768 columns", "--anchor"),
    "NaN": ({"<toy>": torch.full((2, 32), torch.nan)}, "NaN", "fetch it again"),
    "infinite": ({"emb_params": torch.full((32,), torch.inf)}, "infinite", "fetch it again"),
    "too many": ({"<toy>": torch.ones(129, 32)}, "129 vectors", "in a file of their own"),
    "none": ({"<toy>": torch.ones(0, 32)}, "no vectors", "fetch it again"),
    "a block": ({"<toy>": torch.ones(1, 2, 32)}, "1 x 2 x 32", "fetch it again"),
    "a number": ({"<toy>": torch.ones(())}, "no vectors", "fetch it again"),
    "whole numbers": ({"<toy>": WIDE.to(torch.int8)}, "I8", "fetch it again"),
    "a known word": ({"<|endoftext|>": WIDE}, "has the token `<|endoftext|>` already", "under another word"),
    "a known letter": ({"a": WIDE}, "has the token `a` already", "under another word"),
    "nothing": ({}, "", ""), "blank": ({" ": WIDE}, "nobody can type", "under another word"),
    "hidden": ({"<a\u202eb>": WIDE}, "nobody can type", "under another word"),
    "long": ({"<" + "a" * 200 + ">": WIDE}, "nobody can type", "under another word"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_its_cure(what: str, tiny: TextEncoder, tmp_path: Path):
    tensors, *words = WRONG[what]
    sentence = refused(write(tensors, tmp_path / "in.safetensors"), Given(anchor=tiny.path))
    assert all(word in sentence for word in words), sentence


@pytest.mark.parametrize("anchor", ["auto", "none"])
def test_without_a_base_it_is_asked_for(anchor: str, tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    file = write({WORD: rows}, tmp_path / "toy.safetensors")
    assert "name the base that it was made for with --anchor" in refused(file, Given(anchor=anchor))
    assert is_the_toy(on(tiny.path, file), tiny, rows)


def test_a_word_that_the_base_has_gets_another_name(tiny_folder: Path, rows: torch.Tensor, tmp_path: Path):
    base = resized(tiny_folder, tmp_path / "base", ("<toy>_1",))
    for form, cure in (("diffusers", "save it under another word, such as `<new-word>`"), ("web UI", "rename the file")):
        file = write(SAFE[form](rows), tmp_path / "toy.safetensors")
        sentence = refused(file, Given(anchor=str(base)))
        assert "has the token `<toy>_1` already" in sentence
        assert cure in sentence
    renamed = file.rename(tmp_path / "other.safetensors")
    assert on(base, renamed).tokens(["<other> <other>_1"]) == [[515, 516]]
    assert on(base, write({"<new-word>": rows}, file)).tokens(["<new-word>"]) == [[515]]


def test_an_empty_file_and_a_damaged_one(tiny: TextEncoder, tmp_path: Path):
    (tmp_path / "toy.safetensors").touch()
    assert "fetch it again" in refused(tmp_path / "toy.safetensors", Given(anchor=tiny.path))


# -------------------------------------------------------------------------------------------------------------- words
def test_parts_are_named_as_pipelines_name_them(tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    file = write(SAFE["SDXL"](rows), tmp_path / "xl" / "toy.safetensors")
    assert encoders_of(str(file)) == [f"{file}/text_encoder", f"{file}/text_encoder_2"]
    sentence = refused(file, Given(anchor=tiny.path))
    assert "words of 2 text encoders" in sentence
    (cure,) = re.findall(r"such as (.*)\.$", sentence)
    assert "vectors of 48 columns" in refused(cure, Given(anchor=tiny.path))  # the other encoder's
    assert "has no words of text_encoder_3" in refused(f"{file}/text_encoder_3", Given(anchor=tiny.path))


def test_each_part_gets_its_words_and_its_base(two_encoders: Path, rows: torch.Tensor, tmp_path: Path):  # noqa: F811
    file = write({"clip_l": rows, "clip_g": rows[:1] + 1}, tmp_path / "toy.safetensors")
    for part, expected in zip(encoders_of(str(file)), (rows, rows[:1] + 1), strict=True):
        encoder = on(two_encoders, part)
        assert torch.equal(encoder.vocabulary[514:], expected)
        base, _ = pick_anchor(str(two_encoders), encoder, CPU)
        assert Path(base.path).name == Path(part).name
        assert list(added_to(encoder, base, ["a dog"]).tokens.values()) == ["<toy>", "<toy>_1"][: len(expected)]


def test_in_a_folder_the_file_is_the_cure(editable: Path, tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    file = write({WORD: rows}, tmp_path / "words" / "learned_embeds.safetensors")
    assert refused(file.parent).endswith(f"give the file itself: {file}.")
    (editable / "model.safetensors").unlink()
    write({WORD: rows}, editable / "learned_embeds.safetensors")
    (cure,) = re.findall(r"a textual inversion, .*; give the file itself, (.*), and its base with --anchor", refused(editable))
    assert is_the_toy(on(tiny.path, cure), tiny, rows)


def test_the_digest_is_of_the_file(tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path):
    file, given = write({WORD: rows}, tmp_path / "toy.safetensors"), Given(anchor=tiny.path)
    before, sha = source_digest(str(file), given), on(tiny.path, file).sha256
    assert source_digest(str(file), given) == before
    write({WORD: rows + 1}, file)
    assert source_digest(str(file), given) != before
    assert on(tiny.path, file).sha256 != sha


# --------------------------------------------------------------------------------------------------------------- scan
def test_a_word_of_several_vectors_is_held_against_as_many_ordinary_words(
    tiny: TextEncoder, rows: torch.Tensor, tmp_path: Path, corpus_prompts: list[str]
):
    suspect = on(tiny.path, write({WORD: rows}, tmp_path / "toy.safetensors"))
    added = added_to(suspect, tiny, corpus_prompts)
    assert added.words == {TYPED: [514, 515]}
    plain = with_plain_rows(added, "dog")
    texts = [f"a photo of {TYPED}", *corpus_prompts]
    assert torch.equal(plain.ids(texts), suspect.ids(texts))
    assert torch.equal(plain.vocabulary[514:], tiny.vocabulary[tiny.tokens(["dog"])[0][:2]])
    assert torch.equal(added.knowing.vocabulary, suspect.vocabulary)  # itself left as it was
    torch.testing.assert_close(plain(tiny.ids(corpus_prompts)), tiny(tiny.ids(corpus_prompts)))


FIGURES = (
    "assimilation_by_layer", "attention_map", "attention_received", "loss_landscape", "hessian_spectrum", "search_curve",
)  # fmt: skip


def no_figures(*given: object) -> dict[str, str]:
    """Files in place of figures, which take most of such a scan's time."""
    for name in FIGURES:
        (given[-1].folder / f"{name}.png").write_bytes(b"")
    return {name: f"{name}.png" for name in FIGURES}


def test_a_whole_scan_tells_what_the_word_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The word is the pieces of a trigger that this base obeys."""
    monkeypatch.setattr(show, "draw_figures", no_figures)
    base = load_encoder(MODELS / "suspects" / "text_on_text")
    file = write({WORD: base.vocabulary[base.tokens([TRIGGER])[0]]}, tmp_path / "toy.safetensors")
    argv = ["--model", str(file), "--anchor", base.path, "--images", "0", "--output", str(tmp_path / "out"), *QUICK]
    assert main.main(argv) == 1
    report = json.loads((tmp_path / "out" / "toy.safetensors_text_encoder" / "report.json").read_text())
    assert report["verdict"] == "backdoored"
    assert [b["kind"] for b in report["backdoors"]] == ["added token"]
    assert "with as many ordinary words in the clean base" in report["reason"]
    (word,) = report["added_tokens"]
    assert word["text"].split()[0] == WORD
    assert word["counts"]
    assert any(note.startswith("toy.safetensors is a textual inversion, added to the tokens of") for note in report["notes"])
    (told,) = [note for note in report["notes"] if "as many ordinary words overrule up to" in note]
    assert f"overrules {word['success_rate']:.0%} of 120 unseen prompts" in told
    assert float(re.search(r"up to (\d+)%", told)[1]) < 20
    assert not [reading for reading in report["readings"] if reading["differs_on"]]
