"""Maximum mean discrepancy of several Gaussian kernels (Gretton et al., JMLR 2012; Long et al., arXiv 1502.02791)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pretraining.losses.weighted import median_distance, weights_of

# Widths of the kernels relative to the median distance of two samples.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
MIN_MEDIAN = 1e-2


def maximum_mean_discrepancy(
    first: Tensor,
    second: Tensor,
    median: Tensor | float | None = None,
    widths: Sequence[float] = WIDTHS,
    first_weights: Tensor | None = None,
    second_weights: Tensor | None = None,
) -> Tensor:
    """Squared discrepancy, averaged over the kernels `exp(-|x - y|^2 / (2 (width median)^2))`.

    Args:
        first: (N, D).
        second: (M, D).
        median: distance to which the widths are relative; the median of all distances, detached, when None.
        widths: widths of the kernels.
        first_weights, second_weights: (N,) and (M,), 1 for samples to use, 0 for samples to ignore; all 1 when None.

    Returns:
        The biased estimate (equation 5 of Gretton et al.), from 0 to 2: 0 for equal sets, about
        `(1/N + 1/M) (1 - E k)` for samples of equal distributions. The unbiased estimate can be negative, which
        minimising it would exploit.
    """
    first_weights = weights_of(first, None) if first_weights is None else first_weights
    second_weights = weights_of(second, None) if second_weights is None else second_weights
    if median is None:
        weights = torch.cat([first_weights, second_weights])
        median = median_distance(torch.cat([first, second]).detach(), weights).clamp_min(MIN_MEDIAN)
    set_1 = first, first_weights / first_weights.sum()
    set_2 = second, second_weights / second_weights.sum()

    def kernel(rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
        squares = (rows[0][:, None] - columns[0][None]).square().sum(2)
        means = [rows[1] @ (-squares / (2 * (width * median) ** 2)).exp() @ columns[1] for width in widths]
        return torch.stack(means).mean()

    return kernel(set_1, set_1) + kernel(set_2, set_2) - 2 * kernel(set_1, set_2)
