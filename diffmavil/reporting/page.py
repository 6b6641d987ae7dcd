"""`report.html`: one self-contained page about a run, of pretraining or of fine-tuning."""

from __future__ import annotations

from pathlib import Path

import jinja2
import torch

from diffmavil import __version__
from diffmavil.config import FinetuneConfig
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.reporting import classification_page, pretraining_page
from diffmavil.training.metrics import read_metrics

REPORT_FILE = "report.html"


def write_report(run_dir: Path) -> Path:
    """Draw the report of a run from what its folder holds; pictures need its exported weights.

    Raises:
        UsageError: the folder holds no run.
    """
    config = load_config(run_dir / CONFIG_FILE)
    records = read_metrics(run_dir)
    if isinstance(config, FinetuneConfig):
        what, summary = "fine-tuning", classification_page.summary(config, records)
        sections = classification_page.sections(run_dir, records)
    else:
        what, summary = "pretraining", pretraining_page.summary(config, records)
        sections = pretraining_page.sections(run_dir, config, records)
    page = _template().render(
        title=f"DiffMAViL: {run_dir.resolve().name}",
        lead=f"{what}, diffmavil {__version__}, torch {torch.__version__}",
        summary=summary,
        sections=sections,
        config=(run_dir / CONFIG_FILE).read_text(),
    )
    path = run_dir / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(page)
    partial.rename(path)
    return path


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("diffmavil.reporting", package_path="")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("page.html.j2")
