import multiprocessing
import os
import socket
import time
from dataclasses import replace

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from pretraining.configuration import Configuration
from pretraining.model import PretrainingModel
from pretraining.objective import evaluate
from pretraining.preprocessed.collection import TABLE, PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset
from pretraining.preset_files import load_preset
from pretraining.processes import Processes, process_group, was_restarted

from .synthetic import CPU, TINY, synthetic_collection

RECIPES = (
    "swinfuse",
    "swinfuse adjusted_correlation",
    "vicreg",
    "paper",
    "simmim",
    "no_dim",
    "contrastive",
    "ct",
    "mmd",
    "coral",
    "sliced_wasserstein",
    "resenc",
    "pseudo_pairs",
)
STEPS = (3, 4)


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    collection = synthetic_collection(tmp_path_factory.mktemp("collection"))
    # The first patient's crops are not turned, so that the processes differ in how many are.
    spacing = collection.table.native_spacing.copy()
    spacing[collection.table.patient == 0] = (1.0, 1.0, 2.0)
    replace(collection.table, native_spacing=spacing).write(collection.folder / TABLE)
    return collection


def in_two_processes(function, *arguments):
    """What `function(processes, *arguments)` returns in each of two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    workers = [
        context.Process(target=_process, args=(rank, port, results, function, arguments), daemon=True)
        for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    limit = time.monotonic() + 600
    returned = {}
    while len(returned) < 2 and time.monotonic() < limit:
        if results.empty():
            assert not any(worker.exitcode for worker in workers), "a process failed; see its traceback"
            time.sleep(0.05)
        else:
            rank, value = results.get()
            returned[rank] = value
    for worker in workers:
        worker.join(20)
    return [returned[rank] for rank in range(2)]


def _process(rank, port, results, function, arguments):
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with process_group("cpu") as processes:
        results.put((rank, function(processes, *arguments)))
        processes.wait()


def configuration_of(name):
    # The recipe's contrastive loss, or another one; only `paper` has NT-Xent.
    recipe, _, loss = name.partition(" ")
    sizes = {name: value for name, value in TINY.items() if name != "contrastive_loss"}
    settings = {**load_preset("tiny", recipe), **sizes, "batch_size": 4, "mask_cell": 4}
    if loss:
        settings["contrastive_loss"] = loss
    return Configuration.from_dict({**settings, "drop_path_rate": 0.0})


def gradients(processes, folder, recipes=RECIPES):
    """Gradients and values of two steps of each recipe, as plain lists."""
    collection = PreprocessedCollection.open(folder)
    results = {}
    for recipe in recipes:
        configuration = configuration_of(recipe)
        crops = CropDataset(
            collection, "train", configuration.crop_size, configuration.batch_size, seed=0, steps=9,
            samples=processes.samples(configuration.batch_size), domains=configuration.modalities,
        )  # fmt: skip
        torch.manual_seed(7)
        model = PretrainingModel(configuration)
        wrapped = processes.wrap(model, CPU)
        for step in STEPS:
            model.zero_grad()
            evaluation = evaluate(wrapped, crops[step], configuration, step, None, processes=processes)
            evaluation.total.backward()
            results[f"{recipe} {step}"] = (
                {n: p.grad.flatten().tolist() for n, p in model.named_parameters() if p.grad is not None},
                {name: float(value) for name, value in evaluation.scalars().items()},
            )
    return results


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_with_the_whole_batch(collection):
    together = in_two_processes(gradients, collection.folder)
    single = gradients(Processes(), collection.folder)
    paired, shares = set(), set()
    for name, (expected, values) in single.items():
        paired |= {"divergence_paired" in values} if name.startswith("swinfuse") else set()
        assert expected
        shares.add(values.get("turnable_share"))
        for ours, our_values in (results[name] for results in together):
            # A ratio of norms: averaged over processes, not that of the whole batch.
            assert our_values.pop("dim_change", 0) == pytest.approx(values.get("dim_change", 0), rel=0.05), name
            assert our_values == pytest.approx({k: v for k, v in values.items() if k in our_values}, rel=1e-4), name
            assert our_values.keys() == values.keys() - {"dim_change"}
            assert ours.keys() == expected.keys()
            largest = max(abs(value) for values in expected.values() for value in values)
            for parameter, values_of_one in expected.items():
                torch.testing.assert_close(
                    torch.tensor(ours[parameter]), torch.tensor(values_of_one),
                    rtol=1e-3, atol=1e-5 * largest, msg=lambda text, at=f"{name} {parameter}": f"{at}: {text}",
                )  # fmt: skip
    assert paired == {True}
    assert any(share is not None and 0 < share < 1 for share in shares)


def exchange(processes):
    rank = processes.rank
    local = torch.tensor([[10.0 * rank], [10.0 * rank + 1]], requires_grad=True)
    # The loss is the same everywhere: sum of k x_k over the gathered values.
    weights = torch.arange(4.0)[:, None]
    (processes.gather(local) * weights).sum().backward()
    return {
        "gradient": local.grad.tolist(),
        "views": processes.gather_views(torch.tensor([0, 1, 100, 101]) + 2 * rank).tolist(),
        "others": processes.other_crops(torch.tensor([10.0 * rank, 10.0 * rank + 1])).tolist(),
        "any": (processes.any(rank == 1), processes.any(False)),
        "samples": list(processes.samples(6)),
    }


@pytest.mark.slow
def test_exchange_between_processes():
    first, second = in_two_processes(exchange)
    # Twice the gradient of one loss; averaging over two processes makes it exact.
    assert first["gradient"] == [[0.0], [2.0]]
    assert second["gradient"] == [[4.0], [6.0]]
    assert first["views"] == second["views"] == [0, 1, 2, 3, 100, 101, 102, 103]
    assert first["others"] == [11.0, 0.0]
    assert second["others"] == [1.0, 10.0]
    assert first["any"] == second["any"] == (True, False)
    assert first["samples"] + second["samples"] == list(range(6))


def unequal(processes):
    try:
        processes.require_equal({"version of torch": f"2.{processes.rank}", "seed": 0})
    except InputError as error:
        return str(error)
    return "nothing"


@pytest.mark.slow
def test_a_world_of_unequal_versions_is_refused_everywhere():
    for message in in_two_processes(unequal):
        assert "version of torch is 2.1 on rank 1" in message
        assert "and 2.0 on rank 0" in message
        assert "seed" not in message


def test_a_single_process_needs_no_exchange():
    single = Processes()
    values = torch.randn(4, 2)
    assert single.gather(values) is values
    assert single.gather_views(values) is values
    assert single.other_crops(values[:1]) is None
    assert list(single.samples(3)) == [0, 1, 2]
    assert single.any(True)
    single.require_equal({"anything": object()})


def test_a_batch_that_cannot_be_divided_is_refused_with_one_that_can():
    with pytest.raises(InputError, match=r"batch_size is 5 .* all 4 processes .* --batch_size 8"):
        Processes(0, 4).samples(5)
    with pytest.raises(InputError, match="--batch_size 8"):
        Processes(0, 8).samples(2)


@pytest.mark.parametrize("variable", ["TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"])
def test_a_command_knows_that_it_was_restarted(monkeypatch, variable):
    assert not was_restarted()
    monkeypatch.setenv(variable, "0")
    assert not was_restarted()
    monkeypatch.setenv(variable, "2")
    assert was_restarted()
