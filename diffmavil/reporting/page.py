"""`report.html`: one self-contained page about a run, of pretraining or of fine-tuning, or about several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jinja2
import torch
from rich.console import Console

from diffmavil import __version__
from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import RunError
from diffmavil.reporting import (
    alignment,
    classification_page,
    feature_map,
    galleries,
    pretraining_page,
    reconstructions,
)
from diffmavil.reporting.media import Budget
from diffmavil.reporting.parts import Section
from diffmavil.reporting.pictures import heat_colours
from diffmavil.reporting.runs import (
    RunView,
    config_section,
    difference_section,
    learning_sections,
    open_runs,
    score_sections,
    summary_section,
)
from diffmavil.reporting.study import Missing, Study, open_study

REPORT_FILE = "report.html"
LARGEST = 15_000_000
"""Bytes of a page."""
_TEXT = 3_000_000
"""Of these, kept for curves, tables and text."""
_PARTS: dict[str, Callable[[Study], Section]] = {
    "Reconstructions": lambda study: Section(
        "Reconstructions", parts=reconstructions.sections(study.model, study.config, study.drawn)
    ),
    alignment.TITLE: alignment.section,
    galleries.NEIGHBOURS: galleries.neighbours,
    galleries.RETRIEVAL: galleries.retrieval,
    feature_map.TITLE: feature_map.section,
}


def write_report(run_dir: Path) -> Path:
    """Draw the report of a run from what its folder holds; pictures need its exported weights.

    Raises:
        UsageError: the folder holds no run.
    """
    (run,) = open_runs([run_dir])
    if isinstance(run.config, FinetuneConfig):
        sections = classification_page.sections(run_dir, run.records)
    else:
        sections = pretraining_page.sections(run_dir, run.config, run.records)
    return _write(run_dir / REPORT_FILE, [run], [summary_section([run]), *sections, config_section([run])])


def write_comparison(folders: Sequence[Path], path: Path, most: int, console: Console | None = None) -> Path:
    """Draw a page about one run or several, with what their weights make of held-out clips.

    Args:
        folders: of the runs.
        path: the file to be written.
        most: held-out clips whose features are looked at, and as many training clips.
        console: where progress is shown.

    Raises:
        UsageError: a folder that holds no run.
        RunError: so many runs that the page would be too large.
    """
    runs = open_runs(folders)
    sections = [summary_section(runs)]
    if len(runs) > 1:
        sections.append(difference_section(runs))
        sections += score_sections(runs)
    elif not runs[0].finetuned:
        sections.append(pretraining_page.scores(runs[0].folder))
    sections += learning_sections(runs) if len(runs) > 1 or not runs[0].finetuned else []
    share = (LARGEST - _TEXT) // len(runs)
    for run in runs:
        sections += _run_sections(run, share, most, console, alone=len(runs) == 1)
    return _write(path, runs, [*sections, config_section(runs)])


def _run_sections(run: RunView, share: int, most: int, console: Console | None, *, alone: bool) -> list[Section]:
    """What one run's weights show; among several runs, under its name."""
    if run.finetuned:
        found = classification_page.sections(run.folder, run.records)
        found = found if alone else [section for section in found if not section.panels]  # curves are above
    else:
        found = _looked_at(run, share, most, console)
    if not alone:
        found = [replace(section, parts=_folded(section.parts)) for section in found]
    return found if alone else [Section(run.name, parts=found)]


def _folded(parts: Sequence[Section]) -> list[Section]:
    """All but the first: a page about several runs is long."""
    return [replace(part, folded=number > 0) for number, part in enumerate(parts)]


def _looked_at(run: RunView, share: int, most: int, console: Console | None) -> list[Section]:
    try:
        study = open_study(run.name, run.folder, run.config, most, Budget(share), console)
    except Missing as why:
        return [Section("What the model makes of clips", str(why))]
    found = []
    for title, draw in _PARTS.items():
        try:
            section = draw(study)
        except (Missing, RunError) as why:
            section = Section(title, str(why))
        study.budget.take(_size(section))
        found.append(section)
    return found


def _size(section: Section) -> int:
    """Bytes of its pictures; its clips have been counted."""
    own = sum(len(strip.picture.src) for strip in section.strips) + sum(map(len, section.panels))
    return own + sum(_size(part) for part in section.parts)


def _write(path: Path, runs: Sequence[RunView], sections: Sequence[Section]) -> Path:
    kinds = " and ".join(dict.fromkeys(run.kind for run in runs))
    page = _template().render(
        title=f"DiffMAViL: {', '.join(run.name for run in runs)}",
        lead=f"{kinds}, diffmavil {__version__}, torch {torch.__version__}",
        sections=sections,
        heat=heat_colours(),
    )
    if len(page) > LARGEST:
        raise RunError(
            f"the page would have {len(page) / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}: compare fewer runs"
        )
    partial = path.with_suffix(".partial")
    partial.write_text(page, encoding="utf-8")
    partial.rename(path)
    return path


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("diffmavil.reporting", package_path="")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2")
