import io

import numpy as np
import pytest
import SimpleITK as sitk
from matplotlib.figure import Figure
from PIL import Image

from nnunetv2_swinfuse.benchmark import figures


@pytest.fixture
def drawn(monkeypatch):
    """The figures, by which what is on them can be read; the files are still written."""
    kept = []
    write = figures.png
    monkeypatch.setattr(figures, "png", lambda figure: kept.append(figure) or write(figure))
    return kept


@pytest.fixture
def analysis(plain_analysis):
    return plain_analysis[2]


def test_png_has_the_size_of_the_figure():
    image = Image.open(io.BytesIO(figures.png(Figure(figsize=(3, 2)))))
    assert (image.format, image.size) == ("PNG", (330, 220))


def test_the_matrix_is_antisymmetric_and_marks_what_is_shown(drawn, analysis):
    (found,) = analysis.comparisons["Dice"]
    figures.draw_matrix([found], ["nnunet", "not_compared", "resenc_m"])
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ["nnunet", "resenc_m"]
    texts = {text.get_position(): text.get_text() for text in axis.texts}
    mean = found.estimate.mean
    assert texts == {(0, 1): f"{mean:+.3f} *", (1, 0): f"{-mean:+.3f} *"}


def test_lower_is_better_turns_the_colours_of_the_matrix(drawn, analysis):
    for metric in ("Dice", "HD95"):
        figures.draw_matrix(analysis.comparisons[metric], ["nnunet", "resenc_m"])
    # resenc_m is better in both: green, the upper end of the colours, in its row.
    for figure in drawn:
        (image,) = figure.axes[0].images
        assert image.get_array()[1, 0] > 0


def test_boxes_show_cases_and_a_point_for_each_run(drawn, analysis):
    (group,) = analysis.groups
    figures.draw_boxes(group.scores)
    (axis,) = drawn[0].axes
    points = [line for line in axis.lines if line.get_marker() == "." and len(line.get_ydata()) == 3]
    assert len(points) == 2
    np.testing.assert_array_equal(points[0].get_ydata(), group.scores.run_means("nnunet"))
    assert [label.get_text() for label in axis.get_xticklabels()] == ["nnunet", "resenc_m"]


def test_ranks_are_sorted_best_first(drawn):
    figures.draw_ranks({"worst": (2.5, 2.0, 3.0), "best": (1.5, 1.0, 2.0)}, 0.8)
    (axis,) = drawn[0].axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["best", "worst"]
    assert [text.get_text() for text in axis.texts] == ["critical difference 0.80"]


def test_curves_have_a_line_for_each_run_on_both_axes(drawn):
    run = {"train_losses": [0.5, 0.2], "mean_fg_dice": [0.4, 0.6]}
    figures.draw_curves({"nnunet": [run, run], "resenc_m": [run]})
    losses, dice = drawn[0].axes
    assert [len(axis.lines) for axis in (losses, dice)] == [3, 3]
    np.testing.assert_array_equal(dice.lines[0].get_ydata(), [0.4, 0.6])
    assert [text.get_text() for text in dice.get_legend().get_texts()] == ["nnunet", "resenc_m"]


def test_a_case_is_the_slice_with_the_largest_reference(drawn):
    image = np.arange(4, dtype=float)[:, None, None] + np.linspace(0, 0.5, 64).reshape(8, 8)
    reference = np.zeros((4, 8, 8), np.uint8)
    reference[1, 2:4, 2:4] = 1
    reference[2, 2:7, 2:7] = 1
    figures.draw_case(image, reference, {"nnunet": reference, "resenc_m": np.zeros_like(reference)})
    axes = drawn[0].axes
    assert [axis.get_title() for axis in axes] == ["nnunet", "resenc_m"]
    for axis in axes:
        np.testing.assert_array_equal(axis.images[0].get_array(), image[2])
    # Contours of reference and prediction; the second arm predicts nothing.
    assert [len(axis.collections) for axis in axes] == [2, 1]


def test_cases_of_many_arms_are_drawn_in_rows(drawn):
    volume = np.zeros((1, 8, 8))
    volume[0, 2:4, 2:4] = 1
    figures.draw_case(volume, volume, {f"arm_{index}": volume for index in range(6)})
    axes = drawn[0].axes
    assert [axis.get_subplotspec().rowspan.start for axis in axes] == [0] * 4 + [1] * 4
    assert [axis.get_title() for axis in axes] == [f"arm_{index}" for index in range(6)] + ["", ""]


def test_volumes_are_read_as_z_y_x(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(figures.read_volume(tmp_path / "a.nii.gz"), array)
