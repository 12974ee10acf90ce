"""`python -m tests.repository [FOLDER]`: files, imports between folders and the longest functions of a checkout."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.repository.structure import PACKAGES, ROOT, folder_arrows, function_lengths, internal_imports, modules


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    sources = modules(root)
    for package in (*PACKAGES, "tests", "benchmarks"):
        print(f"{package}: {sum(1 for _ in (root / package).rglob('*.py'))} files")
    print(
        f"imports between modules of the packages: {len({(i.importer, i.imported) for i in internal_imports(sources)})}"
    )
    arrows = folder_arrows(sources)
    print(
        f"arrows between folders: {len(arrows)}, in both directions: "
        f"{sorted(pair for pair in arrows if pair[::-1] in arrows and pair < pair[::-1])}"
    )
    for importer, imported in sorted(arrows):
        print(f"    {importer} -> {imported}")
    print("longest functions:")
    for lines, name in function_lengths(sources)[:10]:
        print(f"    {lines:4d} {name}")


if __name__ == "__main__":
    main()
