"""Runs as a report reads them, and what several of them have in common and not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffmavil.config import Config, FinetuneConfig
from diffmavil.config.files import CONFIG_FILE, flat_settings, load_config
from diffmavil.evaluation.classification import read_classification, scored_file
from diffmavil.evaluation.result import read_evaluation
from diffmavil.reporting import classification_page, pretraining_page
from diffmavil.reporting.parts import Lines, Panels, Row, Section, Table, curve_sections
from diffmavil.training.metrics import Metrics, read_metrics

_COLOURS = 8
_NOT_TOLD = ("data.cache", "data.workers", "data.prefetch", "train.log_every", "train.report", "batch.begin")
"""Settings that say nothing of what was learnt."""


@dataclass(frozen=True)
class RunView:
    """What a run's folder tells without its weights.

    Attributes:
        name: its folder's, made longer where two are alike.
    """

    name: str
    folder: Path
    config: Config
    records: list[Metrics]

    @property
    def finetuned(self) -> bool:
        return isinstance(self.config, FinetuneConfig)

    @property
    def kind(self) -> str:
        return "fine-tuning" if self.finetuned else "pretraining"

    def summary(self) -> list[tuple[str, str]]:
        if isinstance(self.config, FinetuneConfig):
            return classification_page.summary(self.config, self.records)
        return pretraining_page.summary(self.config, self.records)

    @property
    def panels(self) -> Panels:
        return classification_page.PANELS if self.finetuned else pretraining_page.panels(self.config.model)


def open_runs(folders: Sequence[Path]) -> list[RunView]:
    """Raises `UsageError` for a folder that holds no run."""
    configs = [load_config(folder / CONFIG_FILE) for folder in folders]
    return [
        RunView(name, folder, config, read_metrics(folder))
        for name, folder, config in zip(_names(folders), folders, configs, strict=True)
    ]


def _names(folders: Sequence[Path]) -> list[str]:
    """Each folder's own name, with as many of those above it as make them differ."""
    parts = [folder.resolve().parts for folder in folders]
    longest = max(map(len, parts))
    names = (["/".join(part[-depth:]) for part in parts] for depth in range(1, longest + 1))
    twice = [f"{folder.name} ({number})" for number, folder in enumerate(folders, 1)]  # one folder, named twice
    return next((found for found in names if len(set(found)) == len(found)), twice)


def summary_section(runs: Sequence[RunView]) -> Section:
    """Every run's own summary, side by side."""
    told: dict[str, dict[str, str]] = {}
    for run in runs:
        for name, value in [("kind", run.kind), *run.summary()] if len(runs) > 1 else run.summary():
            told.setdefault(name, {})[run.name] = value
    rows = [(name, [values.get(run.name, "") for run in runs]) for name, values in told.items()]
    columns = [_dot(i) + Markup("{}").format(run.name) for i, run in enumerate(runs)] if len(runs) > 1 else []
    return Section("Run" if len(runs) == 1 else "Runs", summary=rows, columns=columns)


def _dot(number: int) -> Markup:
    """The colour of a run."""
    return Markup(f'<span class="dot" style="background: var(--c{number % _COLOURS + 1})"></span>')


def difference_section(runs: Sequence[RunView]) -> Section:
    """Settings that differ between runs, of those that all of them have."""
    settings = [flat_settings(run.config) for run in runs]
    names = [name for name in settings[0] if all(name in one for one in settings) and not name.startswith(_NOT_TOLD)]
    values = {name: [one[name] for one in settings] for name in names}
    rows = [Row([name, *_apart(found)]) for name, found in values.items() if len(set(map(repr, found))) > 1]
    if not rows:
        return Section("Settings that differ", "None: the runs have the same settings, but for where they ran.")
    return Section("Settings that differ", table=Table(["", *(run.name for run in runs)], rows, words=True))


def _apart(values: Sequence[Any]) -> list[str]:
    """Shortened, unless it is in what would be left out that they differ."""
    short, whole = [_plain(value) for value in values], [str(value) for value in values]
    return short if len(set(short)) == len(set(whole)) else whole


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        shown = ", ".join(_plain(one) for one in value)
        return shown if len(shown) < 60 else f"{shown[:57]}..."
    return f"{value:g}" if isinstance(value, float) else str(value)


def score_sections(runs: Sequence[RunView]) -> list[Section]:
    """What evaluations have found of the pretrained runs, and of the fine-tuned ones."""
    pretrained, tuned = [run for run in runs if not run.finetuned], [run for run in runs if run.finetuned]
    found = []
    if pretrained:
        found.append(_evaluations(pretrained))
    if tuned:
        found.append(_classifications(tuned))
    return found


def _evaluations(runs: Sequence[RunView]) -> Section:
    cells: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    missing: list[RunView] = []
    for run in runs:
        evaluation = read_evaluation(run.folder)
        if evaluation is None:
            missing.append(run)
            continue
        at = {name: i for i, name in enumerate(evaluation.results)}
        for _, name, values in evaluation.rows():
            cells.setdefault(name, {})[run.name] = values[at["trained"]]
            cells[name][f"{run.name}, untrained"] = values[at["untrained"]]
        notes.append(" ".join([f"{run.name}: {evaluation.caption()}.", *evaluation.notes]))
    command = Markup("{} is not evaluated yet: <code>python -m diffmavil.evaluate --run-dir {}</code> adds it here.")
    notes += [command.format(run.name, run.folder) for run in missing]
    columns = [name for run in runs if run not in missing for name in (run.name, f"{run.name}, untrained")]
    rows = [Row([name, *(by_run.get(column, "") for column in columns)]) for name, by_run in cells.items()]
    table = Table(["", *columns], rows) if rows else None
    return Section("What the features know", Markup(" ").join(notes), table=table)


def _classifications(runs: Sequence[RunView]) -> Section:
    rows, notes = {}, []
    for run in runs:
        found = read_classification(run.folder)
        if found is None:
            notes.append(f"{run.name} has no scores yet: held-out clips are scored when the run ends.")
            continue
        chosen = next(cells for what, cells in found.rows() if what.endswith("*"))
        rows[run.name] = chosen
        told = f"{run.name}: {found.caption()}, by the {found.headline['weights']} weights."
        stale = found.sha256 and scored_file(found, run.folder) is None
        notes.append(f"{told} {classification_page.STALE}" if stale else told)
    metrics = list(dict.fromkeys(metric for cells in rows.values() for metric in cells))
    shown = [Row([name, *(cells.get(metric, "") for metric in metrics)]) for name, cells in rows.items()]
    return Section("Scores", " ".join(notes), table=Table(["", *metrics], shown) if shown else None)


def learning_sections(runs: Sequence[RunView]) -> list[Section]:
    """Curves of all runs, those of the same task in the same panels."""
    found: list[Section] = []
    for finetuned in (False, True):
        alike = [run for run in runs if run.finetuned == finetuned]
        if not alike:
            continue
        panels = _all_panels(alike)
        records: Mapping[str, Sequence[Metrics]] = {run.name: run.records for run in alike}
        notes = classification_page.NOTES if finetuned else pretraining_page.NOTES
        sections = curve_sections(records, panels, notes)
        if finetuned and len(alike) < len(runs):  # titles of both kinds stand on one page
            sections = [replace(section, title=f"{section.title}, fine-tuning") for section in sections]
        found += sections
    return found


def _all_panels(runs: Sequence[RunView]) -> dict[str, list[tuple[str, Lines]]]:
    """Of every section the panels of all runs, each line once."""
    lines: dict[str, dict[str, dict[tuple[str, str], None]]] = {}
    for run in runs:
        for title, drawn in run.panels.items():
            for name, of_panel in drawn:
                lines.setdefault(title, {}).setdefault(name, {}).update(dict.fromkeys(of_panel))
    return {title: [(name, list(found)) for name, found in drawn.items()] for title, drawn in lines.items()}


def config_section(runs: Sequence[RunView]) -> Section:
    """The whole resolved config of each run, to unfold."""
    unfolds = {run.name: ("The whole resolved config", _config_lines(run)) for run in runs}
    if len(runs) == 1:
        return Section("Config", unfold=unfolds[runs[0].name])
    return Section("Config", parts=[Section(name, unfold=unfold) for name, unfold in unfolds.items()])


def _config_lines(run: RunView) -> list[str]:
    return (run.folder / CONFIG_FILE).read_text().splitlines()
