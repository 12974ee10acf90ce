from matplotlib.figure import Figure
from matplotlib.image import imread

from nnunetv2_swinfuse.demo.picture import draw_demo
from nnunetv2_swinfuse.demo.volumes import write_nnunet_raw


def test_the_picture_shows_every_test_case(tmp_path):
    dataset = write_nnunet_raw(tmp_path, 501, "Synthetic", train_cases=1, test_cases=2)
    panel = tmp_path / "panel.png"
    Figure(figsize=(2, 2)).savefig(panel)
    # The reference serves as a perfect prediction.
    picture = imread(draw_demo(tmp_path / "demo.png", dataset, dataset / "labelsTs", panel))
    assert picture.shape[0] > 500
    assert picture.std() > 0.05
