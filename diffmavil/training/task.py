"""What the engine asks of a task: from a batch to losses and metrics. The rest is the same for every task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from diffmavil.data.dataset import Batch
from diffmavil.training.planner import Plan


class Task(Protocol):
    """What is learnt from clips; `diffmavil.training.pretraining` is one, `.classification` another.

    Attributes:
        model: what is trained, on its device. `model(*inputs, **arguments)` gives scalars: first the loss that is
            minimised, then what else is to be recorded.
        names: of those scalars, as they stand in metrics.jsonl: "loss" first. None: not recorded.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def names(self) -> tuple[str | None, ...]: ...

    @property
    def frozen(self) -> Sequence[nn.Module]:
        """Modules beside the model that no optimiser changes, and that `draw` runs."""
        ...

    @property
    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the model: the tensors themselves, which are filled in place on resume."""
        ...

    def after_step(self, done: int) -> None:
        """Called when `done` steps have updated the model."""
        ...

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """What the model reads of a batch; the first axis of each tensor is that of the clips."""
        ...

    def random_inputs(self, clips: int) -> tuple[Tensor, ...]:
        """Noise in the shapes of `inputs`, for warming up and for measuring."""
        ...

    def arguments(self, now: Plan, offset: int) -> dict[str, Any]:
        """Keyword arguments of the model for clips of which the first is sample `offset` of the run."""
        ...

    def draw(self, inputs: tuple[Tensor, ...], arguments: Mapping[str, Any]) -> Any:
        """Everything random of a forward pass, and what frozen modules tell of its inputs, without gradients: the
        model's argument `draws`, which no CUDA graph holds.
        """
        ...

    def couple(self, passes: Sequence[tuple[tuple[Tensor, ...], dict[str, Any]]]) -> Sequence[Any]:
        """What each of several passes of a step needs to know of the others' clips: the model's argument `coupled`.

        passes: inputs and arguments of each; gradients are off.
        """
        ...

    def step_flops(self, now: Plan) -> float:
        """Of a step, for each of its clips: forward and backward."""
        ...

    def metrics(self, now: Plan) -> dict[str, float]:
        """What the schedules say, for the record."""
        ...
