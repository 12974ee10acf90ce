"""Measures of one case from the logits of its voxels: Dice, negative log-likelihood, area under the ROC curve."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

# Class of a measure of all voxels.
ALL = "all"


class Measure(NamedTuple):
    """A measure of a class of one case."""

    label: str
    metric: str
    value: float


def measure_case(logits: Tensor, classes: Tensor, used: Tensor, body: Tensor, names: tuple[str, ...]) -> list[Measure]:
    """Measures of the classes that the case shows; a class that its labels lack has no row.

    `dice` of the most probable class; `nll`, the mean negative log-likelihood in nats over the voxels of the class, and
    over all used voxels as class `all`; `auc`, of the class against all others, over the voxels of the body.

    Args:
        logits: (classes, z, y, x), background first.
        classes: int64 (z, y, x).
        used: voxels that count, bool (z, y, x).
        body: used voxels that show the body, bool (z, y, x); all used ones if there are none.
        names: names of the classes without background.
    """
    body = (body if bool(body.any()) else used)[used]
    logits, classes = logits[:, used], classes[used]
    likelihood = F.cross_entropy(logits.T, classes, reduction="none")
    predicted = logits.argmax(0)
    measures = [Measure(ALL, "nll", float(likelihood.mean()))]
    for index, name in enumerate(names, 1):
        reference = classes == index
        if not bool(reference.any()):
            continue
        segmented = predicted == index
        dice = 2 * (segmented & reference).sum() / (segmented.sum() + reference.sum())
        measures += [Measure(name, "dice", float(dice)), Measure(name, "nll", float(likelihood[reference].mean()))]
        positive = reference[body]
        if 0 < int(positive.sum()) < len(positive):
            others = torch.cat([logits[:index], logits[index + 1 :]])[:, body]
            measures.append(Measure(name, "auc", area(logits[index, body] - others.logsumexp(0), positive)))
    return measures


def area(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive has a higher score than a negative (ties: one half).

    Args:
        scores: (N,).
        positive: bool (N,), with at least one of each kind.
    """
    ranks = torch.from_numpy(rankdata(scores.double().numpy()))
    positives = int(positive.sum())
    return float((ranks[positive].mean() - (positives + 1) / 2) / (len(scores) - positives))
