"""Ridge regression from running moments, with the damping chosen on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from search_spaces.compensate import damped

# One batch of four chooses the damping and does not fit.
HELD_OUT_EVERY = 4


def is_held_out(number: int) -> bool:
    """Whether the batch of this number chooses the damping."""
    return number % HELD_OUT_EVERY == 1


@dataclass
class Regression:
    """Running moments of inputs and residuals, in double precision."""

    count: int
    inputs: Tensor
    residuals: Tensor
    products: Tensor
    crossed: Tensor
    squares: float

    @classmethod
    def zeros(cls, width: int, outputs: int) -> Regression:
        """Nothing seen yet of so many inputs and outputs."""

        def new(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64)

        return cls(0, new(width), new(outputs), new(width, width), new(outputs, width), 0.0)

    def update(self, read: Tensor, residual: Tensor) -> None:
        """Add ``(rows, width)`` and ``(rows, outputs)``."""
        read, residual = read.float(), residual.float()
        self.count += len(read)
        self.inputs += read.sum(dim=0, dtype=torch.float64)
        self.residuals += residual.sum(dim=0, dtype=torch.float64)
        self.products += read.T @ read
        self.crossed += residual.T @ read
        self.squares += float(residual.square().sum(dtype=torch.float64))

    def __add__(self, other: Regression) -> Regression:
        return Regression(
            self.count + other.count,
            self.inputs + other.inputs,
            self.residuals + other.residuals,
            self.products + other.products,
            self.crossed + other.crossed,
            self.squares + other.squares,
        )

    def solve(self, damping: float, *, bias: bool) -> tuple[Tensor, Tensor]:
        """Change of the weight ``(outputs, width)`` and of the bias ``(outputs,)``, 0 where there is to be none."""
        mean, target = self.inputs / self.count * bias, self.residuals / self.count * bias
        covariance = self.products / self.count - torch.outer(mean, mean)
        crossed = self.crossed / self.count - torch.outer(target, mean)
        weight = torch.cholesky_solve(crossed.T, torch.linalg.cholesky(damped(covariance, damping))).T
        return weight, target - weight @ mean

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Summed squared error that a change leaves."""
        linear = (weight * self.crossed).sum() + bias @ self.residuals
        square = (weight @ self.products * weight).sum() + 2 * bias @ (weight @ self.inputs)
        return self.squares - 2 * float(linear) + float(square + self.count * bias.square().sum())


def best_change(
    fit: Regression, held_out: Regression, dampings: Sequence[float], *, bias: bool
) -> tuple[Tensor, Tensor] | None:
    """The change of weight and bias that helps most on held-out rows, fitted to all rows; None where none helps."""
    if not held_out.count:
        held_out = fit
    errors = [held_out.error(*fit.solve(damping, bias=bias)) for damping in dampings]
    best = min(range(len(errors)), key=errors.__getitem__)
    if errors[best] >= held_out.squares:
        return None
    both = fit if held_out is fit else fit + held_out
    return both.solve(dampings[best], bias=bias)
