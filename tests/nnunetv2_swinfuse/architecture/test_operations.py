import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nnunetv2_swinfuse.architecture.domain_invariance import DomainInvariance, DomainInvarianceSettings
from nnunetv2_swinfuse.architecture.encoder import DomainInvariantEncoder, EncoderSettings
from nnunetv2_swinfuse.architecture.operations import affordable_cells
from nnunetv2_swinfuse.architecture.residual_encoder import ResidualEncoder
from nnunetv2_swinfuse.architecture.swin_encoder import SwinEncoder

pytestmark = pytest.mark.slow

HALVING = (2, 2, 2)
TINY = {"depths": (2, 2), "num_heads": (3, 6), "window_size": 4, "feature_size": 24}


def count(module: nn.Module, *inputs: torch.Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops()


def swin(settings: EncoderSettings, strides: list[tuple[int, int, int]]) -> SwinEncoder:
    with torch.device("meta"):
        return SwinEncoder(settings, strides).eval()


def residual(feature_size: int, strides: list[tuple[int, int, int]], kernels=None) -> ResidualEncoder:
    settings = EncoderSettings(feature_size, (1, 2, 3), (2,), backbone="resenc")
    with torch.device("meta"):
        return ResidualEncoder(settings, strides, kernels).eval()


def costs(encoder: DomainInvariantEncoder, channels: int, shape: tuple[int, int, int]) -> tuple[int, int]:
    """Floating point operations of the module and of the backbone on an embedding of this size (z, y, x)."""
    embedding = torch.zeros(1, channels, *shape, device="meta")
    module = count(encoder.domain_invariance, embedding)
    return module, count(encoder, embedding) - module


def test_swin_operations_are_those_counted_where_windows_fill_the_map():
    settings = EncoderSettings(**TINY, domain_invariance=None)
    encoder = swin(settings, [HALVING, (1, 2, 2)])
    shape = (8, 16, 16)
    counted = count(encoder, torch.zeros(1, 24, *shape, device="meta"))
    with_module = swin(EncoderSettings(**TINY), [HALVING, (1, 2, 2)])
    assert with_module.domain_invariance.backbone_operations(shape) == pytest.approx(counted, rel=0.001)


def test_residual_operations_are_those_counted_but_for_shortcuts():
    encoder = residual(8, [(1, 1, 1), (1, 2, 2), HALVING], [(1, 3, 3), (3, 3, 3), (3, 3, 3)])
    _, counted = costs(encoder, 8, (8, 16, 16))
    assert 0.95 * counted < encoder.domain_invariance.backbone_operations((8, 16, 16)) <= counted


@pytest.mark.parametrize("cells", [1, 64, 1000])
def test_affordable_cells_inverts_the_cost_of_the_blocks(cells):
    settings = DomainInvarianceSettings(layers=3, max_cells=10**6, mlp_ratio=3.0)
    with torch.device("meta"):
        module = DomainInvariance(12, 2, settings)
    x = torch.zeros(1, 12, 1, 1, cells, device="meta")
    counted = count(module, x) - 2 * cells * 12**2  # without the last projection
    assert affordable_cells(counted, 12, 3, 3.0) == pytest.approx(cells, rel=1e-6)


@pytest.mark.parametrize(
    "shape",
    [(48, 48, 48), (20, 28, 20), (32, 32, 32), (64, 64, 64), (32, 64, 56), (20, 160, 128), (8, 8, 8), (16, 16, 16)],
)
@pytest.mark.parametrize("sizes", [{}, TINY], ids=["base", "tiny"])
def test_the_module_costs_at_most_half_of_the_swin_stages_on_every_map(shape, sizes):
    settings = EncoderSettings(**sizes)
    module, stages = costs(swin(settings, [HALVING] * len(settings.depths)), settings.feature_size, shape)
    assert module <= 0.5 * stages


@pytest.mark.parametrize("shape", [(16, 16, 16), (32, 32, 32), (20, 64, 64)])
@pytest.mark.parametrize("feature_size", [8, 32])
def test_the_module_costs_at_most_half_of_the_residual_stages_on_every_map(shape, feature_size):
    module, stages = costs(residual(feature_size, [(1, 1, 1), HALVING, HALVING]), feature_size, shape)
    assert module <= 0.5 * stages
