"""Muon's arithmetic."""

from __future__ import annotations

import pytest
import torch

from thinkserve.training.pocket.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 4, 12), (1, 12, 4)])
def test_orthogonalized_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrices))
    assert values.shape == (shape[0], min(shape[1:]))
    assert ((values > 0.3) & (values < 1.3)).all()


def test_a_matrix_scaled_as_a_whole_is_orthogonalized_to_the_same() -> None:
    matrices = torch.randn(1, 6, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(orthogonalize(matrices), orthogonalize(1000 * matrices), atol=1e-3, rtol=1e-3)


def test_muon_brings_a_least_squares_loss_down() -> None:
    generator = torch.Generator().manual_seed(2)
    wanted = torch.randn(4, 6, generator=generator)
    matrix = torch.zeros(4, 6, requires_grad=True)
    optimizer = Muon([matrix], lr=0.05)
    losses = []
    for _ in range(60):
        loss = (matrix - wanted).square().sum()
        loss.backward()
        optimizer.step()
        matrix.grad = None
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
