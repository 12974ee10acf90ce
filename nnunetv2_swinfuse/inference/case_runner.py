"""Runs nnU-Net's preprocessing, network and export case by case, so that one failing case does not end the others.

nnU-Net's `predict_from_files` gives all cases to one pool of processes, which the first failing case takes down. Here
the same functions are called case by case. Threads read the next case and write the previous one meanwhile.
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

WITHOUT_MESSAGE = "no message; nnU-Net may have printed the reason, predict again with --verbose to see it"


@dataclass(frozen=True)
class CaseTask:
    """A case to be predicted.

    Attributes:
        case: name of the case.
        files: image files, one per channel, in order.
        draft: path prefix, without file extension, of the temporary output files.
        previous: segmentation of the previous cascade stage, if there is one.
    """

    case: str
    files: tuple[Path, ...]
    draft: Path
    previous: Path | None = None


@dataclass
class CaseResult:
    """The outcome for a case.

    Attributes:
        task: what was to be predicted.
        seconds: wall time of each step, by name: preprocessing, prediction, export.
        device: device that the forward passes ran on.
        warnings: messages for the user, such as a move to the CPU.
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
        """Notes an exception. nnU-Net's readers print what is wrong and raise one without a message."""
        reason = (str(error).splitlines() or [WITHOUT_MESSAGE])[0]
        self.error = f"{step} failed ({type(error).__name__}: {reason})"
        self.details = "".join(traceback.format_exception(error))


def run_cases(
    tasks: Sequence[CaseTask], predictor: nnUNetPredictor, save_probabilities: bool, readers: int, writers: int
) -> Iterator[CaseResult]:
    """Predicts cases; yields each, in order, once its temporary files are written or it has failed.

    Args:
        tasks: the cases.
        predictor: nnU-Net's predictor, with a model.
        save_probabilities: whether to write probabilities as well.
        readers: threads that preprocess cases ahead. 0: a case is preprocessed only after the one before it.
        writers: threads that resample and write. 0: a case is written before the next one is predicted.
    """
    with ExitStack() as stack:
        read_pool = stack.enter_context(ThreadPoolExecutor(max(1, readers)))
        write_pool = stack.enter_context(ThreadPoolExecutor(max(1, writers)))
        remaining = iter([CaseResult(task) for task in tasks])
        pending_reads: deque[tuple[CaseResult, Future[Any]]] = deque()
        pending_writes: deque[tuple[CaseResult, Future[Any]]] = deque()

        def read_ahead() -> None:
            while len(pending_reads) <= readers and (result := next(remaining, None)) is not None:
                future = read_pool.submit(_timed, result, "preprocessing", _preprocess, result, predictor)
                pending_reads.append((result, future))

        def submit_export(result: CaseResult, logits: torch.Tensor, properties: dict[str, Any]) -> None:
            arguments = (result, logits, properties, predictor, save_probabilities)
            pending_writes.append((result, write_pool.submit(_timed, result, "export", _export, *arguments)))

        try:
            read_ahead()
            while pending_reads:
                result, future = pending_reads.popleft()
                preprocessed = future.result()
                # With readers, the next case starts before the network runs; without, only after this case is done.
                if readers:
                    read_ahead()
                if preprocessed is not None:
                    data, properties = preprocessed
                    logits = _timed(result, "prediction", predict_logits, predictor, data, result)
                    del data, preprocessed
                    if logits is not None:
                        submit_export(result, logits, properties)
                        del logits
                if result.error:
                    # In order: a failed case waits for the exports before it.
                    while pending_writes:
                        yield _finished(pending_writes)
                    yield result
                while len(pending_writes) > writers or (pending_writes and pending_writes[0][1].done()):
                    yield _finished(pending_writes)
                read_ahead()
            while pending_writes:
                yield _finished(pending_writes)
        finally:
            read_pool.shutdown(cancel_futures=True)
            compute_gaussian.cache_clear()


def predict_logits(predictor: nnUNetPredictor, data: torch.Tensor, result: CaseResult) -> torch.Tensor:
    """Runs nnU-Net's sliding window; falls back to the CPU if the case does not fit into the GPU's memory.

    Args:
        predictor: nnU-Net's predictor.
        data: preprocessed image, (channels, z, y, x).
        result: its `device` and `warnings` are set.

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
    """Whether a GPU ran out of memory, as reported by torch or by CUDA's libraries."""
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


def _finished(pending_writes: deque[tuple[CaseResult, Future[Any]]]) -> CaseResult:
    result, future = pending_writes.popleft()
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
        raise ValueError("preprocessing produced NaN or infinite voxels")
    return torch.from_numpy(data).to(torch.float32).contiguous(), properties


def _export(
    result: CaseResult,
    logits: torch.Tensor,
    properties: dict[str, Any],
    predictor: nnUNetPredictor,
    save_probabilities: bool,
) -> None:
    if not torch.isfinite(logits).all():
        raise ValueError("the network produced NaN or infinite logits")
    export_prediction_from_logits(
        logits.numpy(),
        properties,
        predictor.configuration_manager,
        predictor.plans_manager,
        predictor.dataset_json,
        str(result.task.draft),
        save_probabilities,
    )
