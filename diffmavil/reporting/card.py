"""The card of a model: README.md of its folder on the Hub, from its config, data and results.

Its front matter is what the Hub reads: library, task, tags, scores (model-index). Of paths, only the last names are
told: a card is public, and the folders of its author's machine are not.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any

import yaml

from diffmavil import __version__
from diffmavil.config import Config, FinetuneConfig
from diffmavil.evaluation.classification import Classification
from diffmavil.evaluation.result import RANK, Evaluation
from diffmavil.reporting.parts import input_rows
from diffmavil.training.planner import timetable

_TAGS = ["diffmavil", "masked-autoencoder", "self-supervised-learning"]
_MODALITIES = {"av": ["audio", "video", "audio-visual"], "audio": ["audio"], "video": ["video"]}
_TASKS = {"av": "video-classification", "video": "video-classification", "audio": "audio-classification"}
_HOW = """```python
import diffmavil

model = diffmavil.load("{name}")
{then}
```

It decodes, resamples and normalises as in training. With transformers, on inputs prepared by yourself:

```python
from transformers import {auto}
from diffmavil.model.auto import register_auto_classes

register_auto_classes()
model = {auto}.from_pretrained("{name}")
# {inputs}
```"""
_FEATURES = 'clip = model.embed("{clip}")  # {there}'
_SCORES = 'print(model.classify("{clip}").top(5))'
_INPUTS = {
    "video": "video: uint8 [B, T, H, W, 3]",
    "audio": (
        "spec: [B, F, M], by diffmavil.data.audio.make_log_mel(model.config.model_config), which normalises it\n"
        "# heard: int64 [B], frames before padding"
    ),
}


@dataclass(frozen=True)
class Card:
    """What a card is made from.

    Attributes:
        name: owner/name.
        parameters: trainable numbers.
        license: as the Hub spells it; None: the card says that none was given.
        source: where the weights were converted from; None: trained here.
    """

    name: str
    config: Config
    parameters: int
    evaluation: Evaluation | None = None
    classification: Classification | None = None
    license: str | None = None
    source: str | None = None

    def text(self) -> str:
        """The whole README.md."""
        front = yaml.safe_dump(self._front(), sort_keys=False, allow_unicode=True)
        parts = [self._head(), "## Use", self._how(), "## Model", _table(("", ""), self._model_rows())]
        parts += ["## Data", self._data(), "## Results", *self._results()]
        return f"---\n{front}---\n\n" + "\n\n".join(parts) + "\n"

    @property
    def _tuned(self) -> bool:
        return isinstance(self.config, FinetuneConfig)

    def _front(self) -> dict[str, Any]:
        modalities = self.config.model.modalities
        front: dict[str, Any] = {"library_name": "diffmavil"}
        if self.license:
            front["license"] = self.license
        front["pipeline_tag"] = _TASKS[modalities] if self._tuned else "feature-extraction"
        front["tags"] = [*_TAGS, *_MODALITIES[modalities]]
        scores = self._scores()
        if scores:
            result = {
                "task": {"type": front["pipeline_tag"]},
                "dataset": {"name": _last(self._heldout()), "type": "custom"},
                "metrics": [{"type": kind, "name": name, "value": value} for kind, name, value in scores],
            }
            front["model-index"] = [{"name": self.name.rpartition("/")[2], "results": [result]}]
        return front

    def _scores(self) -> list[tuple[str, str, float]]:
        """(kind, name, value) for the Hub's table."""
        found = []
        if self.classification is not None:
            best = self.classification.headline
            metrics = self.classification.results[best["weights"]][best["crops"]]
            found += [(name, name, value) for name, value in metrics.items()]
        if self.evaluation is not None:
            kind = self.evaluation.score or "recall"
            for name, value in self.evaluation.results["trained"].items():
                if RANK not in name:
                    found.append((_kind(name) or kind, name, value))
        return found

    def _heldout(self) -> str:
        if self.classification is not None:
            return self.classification.sources["test"] or "held-out clips"
        return self.evaluation.sources["heldout"] if self.evaluation is not None else "held-out clips"

    def _head(self) -> str:
        what = "A classifier, fine-tuned from a masked autoencoder" if self._tuned else "A masked autoencoder"
        of = {"av": "of sound and picture", "audio": "of sound", "video": "of video"}[self.config.model.modalities]
        made = f"converted from `{_last(self.source)}`" if self.source else "trained"
        licence = "" if self.license else " No licence was given with these weights."
        return f"# {self.name}\n\n{what} {of}, {made} with DiffMAViL {__version__}.{licence}"

    def _how(self) -> str:
        if self._tuned:
            kind = "Audio" if self.config.model.modalities == "audio" else "Video"
            auto = f"AutoModelFor{kind}Classification"
            return self._shown(_SCORES, auto)
        return self._shown(_FEATURES, "AutoModel")

    def _shown(self, then: str, auto: str) -> str:
        modalities = self.config.model.modalities
        inputs = "\n# ".join(text for kind, text in _INPUTS.items() if modalities in (kind, "av"))
        there = ".audio, .video, .fused" if modalities == "av" else f".{modalities}"
        then = then.format(clip="talk.wav" if modalities == "audio" else "clip.mp4", there=there)
        return _HOW.format(then=then, auto=auto, name=self.name, inputs=inputs)

    def _model_rows(self) -> list[tuple[str, str]]:
        model = self.config.model
        encoder, corruption = model.encoder, model.diffusion.corruption
        rows = [
            ("parameters", f"{self.parameters / 1e6:.1f} M"),
            *input_rows(model),
            ("encoders", f"{encoder.depth} blocks, width {encoder.width}, {encoder.heads} heads"),
        ]
        if model.modalities == "av":
            depth = self.config.head.fusion_depth if isinstance(self.config, FinetuneConfig) else model.fusion_depth
            rows.append(("fusion", f"{depth} blocks"))
        if isinstance(self.config, FinetuneConfig):
            return [*rows, ("classes", ", ".join(self.config.head.classes))]
        return [*rows, ("masked patches", "a learnt token" if corruption == "mask_token" else "diffused")]

    def _data(self) -> str:
        if self.source:
            return "The weights do not tell what they were trained on."
        data = self.config.data
        sets = ", ".join(f"`{_last(one)}`" for one in (data.root, *data.more))
        table = timetable(self.config)
        return f"Trained on {sets}, {table.samples:,} samples in {table.steps:,} steps, seed {self.config.train.seed}."

    def _results(self) -> list[str]:
        found = []
        if self.classification is not None:
            names = list(dict.fromkeys(name for _, cells in self.classification.rows() for name in cells))
            rows = [(what, *(cells.get(name, "") for name in names)) for what, cells in self.classification.rows()]
            used, classes = self.classification.clips["test"]["used"], len(self.classification.classes)
            found += [f"{used} held-out clips, {classes} classes.", _table(("weights", *names), rows)]
            sources = {name: told and _last(told) for name, told in self.classification.sources.items()}
            found.append(replace(self.classification, sources=sources).note())
        if self.evaluation is not None:
            section = self.evaluation.section()
            rows = [(row["name"], *row["cells"]) for row in section["rows"]]
            found += [f"{section['caption']}.", _table(("", *section["columns"]), rows), section["note"]]
        return found or ["Not evaluated."]


def _kind(name: str) -> str | None:
    """What a metric measures, where its name says so."""
    last = name.rpartition("/")[2]
    return next((kind for kind in ("recall", "f1", "hit", "mAP") if last.partition("@")[0] == kind), None)


def _table(head: tuple[str, ...], rows: Any) -> str:
    """Markdown, numbers to the right."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows] if len(head) > 2 else [head, ("---", "---"), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _last(path: str | None) -> str:
    """The last name of a path or URL."""
    return PurePath(path or "").name or str(path)
