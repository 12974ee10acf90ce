"""Measures whether the encoder maps CT and MR to similar features: a linear modality probe, and CKA of pairs.

Both use the deepest features averaged over the crop, from crops that are not cut out and are encoded singly, as in
fine-tuning: when CT and MR are encoded together, the features of each contain information of the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pretraining.model import PretrainingModel

# Folds of the probe, and its ridge penalty relative to the features' variance.
FOLDS = 5
PENALTY = 1.0
# The unbiased estimate of HSIC divides by n - 3.
MIN_SAMPLES = 4
CKA_BATCH = 64


class FeatureProbes:
    """Collects features over the batches of a validation."""

    def __init__(self) -> None:
        self._ct: list[Tensor] = []
        self._mr: list[Tensor] = []
        self._registered: list[Tensor] = []
        self._patients: list[tuple[str, str]] = []

    @torch.no_grad()
    def add(self, model: PretrainingModel, batch: Mapping[str, Any]) -> None:
        """Takes a batch of :class:`CropDataset`: `ct` and `mr` (B, 1, z, y, x), `registered` (B,) and `patients`.

        A batch of one modality is ignored.
        """
        if batch.get("ct") is None or batch.get("mr") is None:
            return
        images = torch.cat([batch["ct"], batch["mr"]])
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=images.device.type == "cuda"):
            deepest = model.encoder(model.patch_embed(images))[-1]
        ct, mr = deepest.float().mean((2, 3, 4)).chunk(2)
        self._ct.append(ct)
        self._mr.append(mr)
        self._registered.append(batch["registered"])
        self._patients += batch["patients"]

    def results(self) -> dict[str, float]:
        """`probe_accuracy`, where each modality has two crops, and `cka`, where enough crops are registered."""
        if not self._ct:
            return {}
        ct, mr = (torch.cat(parts).double().cpu() for parts in (self._ct, self._mr))
        values = {}
        if len(ct) >= 2:
            values["probe_accuracy"] = modality_accuracy(ct, mr, *zip(*self._patients, strict=True))
        registered = torch.cat(self._registered).cpu()
        if int(registered.sum()) >= MIN_SAMPLES:
            values["cka"] = minibatch_cka(ct[registered], mr[registered])
        return values


def modality_accuracy(ct: Tensor, mr: Tensor, ct_groups: Sequence[str], mr_groups: Sequence[str]) -> float:
    """Cross-validated accuracy of a linear classifier that tells CT features from MR features.

    Ridge regression on -1 and 1, in closed form (Hastie et al., The Elements of Statistical Learning, section 4.2).

    Args:
        ct, mr: features (N, C) and (M, C) in double precision.
        ct_groups, mr_groups: patient of each row. If both modalities have at least two patients, all crops of a patient
            are in one fold, so that the classifier cannot recognise the patient.

    Returns:
        Mean of both modalities' accuracies on held-out crops: 0.5 when they cannot be separated linearly, 1 when they
        always can.

    Raises:
        ValueError: when a modality has fewer than two rows.
    """
    if min(len(ct), len(mr)) < 2:
        raise ValueError(f"expected at least two crops of each modality, found {len(ct)} and {len(mr)}")
    folds = min(FOLDS, len(ct), len(mr))
    if min(len(set(ct_groups)), len(set(mr_groups))) >= 2:
        folds = min(FOLDS, len(set(ct_groups)), len(set(mr_groups)))
        ct_folds, mr_folds = patient_folds(ct_groups, mr_groups, folds)
        fold = torch.tensor(ct_folds + mr_folds)
    else:
        fold = torch.cat([torch.arange(len(ct)), torch.arange(len(mr))]) % folds
    features = torch.cat([ct, mr])
    is_ct = torch.arange(len(features)) < len(ct)
    correct = torch.zeros(len(features), dtype=torch.float64)
    for held_out in range(folds):
        inside, outside = fold != held_out, fold == held_out
        scores = _ridge_scores(features[inside], is_ct[inside], features[outside])
        # A score of exactly 0, as for features that are all alike, counts as half correct.
        correct[outside] = torch.where(scores == 0, 0.5, ((scores > 0) == is_ct[outside]).double())
    return float((correct[is_ct].mean() + correct[~is_ct].mean()) / 2)


def minibatch_cka(first: Tensor, second: Tensor, batch: int = CKA_BATCH) -> float:
    """Debiased linear centred kernel alignment (CKA) of two sets of features of the same samples.

    The ratio of unbiased HSIC estimates (Song et al., JMLR 2012, equation 5), each summed over minibatches first
    (Nguyen et al., arXiv 2010.15327, equation 2). Unlike the plain ratio, it does not increase with the ratio of
    channels to samples.

    Args:
        first, second: features (N, C) and (N, D); row i of both belongs to sample i.
        batch: samples per minibatch; the remainder is added to the last one.

    Returns:
        1 for features that differ only by rotation and scale, about 0 (possibly slightly below) for independent ones,
        0 if one of them does not vary.

    Raises:
        ValueError: for fewer than 4 samples or different numbers of them.
    """
    if len(first) != len(second) or len(first) < MIN_SAMPLES:
        raise ValueError(
            f"expected at least {MIN_SAMPLES} samples, the same in both, found {len(first)} and {len(second)} rows"
        )
    sums = torch.zeros(3, dtype=torch.float64)
    for a, b in zip(*(_minibatches(rows.double(), batch) for rows in (first, second)), strict=True):
        kernel_a, kernel_b = a @ a.T, b @ b.T
        pairs = ((kernel_a, kernel_b), (kernel_a, kernel_a), (kernel_b, kernel_b))
        sums += torch.stack([unbiased_hsic(*pair) for pair in pairs])
    across, within_first, within_second = sums.tolist()
    if within_first <= 0 or within_second <= 0:
        return 0.0
    return across / (within_first * within_second) ** 0.5


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased estimate of the Hilbert-Schmidt independence criterion from two kernel matrices (N, N), N at least 4."""
    count = len(first)
    first = first - torch.diag(first.diagonal())
    second = second - torch.diag(second.diagonal())
    trace = (first * second).sum()
    product = first.sum() * second.sum() / ((count - 1) * (count - 2))
    cross = 2 * (first.sum(0) @ second.sum(0)) / (count - 2)
    return (trace + product - cross) / (count * (count - 3))


def _ridge_scores(features: Tensor, positive: Tensor, others: Tensor) -> Tensor:
    """Scores of `others` (M, C) from a ridge regression on `features` (N, C) with equal weight for both classes."""
    if positive.all() or not positive.any():
        return torch.zeros(len(others), dtype=features.dtype)
    mean = (features[positive].mean(0) + features[~positive].mean(0)) / 2
    deviation = features.std(0, unbiased=False)
    # A constant channel carries no information, and must not be divided by its rounding error.
    varies = deviation > 1e-9 * features.abs().amax().clamp_min(1e-30)
    scale = torch.where(varies, 1 / deviation.clamp_min(1e-300), 0.0)
    features, others = (features - mean) * scale, (others - mean) * scale
    weights = torch.where(positive, 0.5 / positive.sum(), 0.5 / (~positive).sum()) * len(features)
    targets = torch.where(positive, 1.0, -1.0).to(features)
    kernel = features @ features.T
    # In the dual form, since there are fewer crops than channels.
    solution = torch.linalg.solve(kernel + torch.diag(PENALTY * features.shape[1] / weights), targets)
    return others @ (features.T @ solution)


def patient_folds(ct_groups: Sequence[str], mr_groups: Sequence[str], folds: int) -> tuple[list[int], list[int]]:
    """The fold of each CT and MR crop; a patient with both is in one fold, and each fold has both modalities.

    Args:
        ct_groups, mr_groups: patient of each crop.
        folds: not more than either modality has patients.
    """
    of_ct, of_mr = set(ct_groups), set(mr_groups)
    # Patients with both come first, so that the numbers of either modality are consecutive.
    ct_number, mr_number = (
        {patient: index for index, patient in enumerate([*sorted(of_ct & of_mr), *sorted(only)])}
        for only in (of_ct - of_mr, of_mr - of_ct)
    )
    return [ct_number[patient] % folds for patient in ct_groups], [mr_number[patient] % folds for patient in mr_groups]


def _minibatches(rows: Tensor, batch: int) -> list[Tensor]:
    """Minibatches of `batch` rows, the last up to twice as long."""
    count = max(len(rows) // batch, 1)
    return [rows[index * batch : (index + 1) * batch if index < count - 1 else len(rows)] for index in range(count)]
