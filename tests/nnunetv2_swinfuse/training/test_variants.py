import pickle

import pytest

from nnunetv2_swinfuse.training import trainer, variants


@pytest.mark.parametrize(
    "name", ["nnUNetTrainerSwinFUSE", "nnUNetTrainerSwinFUSEFrozen", "nnUNetTrainerSwinFUSEScratch"]
)
@pytest.mark.parametrize(("suffix", "epochs"), [("1epoch", 1), ("5epochs", 5), ("50epochs", 50), ("250epochs", 250)])
def test_a_variant_differs_in_its_length_only(name, suffix, epochs):
    variant, base = variants.VARIANTS[f"{name}_{suffix}"], getattr(trainer, name)
    assert variant.__bases__ == (base,)
    assert variant.length == epochs
    assert {key for key in vars(variant) if not key.startswith("__")} == {"length"}


def test_spawned_processes_can_import_every_variant():
    for name, variant in variants.VARIANTS.items():
        assert getattr(variants, name) is variant
        assert pickle.loads(pickle.dumps(variant)) is variant
