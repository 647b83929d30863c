"""The splice: k vectors in the place of k tokens, and nothing else changed.

Contents
    ids            room is made after begin of text; end of text is never lost
    features       equal those of a model whose embedding table got the vectors as extra rows; one vector per row
    gradient       only the trigger has one, and it is that of the extra rows
    hook           gone after the block, also after an exception
    positions      attended ones, trimming, causality
    batches        their size changes nothing
"""

import copy

import pytest
import torch
from torch import Tensor

from Utils.encoder.text_encoder import TextEncoder, attended_positions, in_batches, run_spliced, splice_ids, spliced

FLOAT32 = {"rtol": 1e-5, "atol": 1e-5}
"""Features are of order one after the final layer norm; batches of another shape differ by float32 rounding."""


@pytest.fixture(params=[1, 3])
def trigger(request: pytest.FixtureRequest, tiny: TextEncoder) -> Tensor:
    """(k, d), as large as ten token embeddings, so that it is felt."""
    return torch.randn(request.param, tiny.width, generator=torch.Generator().manual_seed(request.param)) * 0.2


@pytest.fixture
def ids(tiny: TextEncoder, corpus_prompts: list[str]) -> Tensor:
    return tiny.ids(corpus_prompts)


def with_extra_rows(encoder: TextEncoder, vectors: Tensor) -> tuple[TextEncoder, Tensor]:
    """The same model, its token embedding table longer by `vectors` (k, d).  -> encoder, the k new ids"""
    other = copy.deepcopy(encoder)
    table = torch.cat([encoder.vocabulary, vectors])
    other.model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table, freeze=False))
    return other, torch.arange(len(encoder.vocabulary), len(table))


def by_hand(encoder: TextEncoder, ids: Tensor, new: Tensor) -> Tensor:
    """Begin of text, the new ids, the words, as many as fit, end of text and padding: written out row by row."""
    rows = []
    for row in ids.tolist():
        words = row[1 : row.index(encoder.eos)][: encoder.context - 2 - len(new)]
        line = [row[0], *new.tolist(), *words]
        rows.append(line + [encoder.eos] * (encoder.context - len(line)))
    return torch.tensor(rows)


# ---------------------------------------------------------------------------------------------------------------- ids
def test_the_corpus_here_has_short_prompts_and_prompts_that_fill_the_context(tiny: TextEncoder, ids: Tensor):
    padding = (ids == tiny.eos).sum(dim=1) - 1
    assert padding.max() > 10
    assert padding.min() == 0
    assert (ids[:, 0] == tiny.tokenizer.bos_token_id).all()
    assert tiny.begin == 1
    assert tiny.eos == len(tiny.tokenizer) - 1 != 2


@pytest.mark.parametrize("k", [1, 3, 22])
def test_room_is_made_after_begin_of_text_and_words_are_cut_before_end_of_text(tiny: TextEncoder, ids: Tensor, k: int):
    holes = torch.full((k,), tiny.placeholder)
    assert torch.equal(splice_ids(tiny, ids, k), by_hand(tiny, ids, holes))


@pytest.mark.parametrize("k", [1, 3, 22])
def test_end_of_text_is_never_lost(tiny: TextEncoder, ids: Tensor, k: int):
    assert (splice_ids(tiny, ids, k)[:, k + 1 :] == tiny.eos).any(dim=1).all()


def test_splicing_leaves_the_ids_it_was_given_alone(tiny: TextEncoder, ids: Tensor):
    before = ids.clone()
    splice_ids(tiny, ids, 3)
    assert torch.equal(ids, before)


def test_the_placeholder_is_no_special_token(tiny: TextEncoder):
    assert tiny.placeholder not in tiny.tokenizer.all_special_ids


# ----------------------------------------------------------------------------------------------------------- features
def test_a_splice_equals_a_vocabulary_that_holds_the_vectors(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    other, new = with_extra_rows(tiny, trigger)
    with spliced(tiny, trigger):
        features = tiny(splice_ids(tiny, ids, len(trigger)))
    torch.testing.assert_close(features, other(by_hand(tiny, ids, new)))
    clean = tiny(ids)
    assert (features[:, 1:] - clean[:, 1:]).abs().mean() > 0.1  # the control: the trigger is felt


def test_a_splice_of_a_words_own_rows_equals_the_word(tiny: TextEncoder):
    word = tiny.ids(["dog a red cat"])
    v = tiny.vocabulary[word[0, 1:4]]
    torch.testing.assert_close(run_spliced(tiny, v, splice_ids(tiny, tiny.ids(["a red cat"]), 3)), tiny(word))


def test_every_layer_feels_the_splice_as_it_feels_a_word(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    other, new = with_extra_rows(tiny, trigger)
    with spliced(tiny, trigger):
        layers, summary = tiny.layers(splice_ids(tiny, ids, len(trigger)))
    expected, reference = other.layers(by_hand(tiny, ids, new))
    torch.testing.assert_close(summary, reference)
    assert len(layers) == tiny.model.config.num_hidden_layers
    for layer, reference in zip(layers, expected, strict=True):
        torch.testing.assert_close(layer, reference)


def test_what_the_placeholder_says_never_reaches_the_model(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    holes = splice_ids(tiny, ids, len(trigger))
    others = holes.clone()
    others[:, 1 : 1 + len(trigger)] = tiny.placeholder + 7
    assert torch.equal(run_spliced(tiny, trigger, holes), run_spliced(tiny, trigger, others))
    assert not torch.allclose(tiny(holes), tiny(others))


def test_one_vector_per_row_equals_separate_runs(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    holes = splice_ids(tiny, ids, len(trigger))
    vectors = trigger * torch.linspace(-2, 2, len(ids))[:, None, None]  # (b, k, d)
    together = run_spliced(tiny, vectors, holes)
    alone = torch.cat([run_spliced(tiny, v, row[None]) for v, row in zip(vectors, holes, strict=True)])
    torch.testing.assert_close(together, alone, **FLOAT32)
    assert not torch.allclose(together, run_spliced(tiny, vectors[0], holes), **FLOAT32)


def test_the_pooled_feature_is_taken_at_end_of_text(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    holes = splice_ids(tiny, ids, len(trigger))
    with spliced(tiny, trigger):
        out = tiny.model(input_ids=holes)
    end = attended_positions(holes, tiny.eos).sum(dim=1) - 1
    assert torch.equal(out.pooler_output, out.last_hidden_state[torch.arange(len(holes)), end])


# ----------------------------------------------------------------------------------------------------------- gradient
def test_only_the_trigger_has_a_gradient(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    v = trigger.clone().requires_grad_()
    run_spliced(tiny, v, splice_ids(tiny, ids, len(v))).square().sum(dim=-1).std().backward()
    assert v.grad.isfinite().all()
    assert v.grad.abs().max() > 0
    parameters = list(tiny.model.parameters())
    assert not any(p.requires_grad for p in parameters)
    assert all(p.grad is None for p in parameters)


def test_the_trigger_has_the_gradient_of_the_extra_rows(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    direction = torch.randn(tiny.width, generator=torch.Generator().manual_seed(3))
    v = trigger.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((run_spliced(tiny, v, splice_ids(tiny, ids, len(v))) @ direction).mean(), v)
    other, new = with_extra_rows(tiny, trigger)
    table = other.vocabulary
    (reference,) = torch.autograd.grad((other(by_hand(tiny, ids, new)) @ direction).mean(), table)
    torch.testing.assert_close(gradient, reference[new])


# --------------------------------------------------------------------------------------------------------------- hook
def test_the_hook_is_gone_after_the_block(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    before = tiny(ids)
    with spliced(tiny, trigger):
        assert not torch.allclose(tiny(ids), before)
    assert torch.equal(tiny(ids), before)


def test_the_hook_is_gone_after_an_error(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    before = tiny(ids)
    with pytest.raises(ZeroDivisionError), spliced(tiny, trigger):
        raise ZeroDivisionError
    assert torch.equal(tiny(ids), before)
    assert not tiny.model.get_input_embeddings()._forward_hooks


def test_the_hook_is_gone_after_vectors_that_do_not_fit(tiny: TextEncoder, ids: Tensor):
    before = tiny(ids)
    with pytest.raises(RuntimeError):
        run_spliced(tiny, torch.zeros(1, tiny.width + 1), splice_ids(tiny, ids, 1))
    assert torch.equal(tiny(ids), before)


# ---------------------------------------------------------------------------------------------------------- positions
def test_attended_positions_end_with_the_first_end_of_text(tiny: TextEncoder, ids: Tensor):
    for row, mask in zip(ids.tolist(), attended_positions(ids, tiny.eos).tolist(), strict=True):
        assert mask == [i <= row.index(tiny.eos) for i in range(len(row))]
    attended = tiny.attended(ids)
    assert not attended[:, 0].any()
    assert torch.equal(attended[:, 1:], attended_positions(ids, tiny.eos)[:, 1:])


def test_trimming_reproduces_the_full_forward_at_attended_positions(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    holes = splice_ids(tiny, ids[:12], len(trigger))
    short = tiny.trimmed(holes)
    assert short.shape[1] < holes.shape[1]
    mask = attended_positions(holes, tiny.eos)
    assert not mask[:, short.shape[1] :].any()
    full, cut = run_spliced(tiny, trigger, holes), run_spliced(tiny, trigger, short)
    torch.testing.assert_close(cut[mask[:, : short.shape[1]]], full[mask], **FLOAT32)


def test_trimming_cuts_nothing_of_a_prompt_that_fills_the_context(tiny: TextEncoder, ids: Tensor):
    assert torch.equal(tiny.trimmed(ids), ids)


def test_begin_of_text_never_sees_the_trigger(tiny: TextEncoder, ids: Tensor, trigger: Tensor):
    holes = splice_ids(tiny, ids, len(trigger))
    clean, strong = tiny(ids), run_spliced(tiny, 100 * trigger, holes)
    torch.testing.assert_close(strong[:, 0], clean[:, 0], **FLOAT32)
    assert (strong[:, 1:] - clean[:, 1:]).abs().amax(dim=(1, 2)).min() > 0.1  # the control: every text does


# ------------------------------------------------------------------------------------------------------------ batches
@pytest.mark.parametrize("size", [1, 2, 4, 100])
def test_batches_do_not_change_features(tiny: TextEncoder, ids: Tensor, size: int):
    torch.testing.assert_close(in_batches(tiny, ids, size=size), tiny(ids), **FLOAT32)
