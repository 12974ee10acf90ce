"""Cases through nnU-Net's own preprocessing, network and export, one by one: one that fails does not end the rest.

nnU-Net's `predict_from_files` gives all cases to one pool of processes, which the first failing case takes down. Here
the same functions are called case by case, the next case being read and the last one written meanwhile, by threads.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.inference.sliding_window_prediction import compute_gaussian
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot


@dataclass(frozen=True)
class CaseTask:
    """A case to be predicted.

    Attributes:
        case: its name.
        files: its channels in order.
        draft: where nnU-Net writes its files, without their endings.
        previous: the segmentation of the stage before, for a cascade.
    """

    case: str
    files: tuple[Path, ...]
    draft: Path
    previous: Path | None = None


@dataclass
class CaseResult:
    """The outcome for a case.

    Attributes:
        task: the case.
        seconds: of its preprocessing, forward passes and export.
        device: on which its forward passes ran.
        warnings: such as a move to the CPU.
        error: why there is no mask, None when there is one.
        details: the traceback of the error.
    """

    task: CaseTask
    seconds: dict[str, float] = field(default_factory=dict)
    device: str = ""
    warnings: list[str] = field(default_factory=list)
    error: str | None = None
    details: str = ""

    def fail(self, step: str, error: BaseException) -> None:
        """Notes an exception."""
        reason = (str(error).splitlines() or ["no message"])[0]
        self.error = f"{step} failed ({type(error).__name__}: {reason})"
        self.details = "".join(traceback.format_exception(error))


def run_cases(
    tasks: Sequence[CaseTask], predictor: nnUNetPredictor, save_probabilities: bool, readers: int, writers: int
) -> Iterator[CaseResult]:
    """Predicts cases; yields each, in order, once its files are drafted or it has failed.

    Args:
        tasks: the cases.
        predictor: nnU-Net's, with its model.
        save_probabilities: whether to write these as well.
        readers, writers: threads that preprocess the next cases and that resample and write the last ones; 0 for none.
    """
    with ExitStack() as stack:
        reading = stack.enter_context(ThreadPoolExecutor(max(1, readers)))
        writing = stack.enter_context(ThreadPoolExecutor(max(1, writers)))
        waiting = iter([CaseResult(task) for task in tasks])
        read: deque[tuple[CaseResult, Future[Any]]] = deque()
        written: deque[tuple[CaseResult, Future[Any]]] = deque()

        def read_ahead() -> None:
            while len(read) <= readers and (result := next(waiting, None)) is not None:
                read.append((result, reading.submit(_timed, result, "preprocessing", _preprocess, result, predictor)))

        try:
            read_ahead()
            while read:
                result, future = read.popleft()
                preprocessed = future.result()
                if readers:
                    read_ahead()
                if preprocessed is not None:
                    data, properties = preprocessed
                    logits = _timed(result, "prediction", predict_logits, predictor, data, result)
                    del data, preprocessed
                    if logits is not None:
                        written.append(
                            (
                                result,
                                writing.submit(
                                    _timed, result, "export", _export, result, logits, properties, predictor,
                                    save_probabilities,
                                ),
                            )
                        )  # fmt: skip
                        del logits
                if result.error:
                    while written:
                        yield _finished(written)
                    yield result
                while len(written) > writers or (written and written[0][1].done()):
                    yield _finished(written)
                read_ahead()
            while written:
                yield _finished(written)
        finally:
            reading.shutdown(cancel_futures=True)
            compute_gaussian.cache_clear()


def predict_logits(predictor: nnUNetPredictor, data: torch.Tensor, result: CaseResult) -> torch.Tensor:
    """nnU-Net's forward passes, on the CPU for a case that does not fit into the GPU.

    Args:
        predictor: nnU-Net's.
        data: preprocessed image, (channels, z, y, x).
        result: gets the device and the warning.

    Returns:
        logits, (heads, z, y, x), on the CPU.
    """
    device, everything = predictor.device, predictor.perform_everything_on_device
    result.device = str(device)
    try:
        return predictor.predict_logits_from_preprocessed_data(data).cpu()
    except RuntimeError as error:
        if device.type == "cpu" or not is_out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["out of memory"])[0]
    # Outside the except block, whose exception keeps the GPU's tensors alive.
    torch.cuda.empty_cache()
    result.warnings.append(f"did not fit into the memory of the GPU, was predicted on the CPU ({reason})")
    result.device = "cpu"
    try:
        predictor.device, predictor.perform_everything_on_device = torch.device("cpu"), False
        return predictor.predict_logits_from_preprocessed_data(data)
    finally:
        predictor.device, predictor.perform_everything_on_device = device, everything


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a GPU ran out of memory, by the messages of torch and of the libraries below it."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
    )


def _timed(result: CaseResult, step: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a step; notes its seconds, or its exception, after which it returns None."""
    start = time.perf_counter()
    try:
        return function(*arguments)
    except Exception as error:
        # Whatever a case provokes in nnU-Net, the other cases are independent of it.
        result.fail(step, error)
        return None
    finally:
        result.seconds[step] = round(time.perf_counter() - start, 3)


def _finished(written: deque[tuple[CaseResult, Future[Any]]]) -> CaseResult:
    result, future = written.popleft()
    future.result()
    return result


def _preprocess(result: CaseResult, predictor: nnUNetPredictor) -> tuple[torch.Tensor, dict[str, Any]]:
    task = result.task
    preprocessor = predictor.configuration_manager.preprocessor_class(verbose=predictor.verbose_preprocessing)
    data, segmentation, properties = preprocessor.run_case(
        [str(path) for path in task.files],
        None if task.previous is None else str(task.previous),
        predictor.plans_manager,
        predictor.configuration_manager,
        predictor.dataset_json,
    )
    if task.previous is not None:
        labels = predictor.label_manager.foreground_labels
        data = np.vstack((data, convert_labelmap_to_one_hot(segmentation[0], labels, data.dtype)))
    if not np.isfinite(data).all():
        raise ValueError("preprocessing gave NaN or infinite voxels")
    return torch.from_numpy(data).to(torch.float32).contiguous(), properties


def _export(
    result: CaseResult,
    logits: torch.Tensor,
    properties: dict[str, Any],
    predictor: nnUNetPredictor,
    save_probabilities: bool,
) -> None:
    if not torch.isfinite(logits).all():
        raise ValueError("the network gave NaN or infinite logits")
    export_prediction_from_logits(
        logits.numpy(),
        properties,
        predictor.configuration_manager,
        predictor.plans_manager,
        predictor.dataset_json,
        str(result.task.draft),
        save_probabilities,
    )
