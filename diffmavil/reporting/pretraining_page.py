"""The page of a pretraining run: what its features know, what it makes of masked clips, and how it came there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from diffmavil.config import Config, ModelConfig
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import KINDS
from diffmavil.evaluation.result import read_evaluation
from diffmavil.model import Pictures, Reconstruction
from diffmavil.model.weights import WEIGHTS_FILE, load_weights
from diffmavil.reporting import figures, reconstructions
from diffmavil.reporting.parts import THROUGHPUT, Panels, Row, Section, Table, curve_sections, input_rows, run_rows
from diffmavil.reporting.study import drawn_clips
from diffmavil.training.metrics import Metrics
from diffmavil.training.pretraining import loss_names

_FEATURES = "Features while training"
NOTES = {
    _FEATURES: "Of some held-out clips, nothing masked. Ranks that fall towards 1, or dimensions that die, mean that "
    "the model tells clips apart less and less."
}


def _views(model: ModelConfig) -> str:
    told = f"{model.masked_views}, {model.predicted_views} decoded"
    if model.contrast_views:
        told += f"; {model.contrast_views} of the contrast alone, {model.contrast.mask_ratio:.0%} hidden"
    return told


def summary(config: Config, records: Sequence[Metrics]) -> list[tuple[str, str]]:
    model = config.model
    decoders = [f"video {model.video_decoder.attention}-attention"] if model.sees else []
    decoders += [f"audio {model.audio_decoder.attention}-attention"] if model.hears else []
    hidden = (model.video_masks if model.sees else "patches", model.audio_masks if model.hears else "patches")
    together = [kind for kind in hidden if kind != "patches"]
    return [
        ("data", config.data.root),
        *input_rows(model),
        ("views", _views(model)),
        ("masked patches", f"{model.diffusion.corruption}, {model.decode_fraction:.0%} of them decoded"),
        *([("hidden as a whole", ", ".join(together))] if together else []),
        *([("teacher", str(config.teacher.source))] if config.teacher.stage == 2 else []),
        ("decoders", ", ".join(decoders)),
        ("batch size", str(config.train.batch_size)),
        *run_rows(config, records),
    ]


def sections(run_dir: Path, config: Config, records: Sequence[Metrics]) -> list[Section]:
    """All that stands between summary and config; pictures need the run's exported weights."""
    drawn = _reconstructions(run_dir) if (run_dir / WEIGHTS_FILE).exists() else []
    curves = curve_sections({run_dir.name: records}, panels(config.model), NOTES)
    return [scores(run_dir), *drawn, *curves]


def panels(model: ModelConfig) -> Panels:
    """Of what a run of this model may record."""
    there = [name for name, has in (("video", model.sees), ("audio", model.hears)) if has]
    kinds = KINDS if len(there) == 2 else there
    predicted = "reconstruction" if model.target_width is None else "prediction of features"
    contrasts = [name for name in ("inter", "intra") if f"loss/{name}" in loss_names(model)]
    return {
        "Losses": (
            ("total", [("loss", "")]),
            (predicted, [(f"loss/{name}", name) for name in there]),
            ("contrast", [(f"loss/{name}", name) for name in contrasts]),
        ),
        "Curriculum and schedule": (
            ("mask ratio", [(f"mask_ratio/{name}", name) for name in there]),
            ("batch size", [("batch_size", "")]),
            ("learning rate", [("lr", "")]),
        ),
        _FEATURES: (
            ("nearest neighbours' score", [(f"probe/knn/{kind}", kind) for kind in kinds]),
            ("effective rank", [(f"probe/rank/{kind}", kind) for kind in kinds]),
            ("share of dead dimensions", [(f"probe/dead/{kind}", kind) for kind in kinds]),
            ("mean norm", [(f"probe/norm/{kind}", kind) for kind in kinds]),
        ),
        "Throughput": THROUGHPUT,
    }


def scores(run_dir: Path) -> Section:
    """What an evaluation has found."""
    title = "What the features know"
    evaluation = read_evaluation(run_dir)
    if evaluation is None:
        note = "Not evaluated yet: <code>python -m diffmavil.evaluate --run-dir {}</code> adds it here."
        return Section(title, Markup(note).format(run_dir))
    told = evaluation.section()
    rows = [Row([row["name"], *row["cells"]], row["strong"]) for row in told["rows"]]
    return Section(title, told["note"], table=Table(["", *told["columns"]], rows, told["caption"]))


def _reconstructions(run_dir: Path) -> list[Section]:
    """A section for each clip; the pictures of the first one are written as files of their own too."""
    model, config = load_weights(run_dir / WEIGHTS_FILE)
    if config.model.target_width is not None:
        return [Section("Reconstructions", reconstructions.NO_PICTURES)]
    batch = drawn_clips(config, split_source(config.data, config.model.modalities).held_out)
    result = reconstructions.reconstruct(model, config, batch, reconstructions.Mode("as trained"))
    _save_pictures(run_dir, result)
    found = []
    for i, path in enumerate(batch.paths):
        name = Path(path).stem
        note = reconstructions.picture_note(config) if i == 0 else ""
        found.append(Section(f"Held-out clip {name}", note, strips=reconstructions.clip_strips(result, i, name)))
    return found


def _save_pictures(run_dir: Path, result: Reconstruction) -> None:
    if result.video.original.numel():
        figures.save_png(figures.frame_strips(_rows(result.video)), run_dir / "reconstruction-video.png")
    if result.audio.original.numel():
        figures.save_png(figures.spectrogram_rows(_rows(result.audio)), run_dir / "reconstruction-audio.png")


def _rows(pictures: Pictures) -> list[tuple[str, Any]]:
    """Of the first clip."""
    rows = (
        ("original", pictures.original),
        ("visible", pictures.visible),
        ("x_t", pictures.noised),
        ("reconstruction", pictures.reconstruction),
    )
    return [(name, picture[0].numpy()) for name, picture in rows if picture is not None]
