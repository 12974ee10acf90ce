"""Rules of docs/architecture.md that the source files must follow; `python -m tests.repository` prints the numbers."""

import ast
from pathlib import Path

import pytest

from tests.installation.checks import ONE_MODEL

from .structure import ROOT, Module, folder_arrows, function_lengths, import_cycles, imported_packages, modules

SOURCES = modules()
ARROWS = folder_arrows(SOURCES)
ARCHITECTURE = "nnunetv2_swinfuse.architecture"
INFERENCE = "nnunetv2_swinfuse.inference"
NNUNET_SIDE = tuple(
    f"nnunetv2_swinfuse.{folder}" for folder in ("architecture", "imaging", "inference", "planning", "training")
)
# Tested with the modules that they belong to, or by installing the package (tests/installation).
WITHOUT_TEST_FILE = {
    "nnunetv2_swinfuse/errors.py",
    "nnunetv2_swinfuse/benchmark/external_trainers/swinfuse_benchmark_trainers.py",
    "nnunetv2_swinfuse/discovery/external_trainers/swinfuse_trainers.py",
    "pretraining/__main__.py",
    "pretraining/voxel_probe/__main__.py",
}


def parse(name: str, source: str) -> Module:
    return Module(Path(name.replace(".", "/") + ".py"), name, ast.parse(source))


def test_modules_do_not_import_each_other_in_a_circle():
    assert import_cycles(SOURCES) == []


def test_a_circle_is_noticed_also_inside_functions():
    first = parse("pretraining.a", "from pretraining.b import f")
    second = parse("pretraining.b", "def f():\n    import pretraining.a")
    assert import_cycles([first, second]) == [["pretraining.a", "pretraining.b"]]


def test_imports_between_folders_point_one_way():
    both = {pair for pair in ARROWS if pair[::-1] in ARROWS}
    # The report shows settings and commands of the run that writes it, and a run probes its own encoder;
    # plain_loading.py uses torch_file.py.
    pairs = {
        ("pretraining", "pretraining.monitoring"),
        ("pretraining", "pretraining.voxel_probe"),
        ("nnunetv2_swinfuse", ARCHITECTURE),
    }
    assert both == pairs | {pair[::-1] for pair in pairs}


def test_the_network_stands_by_itself():
    assert {imported for importer, imported in ARROWS if importer == ARCHITECTURE} <= {"nnunetv2_swinfuse"}


def test_inference_is_imported_by_demo_and_benchmark_only():
    importers = {importer for importer, imported in ARROWS if imported == INFERENCE}
    assert importers <= {"nnunetv2_swinfuse.demo", "nnunetv2_swinfuse.benchmark"}
    assert {imported for importer, imported in ARROWS if importer == INFERENCE} <= {
        "nnunetv2_swinfuse", "nnunetv2_swinfuse.imaging", "nnunetv2_swinfuse.training", ARCHITECTURE,
    }  # fmt: skip


def test_imaging_needs_nothing_of_this_package_but_its_errors():
    assert {imported for importer, imported in ARROWS if importer == "nnunetv2_swinfuse.imaging"} == {
        "nnunetv2_swinfuse"
    }


def test_pretraining_and_nnunets_side_never_import_each_other():
    for importer, imported in ARROWS:
        if importer in NNUNET_SIDE:
            assert not imported.startswith("pretraining"), importer
        if importer.startswith("pretraining"):
            forbidden = ("benchmark", "demo", "inference", "planning", "training")
            assert imported not in {f"nnunetv2_swinfuse.{folder}" for folder in forbidden}, importer


def test_only_preprocessing_needs_nnunetv2_in_pretraining():
    importers = {module.name for module in SOURCES if "nnunetv2" in imported_packages(module)}
    assert {name for name in importers if name.startswith("pretraining")} == {
        "pretraining.preprocessing.fingerprint",
        "pretraining.preprocessing.foreground",
        "pretraining.preprocessing.image",
    }
    assert not any(name.startswith((ARCHITECTURE, "nnunetv2_swinfuse.imaging")) for name in importers)


def calls(module: Module, *names: str) -> set[str]:
    """Which of these functions, by their dotted names, a module calls."""
    called = {ast.unparse(node.func) for node in ast.walk(module.tree) if isinstance(node, ast.Call)}
    return called & set(names)


def test_one_module_opens_checkpoints_and_none_runs_code_of_files():
    """SECURITY.md. The pickles of nnU-Net's preprocessing are those of the user's own training folders."""
    loading = {module.name for module in SOURCES if calls(module, "torch.load", "load")}
    assert loading == {f"{ARCHITECTURE}.torch_file"}
    unpickling = {m.name for m in SOURCES if calls(m, "pickle.load", "pickle.loads", "load_pickle", "joblib.load")}
    assert unpickling == {"nnunetv2_swinfuse.planning.data_folders"}
    for module in SOURCES:
        for node in ast.walk(module.tree):
            if isinstance(node, ast.keyword) and node.arg in ("weights_only", "allow_pickle"):
                assert ast.unparse(node.value) == str(node.arg == "weights_only"), module.name


@pytest.mark.parametrize("module", [m for m in SOURCES if str(m.path) not in WITHOUT_TEST_FILE], ids=lambda m: m.name)
def test_every_module_has_a_test_file_of_its_own(module):
    assert (ROOT / "tests" / module.path.parent / f"test_{module.path.name}").is_file()


def test_every_test_file_is_named_after_a_module_or_tests_behaviour():
    folders = [ROOT / "tests" / package for package in ("nnunetv2_swinfuse", "pretraining")]
    for path in (path for folder in folders for path in folder.rglob("test_*.py")):
        tested = path.relative_to(ROOT / "tests")
        tested = ROOT / tested.parent / tested.name.removeprefix("test_")
        assert tested.is_file(), f"{path}: no module {tested}; tests of several modules belong to tests/behaviour"


def test_functions_are_short():
    lines, name = function_lengths(SOURCES)[0]
    assert lines <= 90, f"{name} has {lines} lines"


def test_the_test_that_an_installation_runs_exists():
    path, name = ONE_MODEL.split("::")

    defined = {node.name for node in ast.walk(ast.parse((ROOT / "tests" / path).read_text())) if hasattr(node, "name")}
    assert name in defined
