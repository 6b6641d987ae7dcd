"""Encoders, features and classifiers as graphs that run without this project: torch.export (.pt2) and ONNX.

A graph takes video float32 `[B, T, H, W, 3]` in 0..1 and the normalised spectrogram `[B, F, M]`, any B from 1 on. It
has torch's own operators alone: patches are cut by reshaping where training gathers the visible ones.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from diffmavil.config import Config, ModelConfig, VideoConfig, require
from diffmavil.model.branch import Branch
from diffmavil.model.classifier import Classifier
from diffmavil.model.contrast import pool
from diffmavil.model.embed import all_ids
from diffmavil.model.exchange.report import Report
from diffmavil.model.mavil import DiffMAViL

Kind = Literal["torch-export", "onnx"]
_OPSET = 20  # the first with GELU


class EncoderGraph(nn.Module):
    """One modality of whole clips: `tokens [B, 1 + N, D]` (CLS first where there is one) and `pooled [B, D]`."""

    ids: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, branch: Branch, config: ModelConfig) -> None:
        super().__init__()
        self.encoder, self.patch, self.cls = branch.encoder, branch.patch, config.encoder.cls
        self.register_buffer("ids", all_ids(1, 1, branch.tokens, torch.device("cpu"))[0, 0].long(), persistent=False)
        self.register_buffer("mean", torch.tensor(branch.mean), persistent=False)
        self.register_buffer("std", torch.tensor(branch.std), persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.encode(x)
        return tokens, pool(tokens, cls=self.cls)

    def encode(self, x: Tensor) -> Tensor:
        embed = self.encoder.embed
        tokens = embed.proj(self._patches(x)) + embed.positions[self.ids]
        if embed.cls is not None:
            tokens = torch.cat([embed.cls.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        for block in self.encoder.blocks:
            tokens = block(tokens)
        return self.encoder.norm(tokens)

    def _patches(self, x: Tensor) -> Tensor:
        """What `maekernels.patchify` gives for every id."""
        if len(self.patch) == 2:
            f, m = self.patch
            return rearrange(x, "b (f pf) (m pm) -> b (f m) (pf pm)", pf=f, pm=m)
        t, h, w = self.patch
        x = (x - self.mean) / self.std
        return rearrange(x, "b (t pt) (h ph) (w pw) c -> b (t h w) (pt ph pw c)", pt=t, ph=h, pw=w)


class FeaturesGraph(nn.Module):
    """Of both modalities: pooled `audio [B, D]`, `video [B, D]` and `fused [B, 2D]`, as `DiffMAViL.features`."""

    def __init__(self, model: DiffMAViL) -> None:
        super().__init__()
        self.cls = model.config.encoder.cls
        self.audio, self.video = (EncoderGraph(model.branches[name], model.config) for name in ("audio", "video"))
        self.fusion = model.fusion

    def forward(self, video: Tensor, spec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        tokens = self.audio.encode(spec), self.video.encode(video)
        fused = self.fusion(*tokens)
        pooled = [pool(x, cls=self.cls) for x in (*tokens, *fused)]
        return pooled[0], pooled[1], torch.cat(pooled[2:], dim=1)


class ClassifierGraph(nn.Module):
    """`scores [B, C]` of whole clips, as `Classifier.scores`; of one modality, what it does not take is not given."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.cls, self.several = model.config.encoder.cls, model.head_config.labels == "several"
        self.encoders = nn.ModuleDict({name: EncoderGraph(x, model.config) for name, x in model.branches.items()})
        self.fusion = model.fusion if len(model.branches) == 2 else None
        self.norm, self.head = model.norm, model.head

    def forward(self, video: Tensor | None = None, spec: Tensor | None = None) -> Tensor:
        inputs = {"audio": spec, "video": video}
        tokens = [encoder.encode(inputs[name]) for name, encoder in self.encoders.items()]  # type: ignore[operator]
        if self.fusion is not None:
            tokens = self.fusion(*tokens)
        logits = self.head(self.norm(torch.cat([pool(x, cls=self.cls) for x in tokens], dim=1)))
        return logits.sigmoid() if self.several else logits.softmax(dim=1)


def export_graphs(model: DiffMAViL | Classifier, config: Config, folder: Path, kind: Kind) -> Report:
    """Write `NAME_encoder` of each modality and, of a model with both, `features`; of a classifier `scores`, and
    classes.txt, a class on each line in the order of the scores. As .pt2 or .onnx.

    Raises:
        ValueError: ONNX without the package onnxscript, which torch's exporter needs.
    """
    if kind == "onnx":
        missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
        require(not missing, "--to", kind, f"another, or with {' and '.join(missing)}: pip install 'diffmavil[onnx]'")
    folder.mkdir(parents=True, exist_ok=True)
    write = _write_onnx if kind == "onnx" else _write_pt2
    report = Report(f"{config.model.modalities} model of diffmavil")
    inputs = {"audio": _clip(config.model.audio), "video": _clip(config.model.video)}
    if isinstance(model, Classifier):
        given = {"spec" if name == "audio" else name: inputs[name] for name in model.branches}
        path = write(ClassifierGraph(model).eval(), given, ["scores"], folder / "scores")
        report.add("the classifier", path.name, f"graph: {', '.join(given)} -> scores")
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in model.head_config.classes))
        report.add("its classes", "classes.txt", "in the order of the scores")
        return report
    for name, branch in model.branches.items():
        graph = EncoderGraph(branch, config.model).eval()
        path = write(graph, {"x": inputs[name]}, ["tokens", "pooled"], folder / f"{name}_encoder")
        report.add(f"{name}.encoder", path.name, "graph: x -> tokens, pooled")
    if len(model.branches) == 2:
        both = {"video": inputs["video"], "spec": inputs["audio"]}
        # Not "video": a graph's input is called so.
        outputs = [f"{name}_features" for name in ("audio", "video", "fused")]
        path = write(FeaturesGraph(model).eval(), both, outputs, folder / "features")
        report.add("encoders and fusion", path.name, f"graph: video, spec -> {', '.join(outputs)}")
    report.left += [f"{name}.decoder: features need none" for name in model.branches]
    return report


@contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter warns of its own use of torch, and of torchvision, which nothing here needs."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _clip(config: object) -> Tensor:
    """Two clips for the exporter to look at: it takes a batch of one for a constant."""
    if isinstance(config, VideoConfig):
        return torch.rand(2, config.frames, config.size, config.size, 3)
    return torch.randn(2, config.frames, config.mels)  # type: ignore[attr-defined]  # AudioConfig


def _write_pt2(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> Path:
    path = path.with_suffix(".pt2")
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(graph, (), inputs, dynamic_shapes={name: {0: batch} for name in inputs})
    torch.export.save(program, path, extra_files={"outputs": " ".join(outputs)})
    return path


def _write_onnx(graph: nn.Module, inputs: dict[str, Tensor], outputs: list[str], path: Path) -> Path:
    path = path.with_suffix(".onnx")
    batch = torch.export.Dim("batch", min=1)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (),
            kwargs=inputs,
            dynamo=True,
            dynamic_shapes={name: {0: batch} for name in inputs},
            input_names=list(inputs),
            output_names=outputs,
            opset_version=_OPSET,
            verbose=False,
        )
    assert program is not None
    program.save(path)
    return path
