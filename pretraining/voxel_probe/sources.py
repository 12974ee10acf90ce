"""Which arms the voxel probe measures: encoders of runs, random encoders and controls, each on the same voxels."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from nnunetv2_swinfuse.architecture.topology import Triple, triple
from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessing.fingerprint import Normalisation
from pretraining.voxel_probe.cases import load_case
from pretraining.voxel_probe.encoders import (
    RANDOM,
    XAVIER,
    FrozenEncoder,
    TrainedEncoder,
    collection_normalisation,
    preset_encoder,
    random_arms,
    read_encoder,
)
from pretraining.voxel_probe.features import (
    Features,
    coordinate_features,
    encoder_features,
    handmade_features,
    with_coordinates,
)
from pretraining.voxel_probe.probe import Arm
from pretraining.voxel_probe.results import COORDINATES, HANDMADE

CONTROLS = (RANDOM, HANDMADE, COORDINATES, XAVIER)


@dataclass(frozen=True)
class Source:
    """An arm before its features are built.

    Attributes:
        name, seed: name and seed of the arm.
        build: returns the features.
        divisor: what sizes of images must be divisible by.
        description: description of the features, for the digest of the inputs.
        normalisation: normalisation of the images.
    """

    name: str
    seed: int
    build: Callable[[], Features]
    divisor: Triple
    description: object
    normalisation: Normalisation


def make_sources(options: argparse.Namespace, preprocessed_root: Path) -> tuple[list[Source], dict[str, str]]:
    """The arms in the order of the table, and the arm of random encoders that each is compared with.

    Raises:
        InputError: for unusable encoders, two with the same name and seed, or spacings that differ.
    """
    trained = [read_encoder(words, preprocessed_root) for words in options.encoders]
    if options.preset:
        trained.append(preset_encoder(options.preset, options.recipe))
    if not trained and not options.controls:
        if not options.compare:
            raise InputError("nothing to do: name a run, give --controls, or --compare two arms that have rows")
        return [], {}
    if not trained and {RANDOM, XAVIER} & set(options.controls):
        raise InputError(
            f"no encoder: name a run, or give -p PRESET for random encoders, or --controls without {RANDOM}, {XAVIER}"
        )
    shared = collection_normalisation(options.collection, preprocessed_root) if options.collection else None
    normalisations = [_with_spacing(shared or arm.normalisation, arm.name, options.spacing) for arm in trained]
    first = normalisations[0] if normalisations else _with_spacing(shared, "the controls", options.spacing)
    differing = [
        a.name for a, n in zip(trained, normalisations, strict=True) if not np.allclose(n.spacing, first.spacing)
    ]
    if differing:
        raise InputError(
            f"{', '.join(differing)}: pretrained at another spacing than {trained[0].name} ({first.spacing} mm). All "
            "arms are measured on the same voxels: give --spacing Z Y X"
        )
    sources: list[Source] = []
    random_names = random_arms(trained)
    floors: dict[str, str] = {}
    for arm, normalisation in zip(trained, normalisations, strict=True):
        name = random_names[arm.architecture]
        if name not in floors.values():
            seeds = range(options.random_seeds)
            if RANDOM in options.controls:
                sources += [_random_source(name, arm, normalisation, seed) for seed in seeds]
            if XAVIER in options.controls:
                larger = name.replace(RANDOM, XAVIER, 1)
                sources += [_random_source(larger, arm, normalisation, seed, xavier=True) for seed in seeds]
                floors[larger] = name
        floors[arm.name] = name
        if arm.encoder.weights:
            sources.append(_trained_source(arm, normalisation))
    controls = {HANDMADE: handmade_features, COORDINATES: coordinate_features}
    for name, features in controls.items():
        if name in options.controls:
            build = with_coordinates(features) if name == HANDMADE else features
            sources.append(Source(name, 0, lambda build=build: build, (2, 2, 2), name, first))  # type: ignore[misc]
            floors[name] = RANDOM
    repeated = {(s.name, s.seed) for s in sources if sum((o.name, o.seed) == (s.name, s.seed) for o in sources) > 1}
    if repeated:
        raise InputError(
            f"several encoders are {', '.join(f'{name}, seed {seed}' for name, seed in sorted(repeated))}: give each "
            "method a name of its own with NAME=PATH"
        )
    return sources, floors


def make_arm(source: Source, divisor: Triple, options: argparse.Namespace, preprocessed_root: Path) -> Arm:
    """An arm with its features; sizes of images are divisible by `divisor` in all arms, so that they see the same."""
    crop = triple(options.crop)
    description = [source.description, asdict(source.normalisation), list(divisor), list(crop), options.channel]
    return Arm(
        source.name, source.seed, source.build(),
        lambda dataset, case: load_case(case, dataset, source.normalisation, crop, divisor, preprocessed_root),
        description,
    )  # fmt: skip


def _trained_source(arm: TrainedEncoder, normalisation: Normalisation) -> Source:
    def build() -> Features:
        network = arm.network(normalisation.spacing)
        return with_coordinates(encoder_features(network.patch_embed, network.encoder))

    return Source(arm.name, arm.seed, build, _divisor(arm), arm.digest, normalisation)


def _random_source(
    name: str, arm: TrainedEncoder, normalisation: Normalisation, seed: int, xavier: bool = False
) -> Source:
    def build() -> Features:
        network = FrozenEncoder(arm.encoder.settings, arm.encoder.strides, normalisation.spacing, seed, xavier)
        return with_coordinates(encoder_features(network.patch_embed, network.encoder))

    description = [arm.architecture, seed, *([XAVIER] if xavier else [])]
    return Source(name, seed, build, _divisor(arm), description, normalisation)


def _divisor(arm: TrainedEncoder) -> Triple:
    return arm.encoder.settings.topology(arm.encoder.strides).downsampling


def _with_spacing(normalisation: Normalisation | None, name: str, spacing: Sequence[float] | None) -> Normalisation:
    if normalisation is None:
        raise InputError(
            f"{name}: the normalisation of its images is not known; name a preprocessed collection with --collection"
        )
    if spacing is None:
        return normalisation
    z, y, x = spacing
    return replace(normalisation, spacing=(z, y, x))
