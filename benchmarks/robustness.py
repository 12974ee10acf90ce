"""Bad input given to stock nnU-Net and to swinfuse_predict: what happens.

    python -m benchmarks.robustness [-m MODEL -i SOUND_IMAGE] [--kinds KIND ...] [-o FOLDER]

Every kind of bad input (`bad_input.py`) is made from one sound image of a CT model with one channel. Without -m and -i
these are a tiny network with random weights and a synthetic CT, so that anyone can repeat the run. Both programs run as
commands, `nnUNetv2_predict -npp 0 -nps 0` (without worker processes, in which nnU-Net's errors get lost) and
`swinfuse_predict`, on the CPU, each in a process of its own with a time limit.

Results go to FOLDER/robustness.json after every kind, and kinds that are in it are not run again. FOLDER/README.md has
the table. The exit code is 1 if swinfuse_predict gave a mask without a warning or an error that names no file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import predict_entry_point
from tqdm import tqdm

from benchmarks.bad_input import KINDS, NAME
from nnunetv2_swinfuse.inference.predict import main as swinfuse_predict

LIMIT_SECONDS = 180
SOUND = "(sound image)"
SETTINGS = ("-device", "cpu", "--disable_tta", "--disable_progress_bar")
MASK, WARNED, NO_MASK, ERROR, CRASH, HUNG = (
    "mask, exit code 0", "mask, with a warning", "exit code 0, no mask", "error", "crash", "hung",
)  # fmt: skip


def stock(model: Path, images: Path, masks: Path) -> None:
    """nnUNetv2_predict, by its entry point."""
    os.environ["nnUNet_results"] = str(model.parents[1])
    trainer, plans, configuration = model.name.split("__")
    names = ("-d", model.parent.name, "-tr", trainer, "-p", plans, "-c", configuration, "-f", "0")
    sys.argv = ["nnUNetv2_predict", "-i", str(images), "-o", str(masks), *names, "-npp", "0", "-nps", "0", *SETTINGS]
    predict_entry_point()


def ours(model: Path, images: Path, masks: Path) -> None:
    """swinfuse_predict with the same settings."""
    swinfuse_predict(["-m", str(model), "-i", str(images), "-o", str(masks), "-f", "0", *SETTINGS])


def in_process(function: Callable[[Path, Path, Path], None], model: Path, images: Path, masks: Path, log: Path) -> Any:
    """Runs it in a forked process; its exit code, negative for a signal, None when it hung."""
    child = os.fork()
    if child == 0:
        os.setsid()
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = 1
        try:
            function(model, images, masks)
            code = 0
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


def outcome(code: int | None, images: Path, masks: Path, log: Path) -> dict[str, Any]:
    """What a user sees: whether a mask appeared, the exit code, the message, and whether it names case or file."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    made = sorted(path.name for path in masks.glob("*.nii.gz"))
    if code is None or code < 0:
        what = HUNG if code is None else CRASH
    elif code == 0:
        what = MASK if made else NO_MASK
    else:
        what = WARNED if made else ERROR
    message = lines[-1] if lines else ""
    report = masks / "report.json"
    checks: list[str] = []
    if report.is_file():
        (case, *_) = json.loads(report.read_text())["cases"]
        checks = [f"{finding['check']}" for finding in case["findings"]]
        message = next((line for line in lines if line.startswith(f"{case['case']}: ") and "mask" in line), message)
    elif what == ERROR:
        message = next((line for line in lines if line.startswith("swinfuse_predict: ")), message)
    named = "case" in message or str(images) in message
    message = message.replace(str(images.parent), "").strip()[:300]
    return {"what": what, "exit_code": code, "masks": made, "message": message, "named": named, "checks": checks}


def run(kinds: list[str], model: Path, sound: Path, file: Path) -> dict[str, dict[str, Any]]:
    """Both programs on every kind; resumes what `file` holds."""
    image = sitk.ReadImage(str(sound))
    results: dict[str, dict[str, Any]] = json.loads(file.read_text()) if file.is_file() else {}
    for name in tqdm([name for name in kinds if name not in results], "kinds"):
        with tempfile.TemporaryDirectory() as root:
            images, masks, log = (Path(root, part) for part in ("in", "out", "log"))
            images.mkdir()
            if name == SOUND:
                shutil.copyfile(sound, images / NAME)
            else:
                KINDS[name](image, images)
            result = {}
            for who, function in (("stock", stock), ("ours", ours)):
                masks.mkdir()
                result[who] = outcome(in_process(function, model, images, masks, log), images, masks, log)
                shutil.rmtree(masks)
        results[name] = result
        file.write_text(json.dumps(results, indent=1) + "\n")
    return results


def page(results: dict[str, dict[str, Any]], arguments: str) -> str:
    """The table, the counts, and how they came about, in Markdown."""
    bad = {name: result for name, result in results.items() if name != SOUND}
    versions = ", ".join(f"{name} {version(name)}" for name in ("nnunetv2", "torch", "SimpleITK", "numpy"))
    command = ("git", "describe", "--always", "--dirty")
    commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    lines = [
        f"# {date.today().isoformat()}: {len(bad)} kinds of bad input",
        "",
        "How stock nnU-Net and swinfuse_predict respond to bad input. Both run on the CPU, each in its own",
        "process; the settings are those in `benchmarks/robustness.py`.",
        "",
        f"    python -m benchmarks.robustness {arguments}".rstrip(),
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, no GPU, {platform.system()}; Python "
        f"{platform.python_version()}, {versions}; this package at commit {commit}.",
        "",
        "| outcome | stock nnU-Net | swinfuse_predict |",
        "| --- | --- | --- |",
    ]
    counts = {who: Counter(result[who]["what"] for result in bad.values()) for who in ("stock", "ours")}
    for what in (MASK, WARNED, NO_MASK, ERROR, CRASH, HUNG):
        lines.append(f"| {what} | {counts['stock'][what]} | {counts['ours'][what]} |")
    unnamed = [
        sum(r[who]["what"] in (ERROR, CRASH) and not r[who]["named"] for r in bad.values()) for who in ("stock", "ours")
    ]
    lines += [f"| errors that name neither case nor file | {unnamed[0]} | {unnamed[1]} |", ""]
    lines += ["| input | stock nnU-Net | swinfuse_predict | its checks, or its message |", "| --- | --- | --- | --- |"]
    for name, result in results.items():
        mine = result["ours"]
        why = ", ".join(f"`{check}`" for check in mine["checks"]) or mine["message"].replace("|", "/")
        if mine["what"] == MASK:
            why = ""
        lines.append(f"| {name} | {result['stock']['what']} | {mine['what']} | {why} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-m", type=Path, help="folder of a CT model with one channel; default: a tiny random network")
    parser.add_argument("-i", type=Path, help="a sound image for it, .nii.gz; default: a synthetic CT")
    parser.add_argument("--kinds", nargs="+", choices=[SOUND, *KINDS], metavar="KIND", help="default: all")
    parser.add_argument("-o", type=Path, default=Path("robustness"), help="folder of the results")
    options = parser.parse_args()
    if (options.m is None) != (options.i is None):
        parser.error("-m and -i belong together")
    torch.set_num_threads(1)
    # No thread may be running when a process is forked.
    tqdm.monitor_interval = 0
    options.o.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as root:
        if options.m is None:
            from tests.nnunetv2_swinfuse.inference.synthetic_models import ct_voxels, write_image, write_whole_model

            options.m = write_whole_model(Path(root) / "results")
            options.i = write_image(Path(root) / NAME, ct_voxels())
        results = run(options.kinds or [SOUND, *KINDS], options.m.resolve(), options.i, options.o / "robustness.json")
    text = page(results, shlex.join(sys.argv[1:]))
    (options.o / "README.md").write_text(text)
    print(text)
    bad = [(name, result["ours"]) for name, result in results.items() if name != SOUND]
    wrong = (MASK, NO_MASK, CRASH, HUNG)
    failed = [name for name, mine in bad if mine["what"] in wrong or (mine["what"] == ERROR and not mine["named"])]
    if failed:
        raise SystemExit(f"swinfuse_predict gave a silent mask, or an error that names no file: {', '.join(failed)}")


if __name__ == "__main__":
    main()
