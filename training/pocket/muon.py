"""Muon: momentum whose update is orthogonalized, for the weight matrices of the seed model.

The seed has minutes on a CPU, so it needs an optimizer that learns much from few tokens. torch.optim.Muon works in
bfloat16, which CPUs without bfloat16 units emulate slowly; this one stays in float32 and treats all matrices of one
shape in one batched product.
Source: https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

# The quintic whose repetition drives all singular values near 1, and how often it is applied.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5


class Muon:
    """SGD with Nesterov momentum whose update for each matrix is replaced by the nearest orthogonal one.

    Not a `torch.optim.Optimizer`: it has one learning rate, set between steps, and is never checkpointed.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, momentum: float = 0.95) -> None:
        self.lr = lr
        self.momentum = momentum
        self.by_shape: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for matrix in matrices:
            self.by_shape[matrix.shape].append(matrix)
        self.buffers = {
            matrix: torch.zeros_like(matrix) for group in self.by_shape.values() for matrix in group
        }

    def step(self) -> None:
        """Update all matrices from their gradients."""
        with torch.no_grad():
            for shape, matrices in self.by_shape.items():
                updates = orthogonalize(torch.stack([self._momentum(matrix) for matrix in matrices]))
                # Scaled so that the update's entries are as large as those of Adam would be.
                scale = 0.2 * max(shape) ** 0.5
                for matrix, update in zip(matrices, updates, strict=True):
                    matrix.add_(update, alpha=-self.lr * scale)

    def _momentum(self, matrix: Tensor) -> Tensor:
        assert matrix.grad is not None, "a matrix without a gradient: call backward() first"
        buffer = self.buffers[matrix]
        buffer.lerp_(matrix.grad, 1 - self.momentum)
        return matrix.grad.lerp(buffer, self.momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix near 1. Shapes: (n, rows, columns), in and out."""
    a, b, c = COEFFICIENTS
    tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
