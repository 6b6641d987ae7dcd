"""Validation in the loop of fine-tuning: how good the classifier is on clips held back, and the best weights so far."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from diffmavil.config import FinetuneConfig
from diffmavil.config.errors import RunError
from diffmavil.data.clips import ClipSet
from diffmavil.evaluation.classify import predict
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights
from diffmavil.training.telemetry import Observation

BEST_FILE = "best.safetensors"
_NOTE = "validation"
"""Key of the file's header: step and score, as JSON."""


def headline(config: FinetuneConfig) -> str:
    """The metric that chooses: top-1 of single labels, mAP of several."""
    return "mAP" if config.head.labels == "several" else "top1"


class Validation:
    """`diffmavil.training.telemetry.Monitor` that scores the centre crops of `clips` and keeps the best weights.

    done: steps that the run has done. Best weights of a later step, which a kill left, are forgotten: the run comes by
    there again.
    """

    def __init__(
        self, model: Classifier, config: FinetuneConfig, clips: ClipSet, folder: Path, *, done: int, batch_size: int
    ) -> None:
        self.model, self.config, self.clips = model, config, clips
        self.path, self.batch_size = folder / BEST_FILE, batch_size
        step, score = read_best(self.path)
        self.best = score if step <= done else float("-inf")

    def __call__(self, done: int) -> Observation:
        self.model.eval()
        try:
            found = predict({"now": self.model}, self.config, self.clips, batch_size=self.batch_size)
            metrics = found.judge("now", self.config, seed=0).metrics
        except RunError as error:  # such as too few good clips, which training is no worse for
            return Observation({}, [f"no validation: {error}"])
        finally:
            self.model.train()
        score = metrics[headline(self.config)]
        if score > self.best:
            self.best = score
            note = {_NOTE: json.dumps({"step": done, "score": score})}
            export_weights(self.model, self.config, self.path, note)
        return Observation({f"val/{name}": value for name, value in metrics.items()}, [])


def read_best(path: Path) -> tuple[int, float]:
    """Step and score of the best weights; (0, -inf) for none."""
    if not path.exists():
        return 0, float("-inf")
    with safe_open(path, framework="pt") as file:
        note = json.loads((file.metadata() or {}).get(_NOTE, "{}"))
    return note.get("step", 0), note.get("score", float("-inf"))
