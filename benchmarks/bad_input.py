"""Kinds of bad input, each made from one sound image (`.nii.gz`) of a CT model with one channel.

`KINDS` maps the name of a kind to a function of the image and an empty folder, which writes the bad input there.
"""

from __future__ import annotations

import gzip
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

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


def spoil_affine(name: str, change: Callable[[np.ndarray], np.ndarray], qform: int = 1) -> None:
    """The sform changed, beside a qform or, with the code 0, as the only affine."""

    def spoil(image: sitk.Image, folder: Path) -> None:
        content = raw_nifti(image)
        rows = np.reshape(struct.unpack_from("<12f", content, 280), (3, 4))
        struct.pack_into("<12f", content, 280, *change(rows).ravel())
        struct.pack_into("<2h", content, 252, qform, 2)
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


def lost_slices(voxels: np.ndarray, start: int, stop: int) -> np.ndarray:
    voxels = voxels.copy()
    voxels[start:stop] = 0
    return voxels


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
    spoil_voxels("every other slice zero", lambda v: np.where(np.arange(len(v))[:, None, None] % 2, v, 0))
    spoil_voxels("three slices in the middle zero", lambda v: lost_slices(v, len(v) // 2, len(v) // 2 + 3))
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
    spoil_header("qform of NaN", 256, "<6f", *[float("nan")] * 6)
    spoil_header("sform of zeros beside a qform", 280, "<12f", *[0.0] * 12)
    spoil_header("sform of NaN beside a qform", 280, "<12f", *[float("nan")] * 12)
    spoil_affine("sheared affine", lambda rows: rows + np.array([[0, 0.5, 0, 0], [0] * 4, [0] * 4]), qform=0)
    spoil_affine("affine of zeros", np.zeros_like, qform=0)
    spoil_affine("qform and sform of opposite sides", lambda rows: rows * np.array([[-1, -1, -1, 1], [1] * 4, [1] * 4]))
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


@kind("MetaImage by the name of NIfTI")
def _metaimage(image: sitk.Image, folder: Path) -> None:
    sitk.WriteImage(image, str(folder / "a.mha"))
    (folder / "a.mha").rename(folder / NAME)


@kind("second channel too many")
def _second_channel(image: sitk.Image, folder: Path) -> None:
    save(voxels_of(image), image, folder)
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


register_kinds()
