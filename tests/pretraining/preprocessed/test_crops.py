from pathlib import Path

import blosc2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from nnunetv2_swinfuse.errors import InputError
from pretraining.collections.collection import Collection, Patient, Volume
from pretraining.preprocessed.collection import PreprocessedCollection
from pretraining.preprocessed.crops import CropDataset, draw_start

from ..synthetic import write_index

pytestmark = pytest.mark.slow

NUMBER = {"p0": 0, "p1": 1, "c0": 2, "c1": 3, "m0": 4, "m1": 5}


def write_volume(path: Path, voxels: np.ndarray, points=((10, 12, 11),), padding=-7.0) -> None:
    blosc2.asarray(
        voxels[None].astype(np.float32), urlpath=str(path), mode="w", chunks=(1, 8, 8, 8), blocks=(1, 4, 4, 4),
        meta={"foreground": np.array(points, "<i2").tobytes(), "padding": padding},
    )  # fmt: skip


def positions(patient: str, shape: tuple[int, ...]) -> np.ndarray:
    """Voxels that tell the patient and where they are: patient * 1e5 + their number in the volume."""
    return np.arange(np.prod(shape)).reshape(shape) + 1e5 * NUMBER[patient]


def make_collection(
    folder: Path, pairs=("p0",), ct=(), mr=(), shape=(20, 24, 22), sides=None, **options
) -> PreprocessedCollection:
    folder.mkdir(exist_ok=True)
    patients = []
    for identifier in (*pairs, *ct, *mr):
        domains = (["CT"] if identifier not in mr else []) + (["MR"] if identifier not in ct else [])
        volumes = tuple(Volume(domain, domain, folder / f"{identifier}_{domain}.b2nd") for domain in domains)
        for volume in volumes:
            write_volume(volume.path, positions(identifier, shape), **options)
        patients.append(Patient(identifier, volumes, identifier in pairs))
    split = {patient.identifier: "train" for patient in patients} | (sides or {})
    write_index(folder, Collection("A", "synthetic", folder, tuple(patients)), split, shape)
    return PreprocessedCollection.open(folder)


def dataset(collection, **changes) -> CropDataset:
    options = {"crop_size": (8, 10, 6), "batch_size": 3, "seed": 5, "steps": 30, **changes}
    return CropDataset(collection, options.pop("split", "train"), **options)


def equal(first: dict, second: dict) -> bool:
    tensors = all(
        torch.equal(first[name], second[name]) for name in ("ct", "mr", "ct_inside", "mr_inside", "registered")
    )
    return tensors and first["patients"] == second["patients"]


def test_shapes_types_and_length(tmp_path):
    crops = dataset(make_collection(tmp_path, ct=("c0",), mr=("m0",)))
    item = crops[0]
    assert len(crops) == 30
    assert item["ct"].shape == item["mr"].shape == (3, 1, 8, 10, 6)
    assert item["ct"].dtype == item["mr"].dtype == torch.float32
    assert (item["registered"].dtype, item["registered"].shape) == (torch.bool, (3,))
    assert item["ct_inside"].tolist() == item["mr_inside"].tolist() == [[[0, 8], [0, 10], [0, 6]]] * 3
    assert len(item["patients"]) == 3
    with pytest.raises(IndexError):
        crops[30]


def test_an_item_depends_only_on_its_step(tmp_path):
    collection = make_collection(tmp_path, pairs=("p0", "p1"), ct=("c0", "c1"), mr=("m0", "m1"))
    crops = dataset(collection)
    in_order = [crops[step] for step in range(10)]
    for step in (9, 2, 7):
        fresh = dataset(PreprocessedCollection.open(tmp_path))
        assert equal(fresh[step], in_order[step])
    assert not equal(in_order[0], in_order[1])


def test_another_seed_gives_other_items(tmp_path):
    collection = make_collection(tmp_path)
    assert not equal(dataset(collection)[0], dataset(collection, seed=6)[0])


def test_processes_load_the_parts_of_one_batch(tmp_path):
    collection = make_collection(tmp_path, pairs=("p0", "p1"), ct=("c0", "c1"), mr=("m0", "m1"))
    whole = dataset(collection, batch_size=4)
    parts = [dataset(collection, batch_size=4, samples=samples) for samples in (range(2), range(2, 4))]
    for step in range(5):
        items = [part[step] for part in parts]
        for name in ("ct", "mr", "ct_inside", "mr_inside", "registered"):
            assert torch.equal(torch.cat([item[name] for item in items]), whole[step][name])
        assert [names for item in items for names in item["patients"]] == whole[step]["patients"]


@pytest.mark.parametrize("domain", ["CT", "MR"])
def test_a_single_domain_needs_no_other(tmp_path, domain):
    crops = dataset(make_collection(tmp_path, pairs=("p0",), ct=("c0",), mr=("m0",)), domains=(domain,))
    items = [crops[step] for step in range(20)]
    name = domain.lower()
    keys = {name, f"{name}_inside", f"{name}_turnable", "registered", "patients"}
    assert all(set(item) == keys for item in items)
    assert not any(item["registered"].any() for item in items)
    assert {name for item in items for names in item["patients"] for name in names} == {"p0", f"{domain[0].lower()}0"}


def test_items_are_the_same_with_workers(tmp_path):
    crops = dataset(make_collection(tmp_path), steps=4)
    loaded = list(DataLoader(crops, batch_size=None, num_workers=2))
    # The loader makes lists of tuples.
    for item in loaded:
        item["patients"] = [tuple(names) for names in item["patients"]]
    assert all(equal(crops[step], loaded[step]) for step in range(4))


def test_crops_of_a_pair_are_of_the_same_place(tmp_path):
    crops = dataset(make_collection(tmp_path, pairs=("p0", "p1")))
    for step in range(10):
        item = crops[step]
        assert item["registered"].all()
        assert torch.equal(item["ct"], item["mr"])
        assert all(ct_patient == mr_patient for ct_patient, mr_patient in item["patients"])


def test_a_crop_is_a_part_of_the_volume_that_it_names(tmp_path):
    crops = dataset(make_collection(tmp_path, pairs=(), ct=("c0", "c1"), mr=("m0", "m1")))
    for step in range(10):
        item = crops[step]
        for side, domain in enumerate(("ct", "mr")):
            for crop, names in zip(item[domain][:, 0], item["patients"], strict=True):
                volume = positions(names[side], (20, 24, 22)).astype(np.float32)
                z, y, x = np.argwhere(volume == crop[0, 0, 0].item())[0]
                assert np.array_equal(crop.numpy(), volume[z : z + 8, y : y + 10, x : x + 6])


def test_without_pairs_all_is_independent(tmp_path):
    crops = dataset(make_collection(tmp_path, pairs=(), ct=("c0",), mr=("m0", "m1")))
    items = [crops[step] for step in range(20)]
    assert not any(item["registered"].any() for item in items)
    assert {names for item in items for names in item["patients"]} == {("c0", "m0"), ("c0", "m1")}


def test_pairs_are_drawn_by_their_share_and_others_otherwise(tmp_path):
    collection = make_collection(tmp_path, pairs=("p0",), ct=("c0", "c1"), mr=("m0",))
    assert collection.split("train").pair_probability == pytest.approx(1 / 3)
    crops = dataset(collection, crop_size=(2, 2, 2), batch_size=1, steps=1000)
    items = [crops[step] for step in range(1000)]
    share = torch.cat([item["registered"] for item in items]).float().mean().item()
    assert share == pytest.approx(1 / 3, abs=0.06)
    independent = [
        names
        for item in items
        for names, registered in zip(item["patients"], item["registered"], strict=True)
        if not registered
    ]
    assert {ct for ct, _ in independent} == {"c0", "c1"}
    assert {mr for _, mr in independent} == {"m0"}


def test_pairs_lend_their_volumes_where_a_modality_has_no_others(tmp_path):
    crops = dataset(make_collection(tmp_path, pairs=("p0", "p1"), mr=("m0", "m1")), crop_size=(2, 2, 2), batch_size=1)
    samples = [sample for step in range(30) for sample in crops[step]["patients"]]
    assert {ct for ct, _ in samples} == {"p0", "p1"}
    assert {mr for _, mr in samples} == {"p0", "p1", "m0", "m1"}


def test_splits_do_not_mix(tmp_path):
    collection = make_collection(tmp_path, pairs=("p0", "p1"), sides={"p1": "validation"})
    assert {names[0] for names in dataset(collection)[0]["patients"]} == {"p0"}
    assert {names[0] for names in dataset(collection, split="validation")[0]["patients"]} == {"p1"}


def test_small_volumes_are_padded_evenly(tmp_path):
    shape = (4, 24, 5)
    item = dataset(make_collection(tmp_path, shape=shape))[0]
    crop = item["ct"][0, 0].numpy()
    assert (crop[:2] == -7).all()
    assert (crop[6:] == -7).all()
    assert (crop[:, :, 5:] == -7).all()
    assert (crop[2:6, :, :5] >= 0).all()
    assert item["ct_inside"].tolist() == item["mr_inside"].tolist() == [[[2, 6], [0, 10], [0, 5]]] * 3
    assert torch.equal(item["ct"], item["mr"])


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_crops_are_centred_on_the_body(share):
    random = np.random.default_rng(0)
    points = np.array([[30, 30, 30]], "<i2")
    starts = np.array([draw_start(points, np.array([60] * 3), np.array([10] * 3), share, random) for _ in range(200)])
    if share:
        assert (starts == 25).all()
    else:
        assert starts.min() == 0
        assert starts.max() == 50


def test_crops_at_the_border_stay_inside():
    random = np.random.default_rng(0)
    points = np.array([[0, 19, 5]], "<i2")
    assert draw_start(points, np.array([20] * 3), np.array([10] * 3), 1.0, random).tolist() == [0, 10, 0]


def test_a_volume_without_body_is_cropped_anywhere(tmp_path):
    crops = dataset(make_collection(tmp_path, points=np.empty((0, 3))), foreground_share=1.0)
    first_voxels = torch.cat([crops[step]["ct"][:, 0, 0, 0, 0] for step in range(10)]).long().numpy()
    starts = np.array(np.unravel_index(first_voxels, (20, 24, 22)))
    # Drawn centres near a border give the outermost crops.
    assert starts.min(1).tolist() == [0, 0, 0]
    assert starts.max(1).tolist() == [12, 14, 16]


def test_a_missing_or_damaged_volume_is_named(tmp_path):
    crops = dataset(make_collection(tmp_path))
    path = tmp_path / "p0_CT.b2nd"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"p0_CT\.b2nd: missing or damaged"):
        crops[0]
    path.unlink()
    with pytest.raises(InputError, match=r"p0_CT\.b2nd: missing or damaged"):
        crops[0]


@pytest.mark.parametrize(
    "change", [{"split": "test"}, {"crop_size": (8, 8)}, {"crop_size": (8, 0, 8)}, {"batch_size": 0}]
)
def test_impossible_arguments_are_refused(tmp_path, change):
    with pytest.raises(ValueError, match="expected"):
        dataset(make_collection(tmp_path), **change)


def test_only_the_part_that_is_needed_is_read(tmp_path, monkeypatch):
    crops = dataset(make_collection(tmp_path), batch_size=1)
    regions = []
    original = blosc2.NDArray.__getitem__
    monkeypatch.setattr(blosc2.NDArray, "__getitem__", lambda self, key: regions.append(key) or original(self, key))
    crops[0]
    assert len(regions) == 2
    assert all([part.stop - part.start for part in region[1:]] == [8, 10, 6] for region in regions)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="memory is read from Linux's /proc")
def test_memory_does_not_grow_with_the_steps(tmp_path):
    # blosc2 4.14 keeps the memory of each vlmeta that is read: 6 kB a crop with a thousand points.
    points = np.tile([[10, 12, 11]], (1000, 1))
    crops = dataset(make_collection(tmp_path, points=points), batch_size=1, steps=1500)

    def memory() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    for step in range(500):
        crops[step]
    before = memory()
    for step in range(500, 1500):
        crops[step]
    # A leak would be 12 MB here.
    assert memory() - before < 3_000
