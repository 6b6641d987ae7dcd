"""The engine's interface to a task: from a batch to losses and metrics. The rest is the same for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from diffmavil.data.dataset import Batch
from diffmavil.training.planner import Plan


class Task(Protocol):
    """What is learnt from clips: `diffmavil.training.pretraining`, for example, or `.classification`.

    Attributes:
        model: the trained model, on its device. `model(*inputs, **arguments)` returns scalars: first the loss that is
            minimised, then others to record.
        names: names of those scalars in metrics.jsonl: "loss" first. None: not recorded.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def names(self) -> tuple[str | None, ...]: ...

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Modules that `draw` runs in addition to the model, and that no optimiser changes."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds in addition to the model: the tensors themselves, filled in place on resume."""
        ...

    def after_step(self, done: int) -> None:
        """Called after each update; `done` steps have updated the model."""
        ...

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """The model's inputs from a batch; the first axis of each tensor is the clips."""
        ...

    def random_inputs(self, clips: int) -> tuple[Tensor, ...]:
        """Noise in the shapes of `inputs`, for warming up and for measuring."""
        ...

    def arguments(self, now: Plan, offset: int) -> dict[str, Any]:
        """Keyword arguments of the model for clips of which the first is sample `offset` of the run."""
        ...

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Any:
        """All random draws of a forward pass, and the outputs of frozen modules for its inputs, without gradients: the
        model's argument `draws`, which is computed outside any CUDA graph.
        """
        ...

    def couple(self, passes: Sequence[tuple[tuple[Tensor, ...], dict[str, Any]]]) -> Sequence[Any]:
        """What each of several passes of a step needs to know of the others' clips: the model's argument `coupled`.

        passes: inputs and arguments of each; gradients are off.
        """
        ...

    def step_flops(self, now: Plan) -> float:
        """FLOPs of a step, forward and backward, for each of its clips."""
        ...

    def metrics(self, now: Plan) -> dict[str, float]:
        """The values of the schedules, to be recorded."""
        ...
