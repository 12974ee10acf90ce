"""The encoders that are analysed side by side: those named on the command line, and random ones as their floor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from nnunetv2_swinfuse.errors import InputError
from pretraining.analysis.layers import layer_maps
from pretraining.analysis.tokens import LayerMaps
from pretraining.preprocessed.collection import PreprocessedCollection, format_spacing
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.encoders import FrozenEncoder, TrainedEncoder, random_arms


@dataclass(frozen=True)
class Arm:
    """A frozen encoder.

    Attributes:
        name: of the arm; several seeds have the same.
        seed: of its pretraining, or of its random weights.
        network: the encoder.
        description: of its weights, for the record.
        floor: name of the arm of random encoders with the same architecture; its own name for these.
    """

    name: str
    seed: int
    network: FrozenEncoder
    description: str
    floor: str

    @property
    def random(self) -> bool:
        """Whether its weights are random."""
        return self.name == self.floor

    @property
    def label(self) -> str:
        """Name and seed."""
        return f"{self.name} {self.seed}"

    @property
    def maps(self) -> LayerMaps:
        """Feature maps by layer of an image."""
        return partial(layer_maps, self.network)


def build_arms(trained: Sequence[TrainedEncoder], spacing: Sequence[float], random_seeds: int) -> list[Arm]:
    """Encoders for images of a spacing: random ones of each architecture, then the trained ones.

    Args:
        trained: encoders; those without weights only say what random ones are built with.
        spacing: of the images, mm (z, y, x).
        random_seeds: number of random encoders of each architecture.

    Raises:
        InputError: for two encoders with the same name and seed, or weights that do not fit.
    """
    floors = random_arms(trained)
    arms: list[Arm] = []
    built = set()
    for encoder in trained:
        floor = floors[encoder.architecture]
        if floor not in built:
            built.add(floor)
            for seed in range(random_seeds):
                network = FrozenEncoder(encoder.encoder.settings, encoder.encoder.strides, spacing, seed)
                arms.append(Arm(floor, seed, network, f"random weights, seed {seed}", floor))
    arms += [
        Arm(e.name, e.seed, e.network(spacing), e.digest, floors[e.architecture]) for e in trained if e.encoder.weights
    ]
    labels = [arm.label for arm in arms]
    repeated = sorted({label for label in labels if labels.count(label) > 1})
    if repeated:
        raise InputError(f"several encoders are {', '.join(repeated)} (name, seed): name each method with NAME=PATH")
    if not arms:
        raise InputError("no encoder: name a run, or give -p PRESET and --random_seeds above 0")
    return arms


def collection_notes(trained: Sequence[TrainedEncoder], collection: PreprocessedCollection) -> list[str]:
    """How the images of a collection differ from those that the encoders were pretrained on.

    Raises:
        InputError: when their spacing differs.
    """
    remedy = "Preprocess the collection with --spacing, or choose another one"
    ct = collection.header["normalisation"]["ct"]
    return _notes(trained, collection.spacing, ct, str(collection.folder), collection.name, remedy)


def normalisation_notes(trained: Sequence[TrainedEncoder], used: Normalisation, source: str) -> list[str]:
    """How labelled images, as they are normalised, differ from those that the encoders were pretrained on.

    Args:
        trained: encoders.
        used: normalisation of the images.
        source: the collection or encoder that it is of.

    Raises:
        InputError: when the spacing differs.
    """
    remedy = "Analyse encoders of one spacing at a time, or name a collection of their spacing with -c"
    return _notes(trained, used.spacing, used.ct, source, source, remedy)


def _notes(
    trained: Sequence[TrainedEncoder],
    spacing: Sequence[float],
    ct: Mapping[str, float],
    source: str,
    name: str,
    remedy: str,
) -> list[str]:
    notes = []
    for encoder in trained:
        found = encoder.normalisation
        if found is None:
            continue
        if not np.allclose(found.spacing, spacing, rtol=0.05):
            raise InputError(
                f"{encoder.name}: pretrained at {format_spacing(found.spacing)}, but {source} has "
                f"{format_spacing(spacing)}. {remedy}"
            )
        common = sorted(found.ct.keys() & ct.keys())
        changed = [key for key in common if not np.isclose(found.ct[key], ct[key], rtol=0.02, atol=1)]
        if changed:
            notes.append(
                f"{encoder.name}: the CTs of {name} are normalised differently than those it was pretrained "
                f"on ({', '.join(f'{k} {ct[k]:g} instead of {found.ct[k]:g}' for k in changed)})"
            )
    return notes
