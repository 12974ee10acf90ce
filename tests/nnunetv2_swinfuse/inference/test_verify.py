"""Zips from outside: everything that could write elsewhere, run code or fill the disk is refused unopened."""

import io
import json
import pickle
import stat
import sys
import zipfile

import pytest
import torch

from nnunetv2_swinfuse.errors import InputError
from nnunetv2_swinfuse.inference.export import export_model
from nnunetv2_swinfuse.inference.manifest import MANIFEST
from nnunetv2_swinfuse.inference.verify import main, verify_folder, verify_zip
from nnunetv2_swinfuse.plain_loading import PlainFileError, inspect_checkpoint, load_plain

from ..malicious import Malicious, checkpoint_with, tar_before
from .synthetic_models import write_whole_model


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    root = tmp_path_factory.mktemp("exported")
    folder = write_whole_model(root / "results")
    export_model(folder, root / "m.zip")
    return root / "m.zip"


@pytest.fixture(scope="module")
def stock(exported, tmp_path_factory):
    """The same model as nnU-Net's own export would zip it: no manifest."""
    path = tmp_path_factory.mktemp("stock") / "stock.zip"
    rewrite(exported, path, lambda name, content: None if name.endswith(MANIFEST) else content)
    return path


def rewrite(source, target, change, extra=()):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.infolist():
            content = change(member.filename, old.read(member))
            if content is not None:
                new.writestr(member.filename, content)
        for member, content in extra:
            new.writestr(member, content)
    return target


def refused(path, message, **options):
    with pytest.raises(InputError, match=message):
        verify_zip(path, **options)


def test_a_sound_export_passes_and_another_file_of_that_name_does_not(exported):
    verified = verify_zip(exported)
    assert verified.model == "Dataset900_Made/nnUNetTrainerSwinFUSE__nnUNetPlans__3d_fullres"
    verify_zip(exported, sha256=verified.sha256.upper())
    refused(exported, "expected ffff", sha256="f" * 64)


def linked(name):
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


MODEL = "Dataset900_Made/nnUNetTrainerSwinFUSE__nnUNetPlans__3d_fullres"


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (("../../evil.json", b"{}"), "leads out"),
        (("/etc/evil.json", b"{}"), "leads out"),
        (("C:/evil.json", b"{}"), "leads out"),
        (("a\\..\\evil.json", b"{}"), "leads out"),
        ((linked(f"{MODEL}/fold_1"), b"/etc"), "link"),
        ((f"{MODEL}/PLANS.json", b"{}"), "twice"),
        ((f"{MODEL}/plans.json/x.json", b"{}"), "below a file"),
        ((f"{MODEL}/zeros.json", bytes(1 << 24)), "unpacks"),
        ((f"{MODEL}/postprocessing.pkl", b"\x80\x02N."), "surplus"),
        ((f"{MODEL}/fold_0/extra.json", b"{}"), "surplus"),
        (("Dataset901_Other/a__b__c/plans.json", b"{}"), "surplus"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(getattr(value[0], "filename", value[0])),
)
def test_paths_links_bombs_and_surplus_files(exported, tmp_path, extra, message):
    refused(rewrite(exported, tmp_path / "z.zip", lambda _, content: content, [extra]), message)


def test_encrypted_and_damaged_archives(exported, tmp_path):
    content = bytearray(exported.read_bytes())
    middle = len(content) // 2
    content[middle] ^= 1
    (tmp_path / "flipped.zip").write_bytes(content)
    refused(tmp_path / "flipped.zip", "damaged")
    for size in (0, 10, middle, len(content) - 5):
        (tmp_path / "cut.zip").write_bytes(exported.read_bytes()[:size])
        refused(tmp_path / "cut.zip", "damaged or no zip")
    content = bytearray(exported.read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(content)
    refused(tmp_path / "locked.zip", "encrypted")


def test_a_changed_or_missing_file_is_named(exported, tmp_path):
    changed = rewrite(exported, tmp_path / "a.zip", lambda n, c: c + b" " if n.endswith("dataset.json") else c)
    refused(changed, r"dataset\.json has the SHA-256")
    missing = rewrite(exported, tmp_path / "b.zip", lambda n, c: None if n.endswith("dataset.json") else c)
    refused(missing, r"missing .*dataset\.json")


def test_without_a_manifest_only_on_request(stock):
    refused(stock, "no swinfuse_manifest.json")
    assert verify_zip(stock, need_manifest=False).manifest is None


def with_plans(stock, path, change):
    def edit(name, content):
        if not name.endswith("plans.json"):
            return content
        plans = json.loads(content)
        change(plans["configurations"]["3d_fullres"], plans)
        return json.dumps(plans)

    return rewrite(stock, path, edit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda block, _: block["architecture"].update(network_class_name="os.system"), "network 'os.system'"),
        (lambda block, _: block["architecture"].update(network_class_name="evil.Net"), "network 'evil.Net'"),
        (
            lambda block, _: block["architecture"].update(
                _kw_requires_import=["conv_op"], arch_kwargs={"conv_op": "evil.module"}
            ),
            "conv_op 'evil.module'",
        ),
        (lambda block, _: block.update(preprocessor_name="evil.Preprocessor"), "preprocessor_name"),
        (lambda block, _: block.update(normalization_schemes=["../evil"]), "normalization_schemes"),
        (lambda _, plans: plans.update(image_reader_writer="evil.Reader"), "image_reader_writer"),
        (lambda _, plans: plans.update(configurations=[]), "no plans of nnU-Net"),
    ],
    ids=["os.system", "module", "layer", "preprocessor", "normalisation", "reader", "no plans"],
)
def test_plans_that_would_import_something_are_refused_and_nothing_is_imported(stock, tmp_path, change, message):
    before = set(sys.modules)
    refused(with_plans(stock, tmp_path / "z.zip", change), message, need_manifest=False)
    assert "evil" not in {name.split(".")[0] for name in set(sys.modules) - before}


def with_checkpoint(stock, path, content):
    return rewrite(stock, path, lambda name, old: content if name.endswith(".pth") else old)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(stock, tmp_path, protocol):
    target = tmp_path / "ran"
    content = checkpoint_with(Malicious(target), protocol)
    refused(with_checkpoint(stock, tmp_path / "z.zip", content), "could run code", need_manifest=False)
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(PlainFileError, match="code execution"):
        load_plain(tmp_path / "c.pth")
    assert not target.exists()
    # The oracle: what stock nnU-Net does with it.
    torch.load(io.BytesIO(content), weights_only=False)
    assert target.exists()


def test_other_pickles_and_archives_in_place_of_a_checkpoint(stock, tmp_path):
    plain = checkpoint_with("nnUNetTrainer")
    inspect_checkpoint(io.BytesIO(plain), "plain")
    compressed = rewrite(io.BytesIO(plain), io.BytesIO(), lambda _, content: content).getvalue()
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    cases = {
        "compressed parts": compressed,
        "damaged or no PyTorch archive": pickle.dumps({}),
        "no PyTorch archive": legacy.getvalue(),
        "does not begin as an archive": tar_before(plain, tmp_path / "ran"),
        "damaged": plain[: len(plain) // 2],
        "no checkpoint of nnU-Net": plain,
    }
    for message, content in cases.items():
        refused(with_checkpoint(stock, tmp_path / "z.zip", content), message, need_manifest=False)


def test_a_link_in_an_installed_model_is_followed_by_no_one(exported, tmp_path):
    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / MODEL
    verify_folder(folder)
    (folder / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset\.json: missing, but listed"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["fold_1/checkpoint_final.pth", "fold_0/checkpoint_best.pth", "more/deeply/x.pth"])
def test_a_checkpoint_that_the_manifest_does_not_list_is_refused(exported, tmp_path, name):
    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path)
    surplus = tmp_path / MODEL / name
    surplus.parent.mkdir(parents=True, exist_ok=True)
    surplus.write_bytes(checkpoint_with(Malicious(tmp_path / "ran")))
    with pytest.raises(InputError, match=rf"{name}: not in {MANIFEST}: .*another version.*-f 0"):
        verify_folder(tmp_path / MODEL)
    assert not (tmp_path / "ran").exists()


def test_a_fold_behind_a_link_is_seen_as_nnunet_sees_it(exported, tmp_path):
    with zipfile.ZipFile(exported) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "checkpoint_final.pth").write_bytes(checkpoint_with(Malicious(tmp_path / "ran")))
    (tmp_path / MODEL / "fold_1").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=f"fold_1/checkpoint_final.pth: not in {MANIFEST}"):
        verify_folder(tmp_path / MODEL)
    (tmp_path / MODEL / MANIFEST).unlink()
    with pytest.raises(InputError, match="could run code"):
        verify_folder(tmp_path / MODEL, need_manifest=False)


@pytest.mark.parametrize("name", [MANIFEST, "plans.json", "checkpoint_final.pth"])
@pytest.mark.parametrize("need_manifest", [True, False])
def test_a_file_of_an_installed_model_that_cannot_be_read_is_named(
    exported, stock, tmp_path, unreadable, name, need_manifest
):
    with zipfile.ZipFile(exported if need_manifest or name == MANIFEST else stock) as archive:
        archive.extractall(tmp_path)
    unreadable(name)
    with pytest.raises(InputError, match=rf"{name}: cannot be read \(Permission denied\); check its permissions"):
        verify_folder(tmp_path / MODEL, need_manifest)


def test_a_zip_that_cannot_be_read_is_refused_without_a_traceback(exported, unreadable, monkeypatch, capsys):
    unreadable(exported.name)
    for reason in ("its content", "its folder"):
        if reason == "its folder":

            def denied(path):
                raise PermissionError(13, "Permission denied", str(path))

            monkeypatch.setattr(type(exported), "exists", denied)
        with pytest.raises(SystemExit) as exit_:
            main([str(exported)])
        assert exit_.value.code == 4
        assert f"{exported}: cannot be read (Permission denied)" in capsys.readouterr().err


def test_the_command(exported, stock, tmp_path, capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as exit_:
            main([str(argument) for argument in arguments])
        return exit_.value.code

    assert run(exported) == 0
    assert "SHA-256" in capsys.readouterr().out
    assert run(stock) == 4
    assert "REFUSED" in capsys.readouterr().err
    assert run(stock, "--without_manifest") == 0
    assert run(tmp_path / "nowhere.zip") == 2
