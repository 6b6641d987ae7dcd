"""`report.html`: one self-contained page about a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import torch
from markupsafe import Markup
from matplotlib.figure import Figure

from diffmavil import __version__
from diffmavil.config import Config
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.progress import format_seconds
from diffmavil.data.audio import make_log_mel
from diffmavil.data.loader import eval_batches
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import KINDS
from diffmavil.evaluation.result import read_evaluation
from diffmavil.model import Pictures, Reconstruction
from diffmavil.model.weights import WEIGHTS_FILE, load_weights
from diffmavil.reporting import figures
from diffmavil.training.curriculum import keep_count
from diffmavil.training.metrics import Metrics, read_metrics

REPORT_FILE = "report.html"
_CLIPS = 4  # shown as reconstructions
_SAMPLE_STEPS = 2  # more steps give one sharper sample, fewer the mean: clearer while the model is young

_PANELS = {
    "Losses": (
        ("total", [("loss", "total")]),
        ("reconstruction", [("loss/video", "video"), ("loss/audio", "audio")]),
        ("contrast", [("loss/inter", "inter"), ("loss/intra", "intra")]),
    ),
    "Curriculum and schedule": (
        ("mask ratio", [("mask_ratio/video", "video"), ("mask_ratio/audio", "audio")]),
        ("batch size", [("batch_size", "clips")]),
        ("learning rate", [("lr", "lr")]),
    ),
    "Features while training": (
        ("nearest neighbours' score", [(f"probe/knn/{kind}", kind) for kind in KINDS]),
        ("effective rank", [(f"probe/rank/{kind}", kind) for kind in KINDS]),
        ("share of dead dimensions", [(f"probe/dead/{kind}", kind) for kind in KINDS]),
        ("mean norm", [(f"probe/norm/{kind}", kind) for kind in KINDS]),
    ),
    "Throughput": (
        ("clips/s", [("clips_per_second", "clips/s")]),
        ("GFLOP/s", [("gflop_per_second", "GFLOP/s")]),
        ("share of time waiting for data", [("data_wait", "wait")]),
    ),
}

_PANEL_NOTES = {
    "Features while training": "Of some held-out clips, nothing masked. Ranks that fall towards 1, or dimensions that "
    "die, mean that the model tells clips apart less and less."
}


def write_report(run_dir: Path) -> Path:
    """Draw the report of a run from what its folder holds; pictures need its exported weights.

    Raises:
        UsageError: the folder holds no run.
    """
    config = load_config(run_dir / CONFIG_FILE)
    records = read_metrics(run_dir)
    sections = [
        _section(title, _PANEL_NOTES.get(title, ""), figures.svg(figures.curves(records, panels)))
        for title, panels in _recorded(records).items()
    ]
    if (run_dir / WEIGHTS_FILE).exists():
        sections = _reconstructions(run_dir, config) + sections
    evaluation = read_evaluation(run_dir)
    page = _template().render(
        title=f"DiffMAViL: {run_dir.resolve().name}",
        lead=f"diffmavil {__version__}, torch {torch.__version__}",
        summary=_summary(config, records),
        evaluation=evaluation.section() if evaluation else None,
        figures=sections,
        config=(run_dir / CONFIG_FILE).read_text(),
        folder=run_dir,
    )
    path = run_dir / REPORT_FILE
    partial = path.with_suffix(".partial")
    partial.write_text(page)
    partial.rename(path)
    return path


def _recorded(records: Sequence[Metrics]) -> dict[str, list[tuple[str, list[tuple[str, str]]]]]:
    """Of `_PANELS`, what the records tell something of."""
    names = set().union(*records)
    found = {}
    for title, panels in _PANELS.items():
        told = [(name, [line for line in lines if line[0] in names]) for name, lines in panels]
        if any(lines for _, lines in told):
            found[title] = [(name, lines) for name, lines in told if lines]
    return found


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("diffmavil.reporting", package_path="")
    return jinja2.Environment(loader=loader, autoescape=True).get_template("page.html.j2")


def _section(title: str, note: str, body: str) -> dict[str, Any]:
    return {"title": title, "note": note, "body": Markup(body)}


def _summary(config: Config, records: Sequence[Metrics]) -> list[tuple[str, str]]:
    model = config.model
    rows = [
        ("data", config.data.root),
        ("video", f"{model.video.frames} frames of {model.video.size}x{model.video.size} over {model.video.seconds} s"),
        ("audio", f"log-mel {model.audio.frames}x{model.audio.mels}, mean {model.audio.mean}, std {model.audio.std}"),
        ("masked patches", f"{model.diffusion.corruption}, {model.decode_fraction:.0%} of them decoded"),
        ("decoders", f"video {model.video_decoder.attention}, audio {model.audio_decoder.attention}-attention"),
        ("batch size", str(config.train.batch_size)),
    ]
    if records:
        seconds = sum(r["seconds_per_step"] * n for r, n in zip(records, _steps(records), strict=True))
        last = records[-1]
        rows += [
            ("steps", f"{last['step']:.0f} of {config.train.steps} ({last['samples']:.0f} samples)"),
            ("training time", format_seconds(seconds)),
            ("throughput", f"{last['samples'] / seconds:.1f} clips/s"),
            ("steps skipped, clips skipped", f"{last['nonfinite_steps']:.0f}, {last['bad_clips']:.0f}"),
        ]
    return rows


def _steps(records: Sequence[Metrics]) -> list[float]:
    """Steps that each record speaks of."""
    ends = [r["step"] for r in records]
    return [end - start for start, end in zip([0.0, *ends], ends, strict=False)]


def _reconstructions(run_dir: Path, config: Config) -> list[dict[str, Any]]:
    result, names = reconstruct_heldout(run_dir, config)
    sections = []
    for i, name in enumerate(names):
        body = ""
        for kind, draw, alt in _DRAWN:
            rows = _rows(getattr(result, kind), i)
            if rows:
                figure = draw(rows)
                body += figures.png_tag(figure, alt)
                if i == 0:
                    figures.save_png(figure, run_dir / f"reconstruction-{kind}.png")
        sections.append(_section(f"Held-out clip {name}", _PICTURE_NOTE if i == 0 else "", body))
    return sections


_DRAWN: tuple[tuple[str, Callable[[list[tuple[str, Any]]], Figure], str], ...] = (
    ("video", figures.frame_strips, "frames"),
    ("audio", figures.spectrogram_rows, "spectrogram"),
)
_PICTURE_NOTE = (
    "Original; visible patches; the masked patches diffused to x_t (of the timesteps in training the one nearest to as "
    "much signal as noise); and the reconstruction of the masked patches, which starts from pure noise. Patches are "
    "predicted up to their mean and contrast, which are the true ones here, as in MAE's visualisation."
)


@torch.inference_mode()
def reconstruct_heldout(run_dir: Path, config: Config) -> tuple[Reconstruction, list[str]]:
    """Pictures of the first held-out clips, on the CPU, at the run's final mask ratio; and the clips' names."""
    model, config = load_weights(run_dir / WEIGHTS_FILE)
    config = replace(config, data=replace(config.data, workers=0))  # processes would take longer to start than this
    clips = split_source(config.data, config.model.modalities).held_out
    batch = next(iter(eval_batches(config, clips, batch_size=_CLIPS)))
    result = model.reconstruct(
        batch.video,
        make_log_mel(config.model)(batch.wave, batch.wave_valid),
        seed=config.train.seed,
        offset=0,
        keep_video=keep_count(config.mask.video, 1.0, config.model.video.tokens),
        keep_audio=keep_count(config.mask.audio, 1.0, config.model.audio.tokens),
        sample_steps=min(_SAMPLE_STEPS, len(config.model.diffusion.times)),
    )
    return result, [Path(path).stem for path in batch.paths]


def _rows(pictures: Pictures, i: int) -> list[tuple[str, Any]]:
    """Those of clip i; none of a modality that the model does not have."""
    rows = (
        ("original", pictures.original),
        ("visible", pictures.visible),
        ("x_t", pictures.noised),
        ("reconstruction", pictures.reconstruction),
    )
    return [(name, picture[i].numpy()) for name, picture in rows if picture is not None and picture.numel()]
