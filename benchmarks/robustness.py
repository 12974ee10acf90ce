"""Bad input given to stock nnU-Net and to swinfuse_predict: what happens.

    python -m benchmarks.robustness -m MODEL -i SOUND_IMAGE [--kinds KIND ...] [-o results.json]

Every kind of bad input is made from one sound image (`.nii.gz`) of a CT model with one channel. Stock nnU-Net runs as
`nnUNetv2_predict -npp 0 -nps 0` does (without worker processes, which take longer to start than to fail), both on the
CPU, each in a process of its own with a time limit.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from tqdm import tqdm

from nnunetv2_swinfuse.inference.predict import main as swinfuse_predict

LIMIT_SECONDS = 180
NAME = "case_0000.nii.gz"
Kind = Callable[[sitk.Image, Path], None]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Registers a way to spoil an image: takes the image and an empty folder, writes into it."""

    def register(function: Kind) -> Kind:
        KINDS[name] = function
        return function

    return register


def save(voxels: np.ndarray, like: sitk.Image, folder: Path, name: str = NAME, **changes: Any) -> Path:
    """Voxels (z, y, x) on the grid of an image, with changes of spacing (x, y, z), direction or origin."""
    image = sitk.GetImageFromArray(voxels)
    if voxels.ndim == 3:
        image.SetSpacing(changes.get("spacing", like.GetSpacing()))
        image.SetDirection(changes.get("direction", like.GetDirection()))
        image.SetOrigin(changes.get("origin", like.GetOrigin()))
    sitk.WriteImage(image, str(folder / name))
    return folder / name


def voxels_of(image: sitk.Image) -> np.ndarray:
    return sitk.GetArrayFromImage(image).astype(np.float32)


def raw_nifti(image: sitk.Image) -> bytearray:
    """The image as an uncompressed NIfTI file."""
    with tempfile.TemporaryDirectory() as folder:
        sitk.WriteImage(image, f"{folder}/a.nii")
        return bytearray(Path(folder, "a.nii").read_bytes())


def spoil_voxels(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    KINDS[name] = lambda image, folder: save(change(voxels_of(image)), image, folder) and None


def spoil_header(name: str, offset: int, layout: str, *values: float) -> None:
    def spoil(image: sitk.Image, folder: Path) -> None:
        content = raw_nifti(image)
        struct.pack_into(layout, content, offset, *values)
        (folder / NAME).write_bytes(gzip.compress(bytes(content), 1))

    KINDS[name] = spoil


def spoil_file(name: str, change: Callable[[bytes], bytes], target: str = NAME) -> None:
    def spoil(image: sitk.Image, folder: Path) -> None:
        path = save(sitk.GetArrayFromImage(image), image, folder)
        content = change(path.read_bytes())
        path.unlink()
        (folder / target).write_bytes(content)

    KINDS[name] = spoil


def spoil_grid(name: str, **changes: Callable[[sitk.Image], tuple[float, ...]]) -> None:
    KINDS[name] = lambda image, folder: (
        save(voxels_of(image), image, folder, **{key: change(image) for key, change in changes.items()}) and None
    )


def with_one(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(voxels: np.ndarray) -> np.ndarray:
        voxels = voxels.astype(np.float64)
        voxels[tuple(side // 2 for side in voxels.shape)] = value
        return voxels

    return change


def noise(voxels: np.ndarray) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, voxels.shape).astype(np.float32)


def oriented(code: str) -> Callable[[sitk.Image], tuple[float, ...]]:
    return lambda _: sitk.DICOMOrientImageFilter.GetDirectionCosinesFromOrientation(code)


def flipped(content: bytes, share: float) -> bytes:
    damaged = bytearray(content)
    damaged[int(share * len(damaged))] ^= 0x10
    return bytes(damaged)


def register_kinds() -> None:
    """All kinds in groups: voxels, shape, geometry, header, file, channels."""
    spoil_voxels("all NaN", lambda v: np.full_like(v, np.nan))
    spoil_voxels("one NaN", with_one(np.nan))
    spoil_voxels("one infinite voxel", with_one(np.inf))
    spoil_voxels("one voxel of minus infinity", with_one(-np.inf))
    spoil_voxels("one voxel beyond float32", with_one(1e300))
    spoil_voxels("one voxel of 1e30", with_one(1e30))
    spoil_voxels("all zero", np.zeros_like)
    spoil_voxels("all -1000", lambda v: np.full_like(v, -1000))
    spoil_voxels("one nonzero voxel", lambda v: with_one(100.0)(np.zeros_like(v)))
    spoil_voxels("uniform noise of 0 to 1", lambda v: np.random.default_rng(0).random(v.shape, np.float32))
    spoil_voxels("normal noise", noise)
    spoil_voxels("an MR: magnitudes", lambda v: np.abs(v + 1000) * 0.7)
    spoil_voxels("CT without its rescale intercept", lambda v: v + 1024)
    spoil_voxels("CT with its intercept subtracted twice", lambda v: v - 1024)
    spoil_voxels("CT scaled tenfold", lambda v: v * 10)
    spoil_voxels("CT in 8 bits", lambda v: np.clip((v + 160) / 400 * 255, 0, 255).astype(np.uint8))
    spoil_voxels("CT normalised by z-score", lambda v: (v - v.mean()) / v.std())
    spoil_voxels("CT scaled to 0..1", lambda v: (v - v.min()) / np.ptp(v))
    spoil_voxels("negated CT", lambda v: -v)
    spoil_voxels("a segmentation", lambda v: (v > 0).astype(np.uint8) + (v > 100).astype(np.uint8))
    spoil_voxels("half of its slices constant zero", lambda v: np.where(np.arange(len(v))[:, None, None] % 2, v, 0))
    spoil_voxels("4D", lambda v: np.stack([v, v]))
    spoil_voxels("2D", lambda v: v[len(v) // 2])
    spoil_voxels("1 x 5 x 5 voxels", lambda v: v[:1, :5, :5])
    spoil_voxels("one slice", lambda v: v[len(v) // 2][None])
    spoil_voxels("three slices", lambda v: v[:3])
    spoil_voxels("one column", lambda v: v[:, :1, :1])
    spoil_voxels("a tenth along each axis", lambda v: v[tuple(slice(0, max(1, s // 10)) for s in v.shape)])
    spoil_voxels("an eighth of the slices", lambda v: v[: max(1, len(v) // 8)])
    spoil_grid("mirrored left to right", direction=oriented("RPS"))
    spoil_grid("upside down", direction=oriented("LPI"))
    spoil_grid("axes permuted", direction=oriented("SLP"))
    spoil_grid("spacing in metres", spacing=lambda i: tuple(s / 1000 for s in i.GetSpacing()))
    spoil_grid("spacing in micrometres", spacing=lambda i: tuple(s * 1000 for s in i.GetSpacing()))
    spoil_grid("spacing ten times too small", spacing=lambda i: tuple(s / 10 for s in i.GetSpacing()))
    spoil_grid("slices 20 times too far apart", spacing=lambda i: (*i.GetSpacing()[:2], 20 * i.GetSpacing()[2]))
    spoil_grid("spacing of 1e-6 mm", spacing=lambda _: (1e-6,) * 3)
    spoil_header("rank 0", 40, "<h", 0)
    spoil_header("rank 9", 40, "<h", 9)
    spoil_header("size 0", 42, "<h", 0)
    spoil_header("negative size", 42, "<h", -5)
    spoil_header("announces too many voxels", 42, "<h", 32000)
    spoil_header("announces too few voxels", 46, "<h", 5)
    spoil_header("spacing 0", 80, "<3f", 0, 0, 0)
    spoil_header("spacing NaN", 80, "<3f", *[float("nan")] * 3)
    spoil_header("slope NaN", 112, "<f", float("nan"))
    spoil_header("slope infinite", 112, "<f", float("inf"))
    spoil_header("unknown voxel type", 70, "<2h", 999, 16)
    spoil_header("voxel type of other length", 70, "<2h", 64, 16)
    spoil_header("colour voxels", 70, "<2h", 128, 24)
    spoil_header("complex voxels", 70, "<2h", 32, 64)
    spoil_header("voxels from byte -352 on", 108, "<f", -352)
    spoil_header("voxels beyond the end", 108, "<f", 1e9)
    spoil_header("sheared affine", 252, "<2h", 0, 2)
    spoil_header("affine of zeros", 280, "<12f", *[0.0] * 12)
    spoil_header("affine of NaN", 280, "<12f", *[float("nan")] * 12)
    spoil_file("0 bytes", lambda _: b"")
    spoil_file("text", lambda _: b"The image is on the other disk.")
    spoil_file("HTML of a login page", lambda _: b"<!DOCTYPE html><html><body>Please log in</body></html>" * 50)
    spoil_file("zeros in place of the file", lambda content: bytes(len(content)))
    spoil_file("truncated to 10 %", lambda content: content[: len(content) // 10])
    spoil_file("truncated to 50 %", lambda content: content[: len(content) // 2])
    spoil_file("truncated by 9 bytes", lambda content: content[:-9])
    spoil_file("one bit flipped at 30 %", lambda content: flipped(content, 0.3))
    spoil_file("one bit flipped at 90 %", lambda content: flipped(content, 0.9))
    spoil_file("gzip inside gzip", lambda content: gzip.compress(content, 1))
    spoil_file("not compressed in spite of its name", gzip.decompress)
    spoil_file("header only", lambda content: gzip.compress(gzip.decompress(content)[:352]))
    spoil_file("64 MiB of zeros in 64 kB", lambda _: gzip.compress(bytes(1 << 26)))
    spoil_file("garbage after the compressed stream", lambda content: content + b"garbage" * 99)
    spoil_file("zlib in place of gzip", lambda content: zlib.compress(gzip.decompress(content)))
    spoil_file("another ending", lambda content: content, "case_0000.nrrd")
    spoil_file("no channel number of four digits", lambda content: content, "case_00.nii.gz")


@kind("MetaImage by the name of NIfTI")
def _metaimage(image: sitk.Image, folder: Path) -> None:
    sitk.WriteImage(image, str(folder / "a.mha"))
    (folder / "a.mha").rename(folder / NAME)


@kind("second channel too many")
def _second_channel(image: sitk.Image, folder: Path) -> None:
    save(voxels_of(image), image, folder)
    save(voxels_of(image), image, folder, "case_0001.nii.gz")


@kind("only the second channel")
def _wrong_channel(image: sitk.Image, folder: Path) -> None:
    save(voxels_of(image), image, folder, "case_0001.nii.gz")


@kind("broken link")
def _broken_link(image: sitk.Image, folder: Path) -> None:
    (folder / NAME).symlink_to(folder / "nowhere")


@kind("a folder by the name of an image")
def _folder(image: sitk.Image, folder: Path) -> None:
    (folder / NAME).mkdir()


@kind("empty folder")
def _empty(image: sitk.Image, folder: Path) -> None:
    return


def stock(model: Path, images: Path, masks: Path) -> int:
    """What `nnUNetv2_predict -npp 0 -nps 0 -device cpu --disable_tta` does."""
    predictor = nnUNetPredictor(use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(model), None)
    # As for a folder, by the same rule, without the twelve processes that nnU-Net forks to list it.
    ending = predictor.dataset_json["file_ending"]
    cases: dict[str, list[str]] = {}
    for path in sorted(images.iterdir()):
        if path.is_file() and re.fullmatch(r".+_\d{4}" + re.escape(ending), path.name):
            cases.setdefault(path.name[: -len(ending) - 5], []).append(str(path))
    if not cases:
        return 0
    predictor.predict_from_files_sequential(list(cases.values()), [str(masks / case) for case in cases])
    return 0


def ours(model: Path, images: Path, masks: Path) -> int:
    """swinfuse_predict with the same settings."""
    arguments = ["-m", model, "-i", images, "-o", masks, "-device", "cpu", "--disable_tta", "--disable_progress_bar"]
    swinfuse_predict([str(argument) for argument in arguments])


def in_process(
    function: Callable[[Path, Path, Path], int], model: Path, images: Path, masks: Path, log: Path
) -> int | None:
    """Runs it in a forked process; its exit code, negative for a signal, None when it hung."""
    child = os.fork()
    if child == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 1
        try:
            code = function(model, images, masks)
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def outcome(code: int | None, masks: Path, log: Path) -> dict[str, Any]:
    """What a user sees: whether a mask appeared, the exit code, the last line of the output."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    made = sorted(path.name for path in masks.glob("*.nii.gz"))
    if code is None:
        what = "hung"
    elif code < 0:
        what = "crashed"
    elif code == 0:
        what = "silent mask" if made else "exit 0, no mask"
    elif made:
        what = "mask with warning"
    else:
        what = "refused or failed"
    result = {"what": what, "exit_code": code, "masks": made, "last_line": lines[-1][:200] if lines else ""}
    report = masks / "report.json"
    if report.is_file():
        (case, *_) = json.loads(report.read_text())["cases"]
        result["checks"] = [f"{f['check']} ({f['severity']})" for f in case["findings"]]
        result["error"] = case.get("error")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", type=Path, required=True, help="folder of a CT model with one channel")
    parser.add_argument("-i", type=Path, required=True, help="a sound image for it, .nii.gz")
    parser.add_argument("--kinds", nargs="+", choices=sorted(KINDS), metavar="KIND", help="default: all")
    parser.add_argument("-o", type=Path, default=Path("robustness.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    # No thread may be running when a process is forked.
    tqdm.monitor_interval = 0
    image = sitk.ReadImage(str(options.i))
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as root:
        for name in tqdm(options.kinds or ["sound", *KINDS], "kinds"):
            images = Path(root, "in")
            images.mkdir()
            if name == "sound":
                shutil.copyfile(options.i, images / NAME)
            else:
                KINDS[name](image, images)
            results[name] = {}
            for who, function in (("stock", stock), ("ours", ours)):
                masks, log = Path(root, "out"), Path(root, "log")
                masks.mkdir()
                code = in_process(function, options.m, images, masks, log)
                results[name][who] = outcome(code, masks, log)
                shutil.rmtree(masks)
            shutil.rmtree(images)
            options.o.write_text(json.dumps(results, indent=2) + "\n")
    print("| input | stock nnU-Net | swinfuse_predict |\n| --- | --- | --- |")
    for name, result in results.items():
        mine = result["ours"]
        why = ", ".join(mine.get("checks") or []) or mine.get("error") or mine["last_line"]
        print(f"| {name} | {result['stock']['what']} | {mine['what']}: {why} |")
    for who in ("stock", "ours"):
        print(who, dict(Counter(result[who]["what"] for result in results.values())))


register_kinds()
if __name__ == "__main__":
    main()
