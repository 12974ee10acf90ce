"""Sound images, and images of the other modality, given to the checks: `python -m benchmarks.false_alarms -d 501 502`.

For each dataset in nnUNet_raw, nnU-Net's own fingerprint and plans describe two models: one of the training cases of
fold 0 in nnU-Net's five-fold split, one of all cases. `swinfuse_check`'s checks then get

- the validation cases of fold 0, for the first model: none may be refused or warned of;
- all cases, for the second: the same;
- all cases of every dataset of the other modality, for the second: all must be refused.

Prints tables in Markdown. The exit code is 1 if a sound image was refused or warned of, or one of the other modality
was not refused. Needs a minute or two for 300 volumes of up to 10 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprint_dataset, plan_experiment_dataset
from nnunetv2.utilities.crossval_split import generate_crossval_split

from nnunetv2_swinfuse.inference.cases import find_cases
from nnunetv2_swinfuse.inference.check import check_cases
from nnunetv2_swinfuse.inference.findings import CaseFindings, Severity
from nnunetv2_swinfuse.inference.model_description import ModelDescription, describe_model
from nnunetv2_swinfuse.inference.training_images import RECORD, count_orientations, record


@dataclass(frozen=True)
class Dataset:
    """A dataset and the two models.

    Attributes:
        name: its folder.
        validation: images of fold 0's validation cases.
        images: all its images.
        without: described by the training cases of fold 0.
        whole: described by all cases.
    """

    name: str
    validation: tuple[Path, ...]
    images: tuple[Path, ...]
    without: ModelDescription
    whole: ModelDescription

    @property
    def modality(self) -> str:
        """Of its first channel, for the tables."""
        return self.whole.channels[0].domain or self.whole.channels[0].name


def describe(source: Path, cases: Sequence[str], root: Path) -> ModelDescription:
    """What a model trained on these cases would say of its training images.

    Args:
        source: the dataset, in nnU-Net's raw layout.
        cases: names.
        root: an empty folder.
    """
    dataset = json.loads((source / "dataset.json").read_text())
    ending, name = dataset["file_ending"], source.name
    channels = range(len(dataset.get("channel_names") or dataset["modality"]))
    raw, preprocessed, model = root / "raw" / name, root / "preprocessed" / name, root / "model"
    for folder, files in (
        ("imagesTr", [f"{case}_{channel:04d}{ending}" for case in cases for channel in channels]),
        ("labelsTr", [f"{case}{ending}" for case in cases]),
    ):
        (raw / folder).mkdir(parents=True)
        for file in files:
            (raw / folder / file).symlink_to((source / folder / file).resolve())
    (raw / "dataset.json").write_text(json.dumps({**dataset, "numTraining": len(cases)}))
    number = int(name[len("Dataset") :].split("_")[0])
    with variables(nnUNet_raw=root / "raw", nnUNet_preprocessed=root / "preprocessed"):
        extract_fingerprint_dataset(number, num_processes=1, verbose=False, show_progress_bar=False)
        plan_experiment_dataset(number)
    model.mkdir()
    shutil.copyfile(preprocessed / "nnUNetPlans.json", model / "plans.json")
    for file in ("dataset.json", "dataset_fingerprint.json"):
        shutil.copyfile(preprocessed / file, model / file)
    (model / RECORD).write_bytes(record(count_orientations(raw / "imagesTr", ending)))
    return describe_model(model)


@contextmanager
def variables(**paths: Path) -> Iterator[None]:
    """Sets nnU-Net's path variables for a while."""
    before = {name: os.environ.get(name) for name in paths}
    os.environ.update({name: str(path) for name, path in paths.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def read_dataset(source: Path, root: Path) -> Dataset:
    """Both models of a dataset, and its images."""
    ending = json.loads((source / "dataset.json").read_text())["file_ending"]
    cases = sorted(path.name[: -len(ending)] for path in (source / "labelsTr").glob(f"*{ending}"))
    split = generate_crossval_split(cases)[0]
    return Dataset(
        source.name,
        tuple(path for case in split["val"] for path in sorted((source / "imagesTr").glob(f"{case}_[0-9]*{ending}"))),
        tuple(path for case in cases for path in sorted((source / "imagesTr").glob(f"{case}_[0-9]*{ending}"))),
        describe(source, split["train"], root / "without"),
        describe(source, cases, root / "whole"),
    )


def check(images: Sequence[Path], model: ModelDescription) -> list[CaseFindings]:
    """The findings of swinfuse_check."""
    return check_cases(find_cases(images, model.file_ending, len(model.channels)), model, progress=False)


def counts(results: Sequence[CaseFindings]) -> str:
    """Passed, with a warning, refused, and by which checks."""
    found = Counter(result.severity for result in results)
    checks = Counter(name for result in results for name in {finding.check for finding in result.findings})
    why = ", ".join(f"`{name}` {number}" for name, number in sorted(checks.items()))
    return " | ".join([*(str(found[severity]) for severity in Severity), why])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", type=int, nargs="+", required=True, metavar="NUMBER", help="datasets in nnUNet_raw")
    options = parser.parse_args()
    raw = Path(os.environ["nnUNet_raw"])
    # nnU-Net's planner hands this number to torch.set_num_threads.
    os.environ["nnUNet_n_proc_DA"] = "1"
    wrong = 0
    with tempfile.TemporaryDirectory() as root:
        datasets = []
        for number in options.d:
            (source,) = raw.glob(f"Dataset{number:03d}_*")
            datasets.append(read_dataset(source, Path(root) / str(number)))
        print("\n| images of | model of | images | passed | with a warning | refused | checks |\n|" + " --- |" * 7)
        for one in datasets:
            for images, model, whose in (
                (one.validation, one.without, "the other cases"),
                (one.images, one.whole, "all cases"),
            ):
                results = check(images, model)
                wrong += sum(result.severity is not Severity.PASSED for result in results)
                print(f"| {one.name} | {whose} | {len(results)} | {counts(results)} |", flush=True)
        for one in datasets:
            for other in datasets:
                if one.modality != other.modality:
                    results = check(one.images, other.whole)
                    wrong += sum(result.severity is not Severity.REFUSED for result in results)
                    whose = f"{other.name} ({other.modality})"
                    print(f"| {one.name} ({one.modality}) | {whose} | {len(results)} | {counts(results)} |", flush=True)
    raise SystemExit(int(wrong > 0))


if __name__ == "__main__":
    main()
