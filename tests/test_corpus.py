"""The prompt corpus: reading, splitting, batching, embedding and the cache.

Contents
    read_prompts   order, blanks, repetitions; what it refuses
    split          disjoint, complete, decided by the generator
    batches        an epoch covers every row once; prompts of like length together
    embed_corpus   features and assimilation are those of single prompts
    cache          a round trip is identical; what is not its own is rebuilt; keys tell encoders apart
"""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from Utils.basics.errors import InputError
from Utils.encoder.corpus import Corpus, batches, embed_corpus, read_prompts, split
from Utils.encoder.loading import load_encoder
from Utils.encoder.measures import assimilation
from Utils.encoder.text_encoder import TextEncoder


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def same(a: Corpus, b: Corpus) -> bool:
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in ("ids", "features", "by_layer", "pooled"))


# ------------------------------------------------------------------------------------------------------- read_prompts
def test_prompts_are_the_first_different_lines(tmp_path: Path):
    file = tmp_path / "prompts.txt"
    file.write_text("a dog\n\n  a cat  \na dog\nein Bär\nan owl\n", encoding="utf-8")
    assert read_prompts(file, 3) == ["a dog", "a cat", "ein Bär"]


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "cannot be read"), (b"a dog\n\xff\xfe\n", "UTF-8"), (b"", "0 different"), (b"a\n\na\n \nb\n", "2 different")],
)
def test_a_prompt_file_that_cannot_serve_is_refused_in_one_line(tmp_path: Path, content: bytes | None, word: str):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError, match=word) as refused:
        read_prompts(file, 3)
    assert str(file) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_folder_is_no_prompt_file(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts(tmp_path, 1)


# -------------------------------------------------------------------------------------------------------------- split
@pytest.mark.parametrize(("count", "fraction", "fit"), [(10, 0.8, 8), (4000, 0.8, 3200), (7, 0.5, 4), (5, 0.3, 2)])
def test_the_judge_never_sees_a_prompt_of_the_search(count: int, fraction: float, fit: int):
    search, judge = split(count, fraction, generator())
    assert len(search) == fit
    assert sorted([*search.tolist(), *judge.tolist()]) == list(range(count))


def test_the_split_is_the_generators():
    assert torch.equal(split(100, 0.8, generator(1))[0], split(100, 0.8, generator(1))[0])
    assert not torch.equal(split(100, 0.8, generator(1))[0], split(100, 0.8, generator(2))[0])


# ------------------------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("size", [1, 4, 5, 100])
def test_an_epoch_of_batches_covers_every_row_once(tiny: TextEncoder, corpus_prompts: list[str], size: int):
    ids, rows = tiny.ids(corpus_prompts), torch.tensor([0, 2, 3, 5, 7, 8, 11, 12, 13, 14])
    drawn = batches(tiny, ids, rows, size, generator())
    for _epoch in range(3):
        epoch = [next(drawn) for _ in range(-(-len(rows) // size))]
        assert max(len(b) for b in epoch) <= size
        assert torch.cat(epoch).sort().values.tolist() == rows.tolist()


def test_epochs_differ(tiny: TextEncoder, corpus_prompts: list[str]):
    drawn = batches(tiny, tiny.ids(corpus_prompts), torch.arange(15), 5, generator())
    first, second = (torch.cat([next(drawn) for _ in range(3)]).tolist() for _ in range(2))
    assert first != second


def test_a_batch_holds_prompts_of_like_length(tiny: TextEncoder):
    ids = tiny.ids([text for i in range(8) for text in (f"dog {i}", f"the quick brown fox jumps over {i}")])
    assert len(ids) == 16  # lengths differ by more than the noise, so no batch of 4 mixes short with long
    drawn = batches(tiny, ids, torch.arange(16), 4, generator())
    assert all(len({int(row) % 2 for row in next(drawn)}) == 1 for _ in range(20))


# ------------------------------------------------------------------------------------------------------- embed_corpus
def test_the_corpus_holds_what_every_prompt_gives_alone(tiny: TextEncoder, corpus_prompts: list[str]):
    corpus = embed_corpus(tiny, corpus_prompts, None, batch=4)
    assert corpus.features.shape == (15, 24, 32)
    assert corpus.by_layer.shape == (15, 3)
    for i, prompt in enumerate(corpus_prompts):
        ids = tiny.ids([prompt])
        assert torch.equal(corpus.ids[i], ids[0])
        # half precision keeps eleven bits
        torch.testing.assert_close(corpus.features[i].float(), tiny(ids)[0], rtol=2**-11, atol=1e-5)
        layers, summary = tiny.layers(ids)
        torch.testing.assert_close(corpus.pooled[i], summary[0], rtol=1e-5, atol=1e-5)
        expected = [assimilation(layer, tiny.attended(ids)) for layer in layers]
        torch.testing.assert_close(corpus.by_layer[i], torch.cat(expected), rtol=1e-5, atol=1e-5)


def test_the_size_of_the_batches_does_not_matter(tiny: TextEncoder, corpus_prompts: list[str]):
    a, b = (embed_corpus(tiny, corpus_prompts, None, batch=size) for size in (1, 64))
    torch.testing.assert_close(a.features.float(), b.features.float(), rtol=2**-10, atol=1e-5)
    torch.testing.assert_close(a.by_layer, b.by_layer, rtol=1e-5, atol=1e-5)


# -------------------------------------------------------------------------------------------------------------- cache
def test_a_round_trip_through_the_cache_is_identical(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    without = embed_corpus(tiny, corpus_prompts, None)
    cold = embed_corpus(tiny, corpus_prompts, tmp_path / "new" / "cache")
    (file,) = (tmp_path / "new" / "cache").iterdir()
    written = file.stat().st_mtime_ns
    warm = embed_corpus(tiny, corpus_prompts, tmp_path / "new" / "cache")
    assert same(without, cold)
    assert same(cold, warm)
    assert file.stat().st_mtime_ns == written


def test_a_warm_cache_is_read_and_not_computed_again(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    cold = embed_corpus(tiny, corpus_prompts, tmp_path)
    (file,) = tmp_path.iterdir()
    kept = {"HiddenStates": cold.by_layer, "PooledFeature": cold.pooled}
    save_file(kept | {"OriginalFeature": cold.features * 2}, file)
    assert torch.equal(embed_corpus(tiny, corpus_prompts, tmp_path).features, cold.features * 2)


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "a header that promises too much"])
def test_a_corrupt_cache_file_is_rebuilt(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path, damage: str):
    cold = embed_corpus(tiny, corpus_prompts, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes({"empty": b"", "garbage": b"\x00garbage" * 99, "truncated": whole[:-99]}.get(damage, b"\xff" * 8 + b"{"))
    assert same(embed_corpus(tiny, corpus_prompts, tmp_path), cold)
    assert file.read_bytes() == whole


FOREIGN = {
    "another width": lambda f, h: (f[..., :16].contiguous(), h),
    "another context": lambda f, h: (f[:, :20].contiguous(), h),
    "fewer prompts": lambda f, h: (f[:-1], h[:-1]),
    "another precision": lambda f, h: (f.float(), h),
    "values that are no numbers": lambda f, h: (f * torch.nan, h),
    "layers of fewer prompts": lambda f, h: (f, h[:-1]),
    "layers of another encoder": lambda f, h: (f, h.repeat(1, 2)),
    "layers without an axis": lambda f, h: (f, h[:, 0].clone()),
    "layers that are one number": lambda f, h: (f, h.mean()),
    "layers that are no numbers": lambda f, h: (f, h * torch.nan),
    "summaries of fewer prompts": lambda f, h: (f, h),
    "summaries that are no numbers": lambda f, h: (f, h),
}
FOREIGN_SUMMARIES = {
    "summaries of fewer prompts": lambda p: p[:-1],
    "summaries that are no numbers": lambda p: p * torch.nan,
}


@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_cache_file_is_rebuilt(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path, foreign: str):
    cold = embed_corpus(tiny, corpus_prompts, tmp_path)
    (file,) = tmp_path.iterdir()
    features, by_layer = FOREIGN[foreign](cold.features, cold.by_layer)
    pooled = FOREIGN_SUMMARIES.get(foreign, lambda p: p)(cold.pooled)
    save_file({"OriginalFeature": features, "HiddenStates": by_layer, "PooledFeature": pooled}, file)
    assert same(embed_corpus(tiny, corpus_prompts, tmp_path), cold)
    assert torch.equal(load_file(file)["HiddenStates"], cold.by_layer)


def test_a_cache_file_without_one_of_its_tensors_is_rebuilt(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    cold = embed_corpus(tiny, corpus_prompts, tmp_path)
    (file,) = tmp_path.iterdir()
    save_file({"OriginalFeature": cold.features}, file)
    assert same(embed_corpus(tiny, corpus_prompts, tmp_path), cold)


def test_a_cache_that_cannot_be_written_costs_time_and_not_the_scan(
    tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path
):
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    assert same(embed_corpus(tiny, corpus_prompts, tmp_path / "cache"), embed_corpus(tiny, corpus_prompts, None))


def test_the_cache_leaves_no_partial_files(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    embed_corpus(tiny, corpus_prompts, tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]


def test_other_weights_have_another_key(tiny: TextEncoder, editable: Path, corpus_prompts: list[str], tmp_path: Path):
    weights = load_file(editable / "model.safetensors")
    name = "final_layer_norm.bias"
    save_file(weights | {name: weights[name] + 1e-3}, editable / "model.safetensors", metadata={"format": "pt"})
    first = embed_corpus(tiny, corpus_prompts, tmp_path / "cache")
    second = embed_corpus(load_encoder(editable), corpus_prompts, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not torch.equal(first.features, second.features)


def test_weights_changed_in_memory_have_another_key(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    other = copy.deepcopy(tiny)
    other.model.final_layer_norm.bias.data += 1
    embed_corpus(tiny, corpus_prompts, tmp_path)
    assert same(embed_corpus(other, corpus_prompts, tmp_path), embed_corpus(other, corpus_prompts, None))


def test_another_config_has_another_key(tiny: TextEncoder, editable: Path, corpus_prompts: list[str], tmp_path: Path):
    config = editable / "config.json"
    config.write_text(config.read_text().replace("quick_gelu", "gelu"))
    first = embed_corpus(tiny, corpus_prompts, tmp_path / "cache")
    second = embed_corpus(load_encoder(editable), corpus_prompts, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not torch.equal(first.features, second.features)


def test_another_slice_of_the_corpus_has_another_key(tiny: TextEncoder, corpus_prompts: list[str], tmp_path: Path):
    for prompts in (corpus_prompts, corpus_prompts[:-1], corpus_prompts[::-1], corpus_prompts):
        assert same(embed_corpus(tiny, prompts, tmp_path), embed_corpus(tiny, prompts, None))
    assert len(list(tmp_path.iterdir())) == 3


def test_the_same_weights_in_another_folder_have_the_same_key(
    tiny: TextEncoder, editable: Path, corpus_prompts: list[str], tmp_path: Path
):
    other = load_encoder(editable)
    other.model.save_pretrained(tmp_path / "saved")  # leaves a trace in its config
    embed_corpus(load_encoder(editable), corpus_prompts, tmp_path / "cache")
    embed_corpus(tiny, corpus_prompts, tmp_path / "cache")
    embed_corpus(other, corpus_prompts, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
