"""Main memory of swinfuse_predict against its estimate: `python -m benchmarks.prediction_memory`.

Three cases of each size go through nnU-Net's functions as in `swinfuse_predict`, the next one being read and the last
one written while one is predicted, in a process of its own on the CPU, with a tiny network of random weights. Printed:
what the process needs at most beyond the loaded model (Linux), the estimate without its margin, and the quotient.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measure import _resident
from nnunetv2_swinfuse.inference import estimate
from nnunetv2_swinfuse.inference.case_runner import CaseTask, run_cases


def measure(side: int, spacing_factor: float) -> tuple[int, int]:
    """Peak and estimate in bytes, for a cube of that many voxels with a multiple of the plan's spacing."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    from nnunetv2_swinfuse.inference.loading import load_model
    from tests.nnunetv2_swinfuse.inference.synthetic_models import SPACING, ct_voxels, write_image, write_whole_model

    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        predictor = nnUNetPredictor(1.0, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
        load_model(write_whole_model(root / "results"), None, "checkpoint_final.pth", predictor)
        spacing = tuple(spacing_factor * size for size in SPACING)
        shape = (side,) * 3
        image = write_image(root / "a_0000.nii.gz", ct_voxels(shape=shape), spacing)
        warm_up = write_image(root / "b_0000.nii.gz", ct_voxels(), SPACING)
        list(run_cases([CaseTask("b", (warm_up,), root / "b")], predictor, False, 0, 0))
        gc.collect()
        before = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        for result in run_cases([CaseTask(name, (image,), root / name) for name in "acd"], predictor, False, 1, 1):
            if result.error:
                raise RuntimeError(result.details)
        needed = estimate.estimate_case(shape, spacing, 1, predictor).memory / estimate.MARGIN
        return _resident("VmHWM") - before, int(needed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[96, 128])
    options = parser.parse_args()
    print("| voxels | resampled by | measured MB | estimated MB without margin | measured / estimated |")
    print("| --- | --- | --- | --- | --- |")
    for side in options.sides:
        for factor in (1.0, 0.5, 1.5):
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                measured, estimated = pool.submit(measure, side, factor).result()
            numbers = f"{measured / 1e6:.0f} | {estimated / 1e6:.0f} | {measured / estimated:.2f}"
            print(f"| {side}^3 | {factor:g} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
