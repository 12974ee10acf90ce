from nnunetv2_swinfuse.architecture.atomic_write import atomic_write
from nnunetv2_swinfuse.training.checkpoints import model_checkpoints, trained_folds


def test_a_fold_with_any_checkpoint_is_trained(tmp_path):
    for name in ("fold_1/checkpoint_best.pth", "fold_all/checkpoint_final.pth", "fold_all/checkpoint_latest.pth"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "fold_0").mkdir()
    assert trained_folds(tmp_path) == ["fold_1", "fold_all"]
    assert [path.name for path in model_checkpoints(tmp_path)] == [
        "checkpoint_best.pth", "checkpoint_final.pth", "checkpoint_latest.pth"
    ]  # fmt: skip
    assert trained_folds(tmp_path / "absent") == []


def test_what_a_killed_process_left_half_written_is_no_checkpoint(tmp_path):
    path = tmp_path / "fold_0" / "checkpoint_latest.pth"
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        assert trained_folds(tmp_path) == []
    assert trained_folds(tmp_path) == ["fold_0"]
