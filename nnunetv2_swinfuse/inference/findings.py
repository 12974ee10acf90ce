"""What a check says of an image: severity, reason and remedy; as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any


class Severity(IntEnum):
    """Severity of a case: that of its worst finding."""

    PASSED = 0
    WARNING = 1
    REFUSED = 2


# Exit codes of the commands. 1 is Python's own for a crash, 2 is for a command that could not be carried out at all.
EXIT_CODES = {Severity.PASSED: 0, Severity.WARNING: 3, Severity.REFUSED: 4}
EXIT_UNUSABLE = 2


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or not as in the training images.

    Attributes:
        check: name of the check, as `--accept` takes it.
        severity: whether the case is refused or predicted with a warning.
        reason: what was found and what was expected.
        remedy: what to do.
        file: the file concerned; None for the whole case.
        accepted: whether the user has accepted what would have been refused.
    """

    check: str
    severity: Severity
    reason: str
    remedy: str
    file: str | None = None
    accepted: bool = False

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON report, with the severity by name."""
        return {**asdict(self), "severity": self.severity.name.lower()}


@dataclass(frozen=True)
class CaseFindings:
    """The checks of one case.

    Attributes:
        case: its name.
        files: its channels in order.
        findings: everything that is wrong; empty when all checks passed.
        performed: names of the checks that were performed.
        not_performed: why others were not, by name.
    """

    case: str
    files: tuple[Path, ...]
    findings: tuple[Finding, ...] = ()
    performed: tuple[str, ...] = ()
    not_performed: Mapping[str, str] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        return max((finding.severity for finding in self.findings), default=Severity.PASSED)

    def to_dict(self) -> dict[str, Any]:
        """As in the JSON report."""
        return {
            "case": self.case,
            "files": [str(file) for file in self.files],
            "verdict": self.severity.name.lower(),
            "findings": [finding.to_dict() for finding in self.findings],
            "checks_made": list(self.performed),
            "checks_not_made": dict(self.not_performed),
        }

    def to_text(self) -> str:
        """One line for a case without findings, otherwise three for each finding."""
        lines = [f"{self.case}: {self.severity.name.lower()}"]
        for finding in self.findings:
            accepted = ", accepted by --accept" if finding.accepted else ""
            where = f"{finding.file}: " if finding.file else ""
            lines += [
                f"  {finding.severity.name.lower()} [{finding.check}{accepted}]",
                f"    {where}{finding.reason}",
                f"    {finding.remedy}",
            ]
        return "\n".join(lines)


def worst(cases: Iterable[CaseFindings]) -> Severity:
    """The severity that decides the exit code."""
    return max((case.severity for case in cases), default=Severity.PASSED)


def accept(finding: Finding, accepted: Sequence[str]) -> Finding:
    """A refusal that the user has named in `--accept` becomes a warning that says so."""
    if finding.severity is Severity.REFUSED and finding.check in accepted:
        return Finding(finding.check, Severity.WARNING, finding.reason, finding.remedy, finding.file, accepted=True)
    return finding
