import matplotlib.image
import pytest

from pretraining.analysis.density_sensitivity import draw_sweeps, estimate, sweep

from . import synthetic_analysis as synthetic

pytestmark = pytest.mark.slow

EQUAL = synthetic.layer_tokens(0, channels=12), synthetic.layer_tokens(1, channels=12)
SHIFTED = EQUAL[0], synthetic.layer_tokens(1, channels=12, shift=5.0)


@pytest.mark.parametrize("bandwidth", [0.25, 0.5])
def test_equal_sets_are_at_their_floor_and_separated_ones_are_not(bandwidth):
    equal, shifted = (estimate(*sets, bandwidth, 8, 200, 0) for sets in (EQUAL, SHIFTED))
    assert equal.divergence == pytest.approx(equal.floor, abs=0.1)
    assert shifted.divergence - shifted.floor > 0.5


def test_wide_kernels_blur_what_separates_the_sets():
    narrow, middle, wide = (estimate(*SHIFTED, bandwidth, 8, 200, 0).divergence for bandwidth in (0.25, 0.5, 1.0))
    assert narrow > middle > 2 * wide


def test_wide_kernels_blur_the_difference():
    narrow, wide = (estimate(*SHIFTED, bandwidth, 8, 200, 0).divergence for bandwidth in (0.5, 4.0))
    assert wide < narrow / 3


def test_the_bandwidth_of_the_loss_gives_the_value_of_the_loss():
    from pretraining.analysis.domain_gap import measure_gap

    # Without a projection and with all tokens nothing is random.
    sets = synthetic.layer_tokens(0, channels=4), synthetic.layer_tokens(1, channels=4, shift=1.0)
    assert estimate(*sets, 0.5, 8, 10_000, 0).divergence == pytest.approx(
        measure_gap(*sets, False, 0).divergence, abs=1e-4
    )


def test_no_more_tokens_and_dimensions_are_used_than_there_are():
    found = estimate(*EQUAL, 0.5, 1000, 10_000, 0)
    assert (found.dimensions, found.tokens) == (12, 256)
    result = sweep(*EQUAL, [0.5], [8, 16, 1000], [64, 128], 0)
    assert [e.dimensions for e in result.by_bandwidth] == [8, 12]
    assert {(e.dimensions, e.tokens) for e in result.by_tokens} == {(8, 64), (12, 64), (8, 128), (12, 128)}


def test_sweeps_are_drawn(tmp_path):
    result = sweep(*EQUAL, [0.25, 0.5], [4], [64, 128], 0)
    path = draw_sweeps(tmp_path / "s.png", {"random 0": result, "ours 0": result}, "Synthetic")
    assert matplotlib.image.imread(path).std() > 0.01
