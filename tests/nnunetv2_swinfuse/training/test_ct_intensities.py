import pytest

from nnunetv2_swinfuse.training.ct_intensities import ct_intensity_warning

# Of the body, in a collection for pretraining; and of labelled organs of the abdomen.
BODY = {"std": 154.0, "percentile_00_5": -391.0, "percentile_99_5": 1134.0}
ORGANS = {"std": 43.5, "percentile_00_5": -29.0, "percentile_99_5": 238.0}
CT, MR = "CTNormalization", "ZScoreNormalization"


def warning(own, recorded=BODY, schemes=(CT,)):
    properties = {str(channel): own for channel in range(len(schemes))}
    return ct_intensity_warning(properties, schemes, recorded, 511)


def test_another_scale_is_a_warning_with_both_and_what_to_do():
    text = warning(ORGANS, schemes=(MR, CT))
    assert text.startswith(
        "channel 1 (CT): the plans clip intensities to -29 to 238, standard deviation 43.5; the encoder was pretrained "
        "with -391 to 1134, 154. Differences are 3.54 times as large as in pretraining. Plan with "
        "swinfuse_plan_and_preprocess -d 511 --normalisation_as_pretrained"
    )


@pytest.mark.parametrize(
    ("changes", "warned"),
    [
        ({}, False),
        ({"std": 1.49 * 154}, False),
        ({"std": 1.51 * 154}, True),
        ({"std": 154 / 1.49}, False),
        ({"std": 154 / 1.51}, True),
        ({"std": 0.0}, True),
        ({"percentile_99_5": 400.0}, False),
        ({"percentile_99_5": 300.0}, True),
        # Stored with an offset of 1024.
        ({"percentile_00_5": 633.0, "percentile_99_5": 2158.0}, True),
    ],
)
def test_the_limits(changes, warned):
    assert bool(warning({**BODY, **changes})) == warned


def test_nothing_is_said_where_nothing_is_known_or_there_is_no_ct():
    assert warning(ORGANS, {}) is None
    assert warning(ORGANS, {"std": 154.0}) is None
    assert warning({}) is None
    assert warning(ORGANS, schemes=(MR, MR)) is None
