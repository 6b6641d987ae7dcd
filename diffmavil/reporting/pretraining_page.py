"""The page of a pretraining run: what its features know, what it makes of masked clips, and how it came there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from markupsafe import Markup

from diffmavil.config import Config, ModelConfig
from diffmavil.data.audio import make_log_mel
from diffmavil.data.loader import eval_batches
from diffmavil.data.sources import split_source
from diffmavil.evaluation.features import KINDS
from diffmavil.evaluation.result import Evaluation, read_evaluation
from diffmavil.model import Pictures, Reconstruction
from diffmavil.model.weights import WEIGHTS_FILE, load_weights
from diffmavil.reporting import figures
from diffmavil.reporting.parts import THROUGHPUT, Lines, Row, Section, Table, curve_sections, input_rows, run_rows
from diffmavil.training.curriculum import keep_count
from diffmavil.training.metrics import Metrics
from diffmavil.training.pretraining import loss_names

_CLIPS = 4  # shown as reconstructions
_SAMPLE_STEPS = 2  # more steps give one sharper sample, fewer the mean: clearer while the model is young
_FEATURES = "Features while training"
_NOTES = {
    _FEATURES: "Of some held-out clips, nothing masked. Ranks that fall towards 1, or dimensions that die, mean that "
    "the model tells clips apart less and less."
}
_PICTURE_NOTE = (
    "Original; visible patches; the masked patches diffused to x_t (of the timesteps in training the one nearest to as "
    "much signal as noise); and the reconstruction of the masked patches, which starts from pure noise. Patches are "
    "predicted up to their mean and contrast, which are the true ones here, as in MAE's visualisation."
)


def summary(config: Config, records: Sequence[Metrics]) -> list[tuple[str, str]]:
    model = config.model
    decoders = [f"video {model.video_decoder.attention}-attention"] if model.sees else []
    decoders += [f"audio {model.audio_decoder.attention}-attention"] if model.hears else []
    return [
        ("data", config.data.root),
        *input_rows(model),
        ("masked patches", f"{model.diffusion.corruption}, {model.decode_fraction:.0%} of them decoded"),
        ("decoders" if len(decoders) == 2 else "decoder", ", ".join(decoders)),
        ("batch size", str(config.train.batch_size)),
        *run_rows(config, records),
    ]


def sections(run_dir: Path, config: Config, records: Sequence[Metrics]) -> list[Section]:
    """All that stands between summary and config; pictures need the run's exported weights."""
    evaluation = read_evaluation(run_dir)
    pictures = _reconstructions(run_dir, config) if (run_dir / WEIGHTS_FILE).exists() else []
    curves = curve_sections(records, _panels(config.model), _NOTES)
    return [_evaluation(run_dir, evaluation), *pictures, *curves]


def _panels(model: ModelConfig) -> dict[str, Sequence[tuple[str, Lines]]]:
    """Of what a run of this model may record."""
    there = [name for name, has in (("video", model.sees), ("audio", model.hears)) if has]
    kinds = KINDS if len(there) == 2 else there
    contrasts = [name for name in ("inter", "intra") if f"loss/{name}" in loss_names(model)]
    return {
        "Losses": (
            ("total", [("loss", "")]),
            ("reconstruction", [(f"loss/{name}", name) for name in there]),
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


def _evaluation(run_dir: Path, evaluation: Evaluation | None) -> Section:
    title = "What the features know"
    if evaluation is None:
        note = "Not evaluated yet: <code>python -m diffmavil.evaluate --run-dir {}</code> adds it here."
        return Section(title, Markup(note).format(run_dir))
    told = evaluation.section()
    rows = [Row([row["name"], *row["cells"]], row["strong"]) for row in told["rows"]]
    return Section(title, told["note"], table=Table(["", *told["columns"]], rows, told["caption"]))


def _reconstructions(run_dir: Path, config: Config) -> list[Section]:
    """A section for each clip; the pictures of the first one are written as files of their own too."""
    result, names = reconstruct_heldout(run_dir, config)
    found = []
    for i, name in enumerate(names):
        drawn = {}
        if result.video.original.numel():
            drawn["video"] = figures.frame_strips(_rows(result.video, i))
        if result.audio.original.numel():
            drawn["audio"] = figures.spectrogram_rows(_rows(result.audio, i))
        for what, figure in drawn.items() if i == 0 else ():
            figures.save_png(figure, run_dir / f"reconstruction-{what}.png")
        pictures = [Markup(figures.picture_tag(figure, f"{what} of {name}")) for what, figure in drawn.items()]
        found.append(Section(f"Held-out clip {name}", _PICTURE_NOTE if i == 0 else "", pictures=pictures))
    return found


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
    rows = (
        ("original", pictures.original),
        ("visible", pictures.visible),
        ("x_t", pictures.noised),
        ("reconstruction", pictures.reconstruction),
    )
    return [(name, picture[i].numpy()) for name, picture in rows if picture is not None]
