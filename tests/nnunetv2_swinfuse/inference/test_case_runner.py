"""What does not need a model; whole predictions are in test_prediction.py."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from nnunetv2_swinfuse.inference import case_runner
from nnunetv2_swinfuse.inference.case_runner import CaseTask, is_out_of_memory, run_cases

TASKS = [CaseTask(name, (), Path(name)) for name in "abcd"]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_every_case_has_a_result_whatever_fails(monkeypatch, workers):
    def preprocess(result, _):
        if result.task.case == "b":
            raise ValueError("bad voxels\nsecond line")
        return torch.ones(1), {}

    def export(result, logits, *_):
        if result.task.case == "d":
            raise OSError("disk full")
        result.exported = float(logits)

    monkeypatch.setattr(case_runner, "_preprocess", preprocess)
    monkeypatch.setattr(case_runner, "_export", export)
    predictor = SimpleNamespace(
        device=torch.device("cpu"),
        perform_everything_on_device=False,
        predict_logits_from_preprocessed_data=lambda data: data + 1,
    )
    results = {r.task.case: r for r in run_cases(TASKS, predictor, False, workers, workers)}
    assert list(results) == list("abcd")
    assert results["b"].error == "preprocessing failed (ValueError: bad voxels)"
    assert "second line" in results["b"].details
    assert results["d"].error == "export failed (OSError: disk full)"
    assert [(results[c].error, results[c].exported) for c in "ac"] == [(None, 2.0)] * 2
    assert list(results["a"].seconds) == ["preprocessing", "prediction", "export"]


def test_an_exception_without_a_message_says_where_the_reason_is(monkeypatch):
    def preprocess(*_):
        # nnU-Net's readers print the reason.
        raise RuntimeError

    monkeypatch.setattr(case_runner, "_preprocess", preprocess)
    (result,) = run_cases(TASKS[:1], SimpleNamespace(), False, 0, 0)
    assert result.error == (
        "preprocessing failed (RuntimeError: no message; nnU-Net may have printed the reason, predict again with "
        "--verbose to see it)"
    )


@pytest.mark.parametrize(
    ("message", "expected"), [("CUDA error: out of memory", True), ("CUBLAS_STATUS_ALLOC_FAILED", True), ("x", False)]
)
def test_running_out_of_memory_is_recognised(message, expected):
    assert is_out_of_memory(RuntimeError(message)) is expected


def test_a_case_that_does_not_fit_the_gpu_is_predicted_on_the_cpu():
    class OnGpu:
        device, perform_everything_on_device = torch.device("cuda"), True

        def predict_logits_from_preprocessed_data(self, data):
            if self.device.type == "cuda":
                raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
            return data + 1

    predictor, result = OnGpu(), case_runner.CaseResult(case_runner.CaseTask("a", (), Path("a")))
    assert torch.equal(case_runner.predict_logits(predictor, torch.zeros(3), result), torch.ones(3))
    assert result.device == "cpu"
    assert "9 GiB" in result.warnings[0]
    assert (predictor.device.type, predictor.perform_everything_on_device) == ("cuda", True)

    def other(_):
        raise RuntimeError("shapes do not match")

    predictor.predict_logits_from_preprocessed_data = other
    with pytest.raises(RuntimeError, match="shapes"):
        case_runner.predict_logits(predictor, torch.zeros(3), result)
