"""Names of nnU-Net that this package uses, and this package's own names next to them; standard library only."""

from __future__ import annotations

# Environment variables.
RAW, PREPROCESSED, RESULTS = "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"
PATHS = (RAW, PREPROCESSED, RESULTS)
EXTERNAL_TRAINERS = "nnUNet_extTrainer"
ENCODER = "SWINFUSE_CHECKPOINT"

# Plans: of nnU-Net's default planner and of ours; the file in a model's folder.
STOCK_PLANS = "nnUNetPlans"
SWINFUSE_PLANS = "nnUNetSwinFUSEPlans"
PLANS_FILE = "plans.json"

# Files and folders of a dataset; the first two are copied into a model's folder.
DATASET_FILE, FINGERPRINT_FILE = "dataset.json", "dataset_fingerprint.json"
IMAGES, LABELS = "imagesTr", "labelsTr"

# Normalisation of CT in plans.
CT_SCHEME = "CTNormalization"

# The reader of images that turns them to RAS order, as pretraining does; named in dataset.json.
REORIENTING_READER = "SimpleITKIOWithReorient"

# Trainers.
STOCK_TRAINER = "nnUNetTrainer"
TRAINER = "nnUNetTrainerSwinFUSE"
