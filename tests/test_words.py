"""Target texts: descriptions that read like prompts and name the target, and silence where there is none.

Contents
    Phrases         a proper distribution over next words; sentences end where the corpus ends them
    Space           similarity and its floor; the corpus mean taken off
    target_texts    names what the shipped models put anywhere, says nothing about a vector without meaning
    load_projection the original projection or a clear refusal
    target_similarity  S_tar
"""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from Utils.basics.errors import InputError
from Utils.encoder.corpus import read_prompts
from Utils.encoder.loading import load_encoder
from Utils.encoder.text_encoder import TextEncoder
from Utils.found.target import target_similarity
from Utils.found.words import STOP, Phrases, Space, load_projection, pooled_texts, target_texts, whole_words

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "Data" / "Models"
PROMPTS = ROOT / "Data" / "Main" / "Prompts" / "Prompts.txt"


@pytest.fixture(scope="module")
def anchor() -> TextEncoder:
    return load_encoder(MODELS / "tiny-sd")


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return read_prompts(PROMPTS)


@pytest.fixture(scope="module")
def corpus(anchor, lines) -> torch.Tensor:
    return pooled_texts(anchor, lines[:200])


@pytest.fixture(scope="module")
def projection(anchor) -> torch.Tensor:
    return load_projection(MODELS / "tiny-clip", anchor.width)


# ------------------------------------------------------------------------------------------------------------- Phrases
def test_next_words_are_a_distribution():
    phrases = Phrases(["a red dog.", "a red cat", "the dog sleeps."])
    for before, whole in (("", ""), 1.0), (("a", "red"), 1.0), (("never", "seen"), 0.1):  # the rest is for what was never seen
        total = sum(math.exp(phrases.log_probability(before, word)) for word in phrases.single)
        assert total == pytest.approx(whole, abs=0.05)
    assert phrases.log_probability(("a", "red"), "dog") > phrases.log_probability(("a", "red"), "sleeps")
    assert math.isfinite(phrases.log_probability(("a", "red"), "zebra"))


def test_a_description_ends_where_sentences_end():
    phrases = Phrases(["a dog in the snow.", "a dog in the house"])
    assert phrases.may_end("snow")
    assert phrases.may_end("house")
    assert not phrases.may_end("the")
    assert phrases.words() == [w for w in phrases.words() if w != STOP]


def test_a_word_the_corpus_never_has_follows_any_word_and_begins_none():
    phrases = Phrases(["a dog"])
    assert phrases.follows("a", "zebra")
    assert not phrases.follows("", "zebra")
    assert not phrases.follows("dog", "a")


# --------------------------------------------------------------------------------------------------------------- Space
def test_pooled_summaries_do_not_depend_on_the_company(anchor):
    texts = ["a dog", "a very long prompt about a dog in the snow at night", "cat"]
    alone = torch.cat([pooled_texts(anchor, [text]) for text in texts])
    torch.testing.assert_close(pooled_texts(anchor, texts), alone, atol=1e-4, rtol=1e-4)


def test_what_all_texts_share_counts_in_the_similarity_and_not_in_the_nearness():
    corpus = F.normalize(torch.tensor([[9.0, 1.0, 0.0], [9.0, -1.0, 0.0], [9.0, 0.0, 1.0], [9.0, 0.0, -1.0]]), dim=-1)
    space = Space.of("s", None, corpus[:1], corpus)
    assert space.floor() > 0.9
    assert space.similarity(corpus[1:2]).item() > 0.9
    assert space.nearness(corpus[1:2]).item() < -0.9
    assert space.nearness(corpus[:1]).item() == pytest.approx(1.0, abs=1e-4)


def test_whole_words_are_one_token_each(anchor):
    words = whole_words(anchor, most=50)
    assert len(words) == 50
    assert all(len(anchor.tokenizer(word).input_ids) == 3 for word in words)


# -------------------------------------------------------------------------------------------------------- target_texts
@pytest.mark.parametrize(("thing", "text"), [("lion", "a photo of a lion"), ("violin", "a violin on a wooden floor at home")])
def test_a_target_is_named_by_the_first_text(anchor, corpus, lines, projection, thing, text):
    forced = pooled_texts(anchor, [text]).repeat(4, 1)
    found = target_texts(anchor, forced, corpus, lines, projection)
    assert thing in found.texts[0]["text"].split()
    for row in found.texts:
        assert set(row) == {"text", "similarity", "floor"}
        assert row["similarity"] > row["floor"] + 0.2


def test_a_target_in_the_image_text_space_alone_is_read_there(anchor, corpus, lines, projection):
    """What is orthogonal to the projection drowns the text space; the projected target stays what it is."""
    target = pooled_texts(anchor, ["a photo of a rocket"])
    noise = torch.randn(8, anchor.width, generator=torch.Generator().manual_seed(0))
    hidden = noise @ (torch.eye(anchor.width) - torch.linalg.pinv(projection) @ projection).T
    forced = target + 4 * target.norm() * F.normalize(hidden, dim=-1)
    found = target_texts(anchor, forced, corpus, lines, projection)
    assert "rocket" in found.texts[0]["text"].split()
    assert "image-text" in found.note


def test_a_vector_without_meaning_has_no_semantic_target(anchor, corpus, lines, projection):
    signs = torch.randint(2, (1, anchor.width), generator=torch.Generator().manual_seed(1)) * 2.0 - 1
    found = target_texts(anchor, signs.repeat(4, 1), corpus, lines, projection)
    assert found.texts == []
    assert found.note.startswith("no semantic target")


# ------------------------------------------------------------------------------------------------------ load_projection
def test_the_projection_is_the_one_of_the_clip_model(projection):
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(MODELS / "tiny-clip", dtype=torch.float32)
    assert torch.equal(projection, model.text_projection.weight)


def test_a_family_whose_summary_is_projected_already_has_none():
    assert load_projection(MODELS / "tiny-siglip", 160) is None


def test_a_projection_that_does_not_fit_is_refused(tiny_folder):
    with pytest.raises(InputError, match="does not fit"):
        load_projection(MODELS / "tiny-clip", 768)
    with pytest.raises(InputError, match="no text projection"):
        load_projection(tiny_folder, 32)


# ---------------------------------------------------------------------------------------------------- target_similarity
def test_the_true_trigger_itself_reaches_all_of_s_tar():
    features, target = torch.randn(5, 7, 16), torch.randn(7, 16)
    features = features + 3 * target
    assert target_similarity(features, features, target) == pytest.approx(1.0)
    assert target_similarity(target.expand(5, -1, -1), features, target) == 1.0  # better than the certificate is full marks


def test_s_tar_is_a_share_of_what_the_certificate_reaches():
    target = torch.zeros(7, 2)
    target[:, 0] = 1
    half, most = torch.tensor([0.5, math.sqrt(0.75)]), torch.tensor([0.8, 0.6])
    assert target_similarity(half.expand(3, 7, 2), most.expand(3, 7, 2), target) == pytest.approx(0.5 / 0.8)
    assert target_similarity(-half.expand(3, 7, 2), most.expand(3, 7, 2), target) == 0.0
    assert target_similarity(half.expand(3, 7, 2), -most.expand(3, 7, 2), target) == 0.0


def test_s_tar_of_an_image_target_compares_pooled_features():
    u = torch.tensor([1.0, 0.0])
    found, certified = torch.tensor([[0.6, 0.8], [6.0, 8.0]]), torch.tensor([[2.0, 0.0]])
    assert target_similarity(found, certified, u) == pytest.approx(0.6)


def test_only_the_tokens_of_the_mask_count():
    target = torch.eye(4)[:3]
    found = target.clone()[None]
    found[:, 2] *= -1
    assert target_similarity(found, target[None], target, torch.tensor([True, True, False])) == pytest.approx(1.0)
