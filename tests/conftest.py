"""Fixtures of several folders. What they build is in modules beside the tests, imported only where it is needed."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Set before torch and nnunetv2 are imported, which read these once; commands that tests start inherit them.
# Two cores whose idle threads spin slow each other down many times over; sleeping costs nothing here.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# pytest-xdist runs one worker per core (pyproject.toml): further threads of a worker would only wait for each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# nnU-Net would start eight processes for every validation and prediction.
os.environ.setdefault("nnUNet_def_n_proc", "1")

if TYPE_CHECKING:
    from nnunetv2_swinfuse.architecture.encoder import EncoderSettings
    from tests.nnunetv2_swinfuse.training.workshop import Workshop


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need nnU-Net's preprocessed datasets are slow: each worker takes ten seconds to prepare them."""
    for item in items:
        if "nnunet_datasets" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Exempts the modules of torch and nnunetv2 from garbage collection: walking them takes half a second each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def settings() -> EncoderSettings:
    """A tiny Swin encoder."""
    from nnunetv2_swinfuse.architecture.encoder import EncoderSettings

    return EncoderSettings(
        feature_size=12,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=3,
        domain_invariance={"layers": 2, "max_cells": 64, "mlp_ratio": 2.0},
    )


@pytest.fixture
def residual_settings() -> EncoderSettings:
    """A tiny residual encoder."""
    from nnunetv2_swinfuse.architecture.encoder import EncoderSettings

    return EncoderSettings(
        feature_size=8,
        depths=(1, 2),
        num_heads=(2,),
        domain_invariance={"layers": 1, "max_cells": 64, "mlp_ratio": 2.0},
        backbone="resenc",
    )


@pytest.fixture(scope="session")
def nnunet_datasets(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two preprocessed datasets and a published encoder; no test may change anything in here."""
    from tests.nnunetv2_swinfuse.training.workshop import prepare_datasets

    return prepare_datasets(tmp_path_factory.mktemp("nnunet"))


@pytest.fixture(scope="session")
def trained(nnunet_datasets: Workshop) -> Workshop:
    """Fold 0 of the plain dataset, trained by nnU-Net's own `run_training`; no test may change anything in here."""
    import torch
    from nnunetv2.run.run_training import run_training

    from tests.nnunetv2_swinfuse.training.workshop import TRAINER

    with pytest.MonkeyPatch.context() as monkeypatch:
        nnunet_datasets.use(monkeypatch)
        run_training("901", "3d_fullres", 0, TRAINER, device=torch.device("cpu"))
    return nnunet_datasets


@pytest.fixture
def workshop(nnunet_datasets: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    """The datasets, an empty results folder of the test's own, and nothing published."""
    import numpy as np
    import torch

    from tests.nnunetv2_swinfuse.training.workshop import Workshop

    own = Workshop(nnunet_datasets.raw, nnunet_datasets.preprocessed, tmp_path / "results")
    own.results.mkdir()
    own.use(monkeypatch)
    # Every trainer draws from the global generators.
    np.random.seed(0)
    torch.manual_seed(0)
    return own


@pytest.fixture
def published(workshop: Workshop) -> Workshop:
    """The same with the encoder published."""
    from tests.nnunetv2_swinfuse.training.workshop import publish_encoder

    publish_encoder(workshop.encoder)
    return workshop


@pytest.fixture
def copied(workshop: Workshop, trained: Workshop) -> Workshop:
    """The same with a copy of the trained model, and nothing published."""
    import shutil

    shutil.copytree(trained.model(), workshop.model())
    return workshop
