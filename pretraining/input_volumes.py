"""The volumes that a command line of `swinfuse_pretrain` names: found, checked, preprocessed, opened for training."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from nnunetv2_swinfuse.architecture.topology import triple
from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.nnunet_names import PREPROCESSED, RAW
from pretraining.collections.collection import Collection, leave_out
from pretraining.configuration import Configuration
from pretraining.next_commands import train_command
from pretraining.nnunet_paths import required_paths
from pretraining.options import read_identifiers, setting_overrides
from pretraining.preprocessed.collection import INDEX, PreprocessedCollection
from pretraining.run_configuration import new_configuration


def find_volumes(options: argparse.Namespace) -> Collection:
    """Finds the collection that the command line names, in nnUNet_raw, without the patients to be left out."""
    from pretraining.collections.modalities import ModalityMap
    from pretraining.collections.resolve import find_collections

    (raw,) = required_paths(RAW)
    modalities = ModalityMap.from_words(options.modality)
    collection = find_collections(options.dataset, raw, modalities, options.unpaired, options.different_patients)
    return leave_out(collection, read_identifiers(options.leave_out)) if options.leave_out else collection


def preprocess_only(options: argparse.Namespace) -> None:
    """Preprocesses the collection, or a part of it."""
    _, preprocessed = required_paths(RAW, PREPROCESSED)
    overrides = setting_overrides(options)
    configuration = new_configuration(options, overrides)
    collection = find_volumes(options)
    folder = preprocess_collection(collection, options, configuration, preprocessed, options.overwrite)
    if not (folder / INDEX).is_file():
        print(f"Part {options.part_id} of {options.num_parts} is done; the last part to finish writes {folder / INDEX}")
        return
    print(f"Preprocessed: {folder}")
    counts = PreprocessedCollection.open(folder).header["volumes"]
    if all(counts[domain] for domain in configuration.modalities):
        print(f"Train with: {train_command(options, overrides)}")


def preprocess_collection(
    collection: Collection,
    options: argparse.Namespace,
    configuration: Configuration,
    preprocessed: Path,
    overwrite: bool,
    before_deleting: Callable[[], None] | None = None,
) -> Path:
    """Checks the headers and preprocesses what is missing, or with `overwrite` everything; returns the folder."""
    # nnunetv2 and SimpleITK take seconds to import, and --train_only needs neither.
    from pretraining.collections.integrity import check
    from pretraining.preprocessing.preprocess import preprocess

    print(collection.summary())
    return preprocess(
        collection,
        preprocessed,
        crop_size=triple(configuration.crop_size),
        spacing=configuration.spacing,
        ct_intensities=configuration.ct_intensities,
        grids=check(collection, options.processes),
        processes=options.processes,
        validation_share=configuration.validation_share,
        seed=configuration.seed,
        overwrite=overwrite,
        before_deleting=before_deleting,
        part=options.part_id,
        parts=options.num_parts,
    )


def open_preprocessed(folder: Path, configuration: Configuration) -> PreprocessedCollection:
    """Opens a preprocessed collection and checks that the run can use it.

    Raises:
        InputError: when it was preprocessed with other settings, is incomplete, or lacks a modality of the run.
    """
    volumes = PreprocessedCollection.open(folder)
    differences = volumes.differences(
        configuration.spacing, configuration.validation_share, configuration.ct_intensities
    )
    if differences:
        raise InputError(
            f"{folder} was preprocessed with other settings ({'; '.join(differences)}). Use the same, or preprocess "
            "again with --preprocess_only --overwrite"
        )
    missing = [domain for domain in configuration.modalities if not volumes.header["volumes"][domain]]
    if missing:
        raise InputError(
            f"{folder}: no {missing[0]} volume, but the run learns from {' and '.join(configuration.modalities)}; "
            "see --modalities"
        )
    return volumes
