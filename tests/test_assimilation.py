"""Assimilation and similarity: the two measures.

Contents
    assimilation   the closed form is the mean over all pairs; masks; its extreme values
    similarity     the mean of same-position cosines; masks
"""

import pytest
import torch
import torch.nn.functional as F

from Utils.encoder.measures import assimilation, similarity


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def all_pairs(f: torch.Tensor) -> torch.Tensor:
    """The definition, with its table.  (b, t, d) -> (b,)"""
    return F.cosine_similarity(f[:, :, None], f[:, None], dim=-1).mean(dim=(1, 2))


def test_assimilation_is_the_mean_over_all_pairs():
    f = rand(5, 7, 16)
    torch.testing.assert_close(assimilation(f), all_pairs(f))


def test_assimilation_under_a_mask_is_the_mean_over_all_pairs_of_attended_positions():
    f, lengths = rand(5, 7, 16), [1, 2, 4, 6, 7]
    mask = torch.arange(7) < torch.tensor(lengths)[:, None]
    expected = torch.stack([all_pairs(row[None, :t])[0] for row, t in zip(f, lengths, strict=True)])
    torch.testing.assert_close(assimilation(f, mask), expected)


def test_assimilation_under_a_full_mask_is_assimilation_without_one():
    f = rand(5, 7, 16)
    torch.testing.assert_close(assimilation(f, torch.ones(5, 7, dtype=torch.bool)), assimilation(f))


def test_masked_positions_do_not_matter():
    f = rand(5, 7, 16)
    mask = torch.arange(7).expand(5, 7) < 4
    other = torch.where(mask[..., None], f, 100 * f.flip(0))
    assert torch.equal(assimilation(f, mask), assimilation(other, mask))
    assert not torch.allclose(assimilation(f), assimilation(other))  # the control: without a mask they do


def test_assimilation_does_not_see_lengths_of_vectors():
    f = rand(5, 7, 16)
    torch.testing.assert_close(assimilation(f * (1 + torch.arange(7.0).double())[:, None]), assimilation(f))


def test_identical_tokens_assimilate_to_one():
    f = rand(5, 1, 16).expand(5, 7, 16)
    torch.testing.assert_close(assimilation(f), torch.ones(5, dtype=torch.float64))


def test_orthogonal_tokens_assimilate_to_one_over_their_number():
    torch.testing.assert_close(assimilation(3 * torch.eye(8).unsqueeze(0)), torch.tensor([1 / 8]))


def test_opposite_tokens_do_not_assimilate():
    f = rand(5, 3, 16)
    torch.testing.assert_close(assimilation(torch.cat([f, -f], dim=1)), torch.zeros(5, dtype=torch.float64))


def test_assimilation_has_the_gradient_of_the_table():
    f = rand(2, 5, 8).requires_grad_()
    (closed,) = torch.autograd.grad(assimilation(f).sum(), f)
    (table,) = torch.autograd.grad(all_pairs(f).sum(), f)
    torch.testing.assert_close(closed, table)


def test_similarity_is_the_mean_of_same_position_cosines():
    a, b = rand(5, 7, 16), rand(7, 5, 16).transpose(0, 1)
    cosines = (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1))
    torch.testing.assert_close(similarity(a, b), cosines.mean(dim=1))
    mask = torch.arange(7).expand(5, 7) < 3
    torch.testing.assert_close(similarity(a, b, mask), cosines[:, :3].mean(dim=1))


@pytest.mark.parametrize("sign", [1, -1])
def test_similarity_with_itself_is_one_and_with_its_opposite_minus_one(sign: int):
    a = rand(5, 7, 16)
    torch.testing.assert_close(similarity(a, sign * 2 * a), torch.full((5,), float(sign), dtype=torch.float64))
