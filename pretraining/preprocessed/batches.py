"""Which volumes are in a batch: no patient is in it twice while there are patients who are not in it yet.

Two crops of one patient would be negatives of each other in the contrastive losses although they show the same anatomy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from pretraining.collections.collection import DOMAINS, Domain
from pretraining.preprocessed.collection import PreprocessedCollection, Split

# Random draws before all volumes are looked at; with a million volumes, looking at all would take milliseconds.
TRIES = 20
# Uses of a volume's patient in the batch so far: with the same modality, and in all.
Uses = tuple[int, int]
UNUSED: Uses = (0, 0)


class BatchDraw:
    """Draws the samples of a batch one after the other, each from the volumes whose patients were used least.

    Args:
        split: volumes to draw from.
        patients: patient of each volume (n,), by its index in the collection.
        random: random generator.
    """

    def __init__(self, split: Split, patients: np.ndarray, random: np.random.Generator):
        self._split, self._patients, self._random = split, patients, random
        self._uses_by_domain: dict[str, Counter[int]] = {domain: Counter() for domain in DOMAINS}
        self._uses_in_total: Counter[int] = Counter()

    def sample(self) -> tuple[int, int, bool]:
        """A CT volume, an MR volume, and whether they are a registered pair.

        Volumes that are drawn independently of each other belong to no pair, as long as there are such: otherwise those
        of pairs, which have a share of their own, would be most of both.
        """
        split = self._split
        if self._random.random() < split.pair_probability:
            row, uses = self._choose(split.pairs[:, 0], DOMAINS)
            # Pairs may be exhausted while other volumes are not.
            if uses == UNUSED or uses <= max(self._choose(split.ct, ("CT",))[1], self._choose(split.mr, ("MR",))[1]):
                ct, mr = (int(volume) for volume in split.pairs[row])
                self._use(ct, DOMAINS)
                return ct, mr, True
        return self._independent("CT"), self._independent("MR"), False

    def volume(self, domain: Domain) -> int:
        """A volume of a domain, of a pair or not."""
        volumes = self._volumes(domain)
        index, _ = self._choose(volumes, (domain,))
        return self._take(volumes[index], domain)

    def _independent(self, domain: Domain) -> int:
        unpaired = self._split.unpaired_ct if domain == "CT" else self._split.unpaired_mr
        if len(unpaired):
            index, uses = self._choose(unpaired, (domain,))
            # They may be exhausted while volumes of pairs are not.
            if uses == UNUSED or uses <= self._choose(self._volumes(domain), (domain,))[1]:
                return self._take(unpaired[index], domain)
        return self.volume(domain)

    def _volumes(self, domain: Domain) -> np.ndarray:
        return self._split.ct if domain == "CT" else self._split.mr

    def _take(self, volume: int, domain: Domain) -> int:
        self._use(int(volume), (domain,))
        return int(volume)

    def _use(self, volume: int, domains: Sequence[str]) -> None:
        patient = int(self._patients[volume])
        self._uses_in_total[patient] += 1
        for domain in domains:
            self._uses_by_domain[domain][patient] += 1

    def _uses(self, patient: int, domains: Sequence[str]) -> Uses:
        return max(self._uses_by_domain[domain][patient] for domain in domains), self._uses_in_total[patient]

    def _choose(self, volumes: np.ndarray, domains: Sequence[str]) -> tuple[int, Uses]:
        """Index of a volume, drawn from those whose patients were used least, and how often that was."""
        for _ in range(TRIES):
            index = int(self._random.integers(len(volumes)))
            if self._uses(int(self._patients[volumes[index]]), domains) == UNUSED:
                return index, UNUSED
        by_patient = {int(p): self._uses(int(p), domains) for p in np.unique(self._patients[volumes])}
        least = min(by_patient.values())
        candidates = [i for i, p in enumerate(self._patients[volumes]) if by_patient[int(p)] == least]
        return candidates[int(self._random.integers(len(candidates)))], least


def repetition_notes(
    collection: PreprocessedCollection, name: str, batch_size: int, domains: Sequence[str]
) -> list[str]:
    """Notes for the log on modalities with fewer patients in a split than a batch has samples."""
    split = collection.split(name)
    counts = {
        domain: len(np.unique(collection.table.patient[split.ct if domain == "CT" else split.mr])) for domain in domains
    }
    return [
        f"{name}: {count} patients with {domain}, fewer than the {batch_size} samples of a batch; some are in a batch "
        "more than once, as rarely as possible"
        for domain, count in counts.items()
        if count < batch_size
    ]
