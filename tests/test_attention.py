"""Attention maps and coverage: shares that add up, an encoder left as it was, captured prompts counted right."""

import pytest
import torch

from Utils.encoder.attention import attention_maps, attention_received, eager
from Utils.encoder.coverage import by_length, by_place, captured, captures, summaries
from Utils.encoder.text_encoder import TextEncoder, run_spliced, splice_ids


@pytest.fixture(scope="module")
def v(tiny: TextEncoder) -> torch.Tensor:
    return torch.randn(1, tiny.width, generator=torch.Generator().manual_seed(3))


def test_every_token_spends_all_its_attention_on_itself_and_earlier_ones(tiny, corpus_prompts):
    maps = attention_maps(tiny, tiny.ids(corpus_prompts))
    assert maps.shape == (len(corpus_prompts), 3, 24, 24)
    torch.testing.assert_close(maps.sum(dim=-1), torch.ones(maps.shape[:-1]))
    assert maps.triu(diagonal=1).abs().max() == 0


def test_the_encoder_is_left_as_it_was_after_an_error_too(tiny, corpus_prompts):
    before, ids = tiny.model.config._attn_implementation, tiny.ids(corpus_prompts)
    expected = tiny(ids)
    with pytest.raises(ZeroDivisionError), eager(tiny):
        raise ZeroDivisionError
    assert tiny.model.config._attn_implementation == before
    assert torch.equal(tiny(ids), expected)


def test_attention_received_is_the_mean_over_later_tokens(tiny, corpus_prompts, v):
    ids = splice_ids(tiny, tiny.ids(corpus_prompts), 1)
    received = attention_received(tiny, ids, v, batch=4)
    for row in (0, 6, len(ids) - 1):
        one = ids[row : row + 1]
        last = int((one[0] == tiny.eos).int().argmax())
        by_hand = attention_maps(tiny, one, v)[0, :, 2 : last + 1, 1].mean(dim=1)
        torch.testing.assert_close(received[row], by_hand, atol=1e-5, rtol=1e-4)


def test_a_splice_further_back_leaves_the_tokens_before_it_alone(tiny, corpus_prompts, v):
    ids = tiny.ids(corpus_prompts[6:])
    moved = splice_ids(tiny, ids, 1, after=2)
    assert torch.equal(moved[:, :3], ids[:, :3])
    assert torch.equal(moved[:, 4:-1], ids[:, 3:-2])
    torch.testing.assert_close(summaries(tiny, ids, v), run_spliced(tiny, v, splice_ids(tiny, ids, 1), TextEncoder.pooled))
    assert not torch.allclose(summaries(tiny, ids, v, after=2), summaries(tiny, ids, v))


def test_a_prompt_is_captured_when_it_is_nearer_to_the_found_summary_than_to_its_own():
    found, clean = torch.tensor([1.0, 0.0]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    triggered = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    assert captured(triggered, clean, found).tolist() == [True, False]


def test_shares_by_length_and_place_are_shares_of_the_prompts_they_name(tiny, corpus_prompts, v):
    ids = tiny.ids(corpus_prompts)
    lengths = tiny.attended(ids).sum(dim=1) - 1
    found = by_length(tiny, ids, v, [1, 8, 24])
    short = lengths < 8
    everything = captures(tiny, ids, v).float()
    torch.testing.assert_close(found[0], everything[short].mean())
    torch.testing.assert_close(found[1], everything[~short].mean())
    assert torch.isnan(by_length(tiny, ids, v, [100, 200]))
    long = ids[lengths >= 5]
    torch.testing.assert_close(by_place(tiny, ids, v, [0, 5])[0], captures(tiny, long, v).float().mean())
