import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.out_of_memory import explain_out_of_memory

from .synthetic import CPU, tiny


def too_much_on_the_cpu():
    torch.empty(2**58, dtype=torch.uint8)


def too_much_on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")


@pytest.mark.parametrize("allocate", [too_much_on_the_cpu, too_much_on_a_gpu])
def test_too_little_memory_names_the_settings_to_lower(allocate):
    with (
        pytest.raises(
            InputError, match=r"2 pairs of crops of 16 x 16 x 16 voxels .*--checkpointing.*--batch_size.*--crop"
        ),
        explain_out_of_memory(tiny(), CPU, 2),
    ):
        allocate()
    with pytest.raises(InputError) as caught, explain_out_of_memory(tiny(checkpointing=True), CPU, 2):
        allocate()
    assert "--checkpointing" not in str(caught.value)


def test_other_errors_pass():
    with pytest.raises(RuntimeError, match="shapes"), explain_out_of_memory(tiny(), CPU, 2):
        raise RuntimeError("shapes differ")
