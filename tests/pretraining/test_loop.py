import json
import multiprocessing
import os
import signal

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining import loop
from pretraining.checkpoint import load_checkpoint
from pretraining.interruption import Interrupted
from pretraining.loop import CHECKPOINT, DivergedError, train
from pretraining.model import PretrainingModel
from pretraining.monitoring.log import RunLog, read_records
from pretraining.monitoring.scalars import UnreadScalars

from .synthetic import CPU, RESENC, synthetic_collection, tiny


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    return synthetic_collection(tmp_path_factory.mktemp("collection"))


def run(folder, collection, configuration, state=None):
    folder.mkdir(exist_ok=True)
    return train(folder, collection, configuration, CPU, state)


def interrupt_at(monkeypatch, step, number):
    record = RunLog.record

    def record_and_interrupt(self, at, kind, values):
        record(self, at, kind, values)
        if at == step and kind == "train":
            os.kill(os.getpid(), number)

    monkeypatch.setattr(RunLog, "record", record_and_interrupt)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "number", "backbone", "pictures"),
    [
        (3, signal.SIGINT, {}, "without_pictures"),
        # Pictures draw no random numbers either.
        (5, signal.SIGTERM, {}, None),
        (3, signal.SIGINT, RESENC, "without_pictures"),
        (3, signal.SIGINT, {"inpainting_head": "network"}, "without_pictures"),
    ],
)
def test_an_interrupted_and_resumed_run_is_bitwise_the_uninterrupted_one(
    tmp_path, collection, monkeypatch, request, step, number, backbone, pictures
):
    if pictures:
        request.getfixturevalue(pictures)
    configuration = tiny(**backbone)
    straight = run(tmp_path / "straight", collection, configuration)
    with monkeypatch.context() as patch:
        interrupt_at(patch, step, number)
        with pytest.raises(Interrupted, match=f"{number.name} at step {step}"):
            run(tmp_path / "resumed", collection, configuration)
    state = load_checkpoint(tmp_path / "resumed" / CHECKPOINT)
    assert state.step == step
    resumed = run(tmp_path / "resumed", collection, state.configuration, state)
    assert read_records(tmp_path / "straight") == read_records(tmp_path / "resumed")
    for (name, ours), theirs in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_records_after_the_checkpoint_are_replaced(tmp_path, collection):
    configuration = tiny()
    run(tmp_path / "run", collection, configuration)
    expected = read_records(tmp_path / "run")
    # As after a crash: the records go further than the checkpoint, and the last line is cut off.
    records = tmp_path / "run" / "losses.jsonl"
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert state.step == configuration.steps
    records.write_text(records.read_text() + json.dumps({"step": 7, "kind": "train"}) + "\n" + '{"step": 8, "ki')
    run(tmp_path / "run", collection, configuration, state)
    assert read_records(tmp_path / "run") == expected


@pytest.mark.slow
def test_a_run_writes_what_a_reader_wants_to_see(tmp_path, collection):
    run(tmp_path / "run", collection, tiny())
    assert sorted(p.name for p in (tmp_path / "run" / "panels").iterdir()) == ["step_0000004.png", "step_0000006.png"]
    assert (tmp_path / "run" / "progress.png").stat().st_size > 10_000
    records = read_records(tmp_path / "run")
    assert [r["step"] for r in records if r["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    validation = [r for r in records if r["kind"] == "validation"]
    assert [r["step"] for r in validation] == [4, 6]
    assert {
        "masked_error",
        "rotation_accuracy",
        "divergence_single_image",
        "dim_change",
        "attention_entropy",
        "attention_difference",
        "probe_accuracy",
        "bandwidth",
    } <= set(validation[0])
    assert "validation" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_volumes_that_are_not_isotropic_in_the_plane_have_no_rotation_task(tmp_path, collection, monkeypatch):
    monkeypatch.setattr(collection, "spacing", (3.0, 1.0, 1.5))
    run(tmp_path / "run", collection, tiny())
    for record in read_records(tmp_path / "run"):
        assert "inpainting" in record
        assert not any(name.startswith("rotation") for name in record)
    assert "3 x 1 x 1.5 mm" in (tmp_path / "run" / "log.txt").read_text()
    # The requested settings are kept, so that the same command resumes the run.
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).configuration == tiny()


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_learning_lowers_the_losses(tmp_path, collection):
    configuration = tiny(steps=60, learning_rate=3e-3, validate_every=1000, checkpoint_every=1000)
    run(tmp_path / "run", collection, configuration)
    inpainting = [r["inpainting"] for r in read_records(tmp_path / "run") if r["kind"] == "train"]
    assert sum(inpainting[-8:]) < 0.9 * sum(inpainting[:8])


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
@pytest.mark.parametrize("backbone", [{}, RESENC])
def test_a_frozen_encoder_stays_as_it_is_while_its_heads_learn(tmp_path, collection, backbone):
    configuration = tiny(freeze_encoder=True, **backbone)
    torch.manual_seed(configuration.seed)
    before = PretrainingModel(configuration.for_spacing(collection.spacing)).state_dict()

    after = train(tmp_path, collection, configuration, CPU).state_dict()

    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"inpainting_head", "rotation_head", "projection_head"}


@pytest.mark.usefixtures("without_pictures")
def test_a_diverged_run_stops_and_keeps_the_last_checkpoint(tmp_path, collection):
    configuration = tiny(learning_rate=1e30, gradient_clip=1e30, warmup_steps=0, checkpoint_every=1)
    with pytest.raises(DivergedError, match="lower --learning_rate"):
        run(tmp_path / "run", collection, configuration)
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT).step >= 1


@pytest.mark.slow
def test_an_unexpected_error_leaves_no_process_that_loads(tmp_path, collection, monkeypatch):
    def fail(folder):
        raise OSError("the folder is gone")

    monkeypatch.setattr("pretraining.loop.draw_progress", fail)
    with pytest.raises(OSError, match="the folder is gone") as error:
        run(tmp_path / "run", collection, tiny(workers=1))
    # Also while the error, and so the frames it came through, is still held.
    assert multiprocessing.active_children() == []
    assert error.traceback


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_workers_load_the_crops_that_the_main_process_would(tmp_path, collection):
    run(tmp_path / "inside", collection, tiny(steps=3))
    run(tmp_path / "workers", collection, tiny(steps=3, workers=2))
    assert read_records(tmp_path / "inside") == read_records(tmp_path / "workers")


def test_a_diverged_run_is_bad_input_for_the_command_line():
    assert issubclass(DivergedError, InputError)


@pytest.mark.usefixtures("without_pictures")
def test_a_gradient_that_is_not_finite_stops_the_run_before_its_checkpoint(tmp_path, collection, monkeypatch):
    clip = torch.nn.utils.clip_grad_norm_
    calls = []

    def spoil(parameters, norm):
        parameters = list(parameters)
        calls.append(None)
        if len(calls) == 3:
            parameters[0].grad.fill_(float("nan"))
        return clip(parameters, norm)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", spoil)
    with pytest.raises(DivergedError, match=r"step 3: the loss is .* the norm of its gradient nan"):
        run(tmp_path / "run", collection, tiny(checkpoint_every=1))
    state = load_checkpoint(tmp_path / "run" / CHECKPOINT)
    assert state.step == 2
    assert all(tensor.isfinite().all() for tensor in state.network_weights.values())


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.slow
def test_values_that_are_read_late_are_recorded_all(tmp_path, collection, monkeypatch):
    run(tmp_path / "each", collection, tiny())
    monkeypatch.setattr(loop, "UnreadScalars", lambda every: UnreadScalars(100))
    run(tmp_path / "late", collection, tiny())
    assert read_records(tmp_path / "late") == read_records(tmp_path / "each")
