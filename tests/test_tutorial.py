"""docs/tutorial.md is true: its commands run in order, on tiny synthetic volumes, and write what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sysconfig
from pathlib import Path

import pytest
import SimpleITK as sitk

from nnunetv2_swinfuse.demo.volumes import make_patient, write_nnunet_raw
from nnunetv2_swinfuse.nnunet_names import EXTERNAL_TRAINERS

TUTORIAL = Path(__file__).parents[1] / "docs" / "tutorial.md"
TRAINER = "nnUNetTrainerSwinFUSE_1epoch"
# What makes each command small enough for a test; a command that the page no longer has fails the test.
SMALL_STEPS = "--steps 2 --validate_every 2 --validation_batches 1 --batch_size 2 --workers 0 --device cpu"
REPLACEMENTS = {
    "swinfuse_pretrain -d Heads -p tiny\n": f"swinfuse_pretrain -d Heads -p tiny {SMALL_STEPS}\n",
    "-c 3d_fullres\n": "-c 3d_fullres -gpu_memory_target 0.2 -npfp 1 -np 1\n",
    "swinfuse_train 501": "nnUNet_n_proc_DA=0 swinfuse_train 501",
    "swinfuse_train 501 3d_fullres 0\n": f"swinfuse_train 501 3d_fullres 0 -tr {TRAINER} -device cpu\n",
    "-tr nnUNetTrainerSwinFUSE -f 0": f"-tr {TRAINER} -f 0 -device cpu --disable_tta -npp 1 -nps 1",
}
# Variables of the user's own that would change what the commands do.
LEFT_OUT = ("nnUNet", "SWINFUSE", EXTERNAL_TRAINERS)


def commands(page: str) -> str:
    """The fenced bash blocks of a page, as one script."""
    return "\n".join(re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL))


def write_data(folder: Path) -> None:
    """Three registered pairs, a CT and an MR of other patients, and five labelled cases with one to predict."""
    for modality, seeds in (("ct", (0, 1, 2, 3)), ("mr", (0, 1, 2, 4))):
        (folder / "volumes" / modality).mkdir(parents=True)
        for seed in seeds:
            patient = make_patient(seed)
            image = sitk.GetImageFromArray(patient.ct if modality == "ct" else patient.mr)
            image.SetSpacing(patient.spacing[::-1])
            sitk.WriteImage(image, str(folder / "volumes" / modality / f"patient{seed}.nii.gz"))
    write_nnunet_raw(folder / "nnUNet_raw", 501, "Brain", train_cases=5, test_cases=1)


@pytest.mark.slow
def test_the_commands_of_the_tutorial_run(tmp_path):
    script = commands(TUTORIAL.read_text())
    for command, small in REPLACEMENTS.items():
        assert script.count(command) == 1, f"the tutorial no longer says {command!r} once"
        script = script.replace(command, small)
    write_data(tmp_path)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(LEFT_OUT)}
    environment |= {
        "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}",
        "SWINFUSE_ITERATIONS_PER_EPOCH": "2",
        "SWINFUSE_VALIDATION_ITERATIONS_PER_EPOCH": "1",
        "nnUNet_def_n_proc": "1",
        "nnUNet_n_proc_DA": "1",
    }
    script = script.replace("/data", str(tmp_path))
    result = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, (result.stdout + result.stderr)[-4000:]
    assert "3 paired" in result.stdout
    results = tmp_path / "nnUNet_results"
    assert (results / "Heads" / "swinfuse__tiny" / "report.html").stat().st_size > 10_000
    assert (results / "Heads" / "swinfuse__tiny" / "log.txt").is_file()
    assert (results / "swinfuse" / "encoder.pth").is_file()
    fold = results / "Dataset501_Brain" / f"{TRAINER}__nnUNetPlans__3d_fullres" / "fold_0"
    assert (fold / "checkpoint_final.pth").is_file()
    (log,) = fold.glob("training_log_*.txt")
    assert re.search(r"matched", log.read_text())
    assert [path.name for path in (tmp_path / "segmentations").glob("*.nii.gz")] == ["case_005.nii.gz"]
