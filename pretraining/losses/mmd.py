"""Maximum mean discrepancy of several Gaussian kernels (Gretton et al., JMLR 2012; Long et al., arXiv 1502.02791)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Widths of the kernels, relative to the median distance of two samples.
WIDTHS = (0.25, 0.5, 1.0, 2.0, 4.0)
SMALLEST_MEDIAN = 1e-2


def maximum_mean_discrepancy(
    first: Tensor, second: Tensor, median: Tensor | float | None = None, widths: Sequence[float] = WIDTHS
) -> Tensor:
    """Squared discrepancy, averaged over kernels `exp(-|x - y|^2 / (2 (width median)^2))`.

    Args:
        first: (N, D).
        second: (M, D).
        median: distance that the widths are relative to; the median of all distances, detached, when None.
        widths: of the kernels.

    Returns:
        The biased estimate (equation 5 of Gretton et al.), from 0 to 2: 0 for equal sets, about
        `(1/N + 1/M) (1 - E k)` for samples of equal distributions. The unbiased one may fall below 0, which a minimiser
        would seek.
    """
    if median is None:
        median = torch.pdist(torch.cat([first, second]).detach()).median().clamp_min(SMALLEST_MEDIAN)

    def kernel(rows: Tensor, columns: Tensor) -> Tensor:
        squares = (rows[:, None] - columns[None]).square().sum(2)
        return torch.stack([(-squares / (2 * (width * median) ** 2)).exp().mean() for width in widths]).mean()

    return kernel(first, first) + kernel(second, second) - 2 * kernel(first, second)
