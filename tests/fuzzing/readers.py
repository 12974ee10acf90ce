"""Everything of this project that reads files."""

from __future__ import annotations

from pretraining.preprocessed.collection import INDEX, TABLE
from tests.fuzzing.images import (
    image,
    judge_compressed_nifti,
    judge_compressed_text_header,
    judge_damaged_then_compressed,
    judge_plain_nifti,
    judge_plain_text_header,
)
from tests.fuzzing.model_files import (
    judge_manifest,
    judge_model_checkpoint,
    judge_model_json,
    judge_model_zip,
    judge_record,
    manifest,
    model_checkpoint,
    model_json,
    model_zip,
    record,
)
from tests.fuzzing.pretraining_files import (
    encoder,
    index,
    judge_encoder,
    judge_index,
    judge_training_state,
    judge_volume_file,
    training_state,
    volume_file,
)
from tests.fuzzing.reader import Reader

READERS = {
    reader.name: reader
    for reader in (
        Reader("NIfTI, compressed", "a.nii.gz", lambda: image(".nii.gz", True), judge_compressed_nifti),
        Reader("NIfTI", "a.nii", lambda: image(".nii", False), judge_plain_nifti),
        Reader(
            "NIfTI, damaged, then compressed", "a.nii.gz", lambda: image(".nii", False), judge_damaged_then_compressed
        ),
        Reader("MetaImage, compressed", "a.mha", lambda: image(".mha", True), judge_compressed_text_header),
        Reader("MetaImage", "a.mha", lambda: image(".mha", False), judge_plain_text_header),
        Reader("NRRD, compressed", "a.nrrd", lambda: image(".nrrd", True), judge_compressed_text_header),
        Reader("NRRD", "a.nrrd", lambda: image(".nrrd", False), judge_plain_text_header),
        Reader("checkpoint of a model", "a.pth", model_checkpoint, judge_model_checkpoint),
        Reader("checkpoint of pretraining", "a.pth", training_state, judge_training_state),
        Reader("encoder", "encoder.pth", encoder, judge_encoder),
        Reader("preprocessed volume (blosc2)", "a.b2nd", volume_file, judge_volume_file),
        Reader("index.json", INDEX, lambda: index(INDEX), judge_index, text=True),
        Reader("index.npz", TABLE, lambda: index(TABLE), judge_index),
        *(
            Reader(name, name, lambda name=name: model_json(name), judge_model_json, text=True)  # type: ignore[misc]
            for name in ("plans.json", "dataset.json", "dataset_fingerprint.json")
        ),
        Reader("manifest of a model", "swinfuse_manifest.json", manifest, judge_manifest, text=True),
        Reader("record of orientations", "swinfuse_training_images.json", record, judge_record, text=True),
        Reader("model zip", "m.zip", model_zip, judge_model_zip),
    )
}
