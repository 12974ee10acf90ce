import matplotlib.image
from matplotlib.colors import to_hex

from pretraining.analysis.figures import (
    COLOURS,
    GREY,
    arm_styles,
    colour_of,
    draw_curves,
    marker_of,
    new_figure,
    save,
    shared_legend,
)


def test_colour_and_marker_together_tell_many_arms_apart():
    styles = [(colour_of(number), marker_of(number)) for number in range(4 * len(COLOURS))]
    assert len(set(styles)) == len(styles)


def test_random_encoders_of_other_architectures_are_told_apart():
    styles = arm_styles(["random", "random as simmim", "ours", "simmim"], "random")
    assert [style.color == GREY for style in styles.values()] == [True, True, False, False]
    assert len({style[1:] for style in styles.values()}) == 4
    assert styles["ours"] == (colour_of(0), marker_of(0), "-")
    _, axes = new_figure(1, 1)
    draw_curves(axes[0, 0], ["a", "b"], {"random": [[0, 1]], "random as simmim": [[1, 2]]}, "random")
    first, second = axes[0, 0].lines
    assert first.get_linestyle() != second.get_linestyle()


def test_random_encoders_are_grey_and_the_others_keep_their_colour_in_every_panel():
    figure, axes = new_figure(1, 2)
    draw_curves(axes[0, 0], ["a", "b"], {"random": [[0, 1], [1, 2]], "x": [[1, 1]], "y": [[2, 2]]}, "random")
    draw_curves(axes[0, 1], ["a", "b"], {"random": [[0, 1]], "x": [[None, None]], "y": [[2, None]]}, "random")
    colours = [{line.get_label(): to_hex(line.get_color()) for line in axis.lines} for axis in axes.flat]
    assert colours[0]["random"] == GREY.lower()
    assert colours[0]["y"] == colours[1]["y"] != colours[0]["x"]
    assert "x" not in colours[1]
    # Two seeds: a line at their mean, within a band.
    assert axes[0, 0].lines[0].get_ydata().tolist() == [0.5, 1.5]
    assert len(axes[0, 0].collections) == 1
    shared_legend(figure, axes)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "x", "y"]


def test_small_differences_do_not_look_large():
    _, axes = new_figure(1, 1)
    draw_curves(axes[0, 0], [0.0, 1.0], {"x": [[0.5, 0.501]]}, "random")
    low, high = axes[0, 0].get_ylim()
    assert high - low >= 0.1 - 1e-9
    assert low < 0.5 < high


def test_figures_are_written_as_png(tmp_path):
    figure, axes = new_figure(1, 1)
    draw_curves(axes[0, 0], [0.0, 1.0], {"x": [[0, 1]]}, "random")
    path = save(figure, tmp_path / "f.png")
    assert matplotlib.image.imread(path).std() > 0.01
    assert [file.name for file in tmp_path.iterdir()] == ["f.png"]
