"""The documentation is true where that can be checked: links, paths, modules and command-line options."""

from __future__ import annotations

import argparse
import re
import sys
from contextlib import redirect_stdout
from functools import lru_cache
from importlib import import_module
from io import StringIO
from pathlib import Path

import pytest

from nnunetv2_swinfuse.planning.plan_and_preprocess import build_parser as planning_parser
from pretraining.analysis.command import build_parser as analysis_parser
from pretraining.options import build_parser as pretraining_parser
from pretraining.preset_files import load_preset, preset_names, recipe_names

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Result pages show commands as they were on their day.
CURRENT = [page for page in PAGES if "results" not in page.relative_to(ROOT).parts and page.name != "CHANGELOG.md"]
PARSERS = {
    "swinfuse_pretrain": pretraining_parser(),
    "swinfuse_plan_and_preprocess": planning_parser(),
    "swinfuse_analyze": analysis_parser(),
}
COMMANDS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
# Its options are those of nnUNetv2_train, which takes seconds to import.
del COMMANDS["swinfuse_train"]


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_resolves(page):
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", page.read_text())
    for link in links:
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{name_of(page)}: {link}"
        if anchor:
            assert anchor in anchors(target), f"{name_of(page)}: {link}; there are {sorted(anchors(target))}"


def test_every_page_is_reached_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text()
    folder = ROOT / "docs"
    pages = {page.relative_to(folder).as_posix() for page in folder.rglob("*.md")} - {"README.md"}
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", index)}
    assert not pages - linked


def modules_on_the_map() -> list[str]:
    """Every path in the tables of docs/architecture.md, relative to the repository."""
    paths, folder = [], ""
    for line in (ROOT / "docs" / "architecture.md").read_text().splitlines():
        if heading := re.match(r"\| `([\w/]+/)` \| \|$", line):
            folder = heading[1]
        elif folder and line.startswith("| `"):
            cell = line.split("|")[1]
            group, _, rest = cell.rpartition(": ")
            prefix = group.strip(" `")
            paths += [f"{folder}{prefix}{name}" for name in re.findall(r"`([\w/.]+)`", rest)]
        elif not line.startswith("|"):
            folder = ""
    return paths


def test_every_path_on_the_map_exists():
    paths = modules_on_the_map()
    assert len(paths) > 60
    missing = [path for path in paths if not (ROOT / path).exists()]
    assert not missing


def test_every_module_is_on_the_map():
    """By its own path, or by that of a folder it is in."""
    on_map = set(modules_on_the_map())
    for package in ("nnunetv2_swinfuse", "pretraining"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT)
            folders = {f"{folder.as_posix()}/" for folder in name.parents}
            on_it = name.as_posix() in on_map or folders & on_map
            assert on_it or path.name.startswith("__"), f"{name} is not in docs/architecture.md"


def options_in(page: Path, command: str) -> set[str]:
    """The options after a command in code blocks and inline code, continued lines included."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = re.findall(rf"\b{command}\b([^\n`#|]*)", text)
    return {option for line in lines for option in re.findall(r"(?<=\s)--?[a-z]\w*", line)}


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """The options of a parser and of its subcommands."""
    options = set(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            options.update(*(options_of(subcommand) for subcommand in action.choices.values()))
    return options


@lru_cache
def options_in_help(command: str) -> frozenset[str]:
    """The options that `COMMAND --help` prints."""
    module, function = COMMANDS[command].split(":")
    with redirect_stdout(StringIO()) as printed, pytest.raises(SystemExit):
        getattr(import_module(module), function)(["--help"])
    return frozenset(re.findall(r"(?<![\w-])--?[a-z]\w*", printed.getvalue()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_after_a_command_exists(command):
    known = options_of(PARSERS[command]) if command in PARSERS else options_in_help(command)
    used = {(option, name_of(page)) for page in CURRENT for option in options_in(page, command)}
    assert used
    assert not {(option, page) for option, page in used if option not in known}


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_every_script_and_module_that_python_runs_exists(page):
    text = page.read_text()
    for script in re.findall(r"\bpython (\w[\w/]*\.py)\b", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"\bpython -m ((?:benchmarks|nnunetv2_swinfuse|pretraining|tests)[\w.]*)", text):
        path = ROOT.joinpath(*module.rstrip(".").split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), module


def test_the_tests_of_nnunet_features_are_in_the_folders_that_the_page_runs():
    section = (ROOT / "docs" / "nnunet.md").read_text().split("## Tested nnU-Net features")[1]
    command = re.search(r"`pytest ([^`]+)`", section)
    assert command
    folders = [ROOT / folder for folder in command[1].split()]
    names = {name.rpartition("/")[2] for name in re.findall(r"`([\w/]*test_\w+\.py)`", section)}
    assert names
    assert not {name for name in names if not any((folder / name).is_file() for folder in folders)}


def test_every_benchmark_is_listed():
    page = (ROOT / "benchmarks" / "README.md").read_text()
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__.py"}
    assert not {name for name in scripts if f"`{name}`" not in page}


@pytest.mark.parametrize(
    ("page", "command"),
    [
        *((name, "swinfuse_pretrain") for name in ("pretraining", "method", "collections", "monitoring", "scale")),
        ("planning", "swinfuse_plan_and_preprocess"),
    ],
)
def test_every_option_named_by_itself_exists(page, command):
    """Such as `--visible_weight`, on pages that are about one command."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    # The options of other programs: torchrun, benchmarks, nnU-Net's commands, pip.
    text = re.sub(r"\b(python|pip|torchrun|nnUNetv2_\w+|swinfuse_train) [^`\n]*", "", text)
    used = re.findall(r"`(--?[a-z]\w+)\b", text)
    unknown = {option for option in used if option not in PARSERS[command]._option_string_actions}
    assert used
    assert not unknown


def test_presets_and_recipes_of_the_tables_are_those_there_are():
    page = (ROOT / "docs" / "pretraining.md").read_text()
    for name in preset_names():
        row = re.search(rf"^\| `-p {name}` \| (\d+)³ \| (\d+) \| ([\d ]+) \|", page, re.MULTILINE)
        settings = {"crop_size": [96], "feature_size": 48, "steps": 100_000, **load_preset(name)}
        assert row, name
        expected = (settings["crop_size"][0], settings["feature_size"], settings["steps"])
        assert tuple(int(value.replace(" ", "")) for value in row.groups()) == expected
    table = page.split("## Recipes")[1].split("###")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert listed == set(recipe_names())


def test_the_readme_has_the_two_commands():
    lines = [line.strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert "pip install . && swinfuse_demo" in lines
    assert 'pip install ".[test]" && python -m pytest' in lines


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_no_page_installs_from_an_index(page):
    """The package is on none."""
    assert not re.search(r"pip install[^\n`]*\bnnunetv2-swinfuse\b", page.read_text())
