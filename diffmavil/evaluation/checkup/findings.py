"""What a check of a run gives: findings, each with how suspicious it is, and what was not checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

VERY, LIKELY = 0.7, 0.4
"""From these weights on, a finding is very suspicious, or likely; below, it is possible."""


class Unchecked(Exception):
    """A check that cannot be made here, and why."""


@dataclass(frozen=True)
class Finding:
    """One thing that differs from the reference.

    Attributes:
        check: the name of the check.
        here: what the run has.
        reference: what it is compared with.
        difference: by how much.
        advice: what to do.
        weight: how suspicious, in (0, 1]: the order of findings.
    """

    check: str
    here: str
    reference: str
    difference: str
    advice: str
    weight: float

    @property
    def level(self) -> str:
        if self.weight >= VERY:
            return "very likely"
        return "likely" if self.weight >= LIKELY else "possible"


@dataclass(frozen=True)
class Checkup:
    """All that was found of a run.

    Attributes:
        run: its folder.
        kind: "pretraining" or "fine-tuning".
        preset: the one that it is compared with.
        state: how far it came, in words.
        findings: the most suspicious first.
        clean: checks that have nothing to say.
        unchecked: check -> why it could not be made.
    """

    run: str
    kind: str
    preset: str
    state: str
    findings: list[Finding]
    clean: list[str]
    unchecked: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        found = [{"level": finding.level, **asdict(finding)} for finding in self.findings]
        return {**asdict(self), "findings": found}

    def lines(self) -> list[str]:
        """To be printed."""
        lines = [f"{self.run}: {self.kind}, {self.state}; compared with the preset {self.preset}"]
        for number, finding in enumerate(self.findings, 1):
            lines += [
                "",
                f"{number}. {finding.check} ({finding.level})",
                f"   here:       {finding.here}",
                f"   reference:  {finding.reference}",
                f"   difference: {finding.difference}",
                f"   do:         {finding.advice}",
            ]
        lines.append("")
        if not self.findings:
            lines.append("nothing differs that would explain a low score")
        if self.clean:
            lines.append(f"nothing to say of: {', '.join(self.clean)}")
        return lines + [f"not checked, {name}: {why}" for name, why in self.unchecked.items()]
