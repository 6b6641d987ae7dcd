"""Forward and backward as CUDA graphs: recorded once for each shape, then replayed without the host's help.

What is random is drawn before, by ordinary launches, and copied with the clips into the buffers that the graph reads.
The gradients it leaves are handed to the parameters; clipping and the optimiser follow as always.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from diffmavil.training.distributed import World
from diffmavil.training.task import Task

Work = Callable[[], None]
Recorder = Callable[[Work], Work]
"""Takes work on fixed memory; gives what does it again."""
_WARM_UP = 3
"""Runs before recording, in which libraries choose kernels and take their workspaces (torch's notes on CUDA graphs)."""


class CudaRecorder:
    """Records on a stream of its own. All graphs share one pool: none runs beside another."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()
        self.side = torch.cuda.Stream()  # one for all: libraries keep a workspace for each stream

    def __call__(self, work: Work) -> Work:
        self.side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.side):
            for _ in range(_WARM_UP):
                work()
        torch.cuda.current_stream().wait_stream(self.side)
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as the loader's that pins memory, go on with calls that no graph may hold.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            work()
        return graph.replay


class _Recorded:
    """One shape: the buffers that are read, the scalars left, and the way from one to the other.

    grads: gets the gradients of the `parameters`.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        arguments: dict[str, Any],
        share: float,
        parameters: list[Tensor],
        grads: list[Tensor],
        record: Recorder,
    ) -> None:
        self.inputs = pytree.tree_map(torch.clone, inputs)
        self.scalars: Tensor
        device = parameters[0].device.type
        autocast = torch.autocast(
            device,
            dtype=torch.get_autocast_dtype(device),
            enabled=torch.is_autocast_enabled(device),
            cache_enabled=False,  # a cast that is kept from one run to the next would lie outside the graph
        )

        def work() -> None:
            read, draws, coupled = self.inputs
            with autocast:
                scalars = model(*read, **arguments, draws=draws, coupled=coupled or None)
            with torch.autocast(device, enabled=False):  # as passes that are not recorded go backward
                found = torch.autograd.grad(scalars[0] * share, parameters)
                torch._foreach_copy_(grads, found)  # pyright: ignore[reportPrivateImportUsage]
            self.scalars = torch.stack([scalar.detach() for scalar in scalars])

        self.replay = record(work)

    def __call__(self, inputs: Any) -> None:
        for buffer, value in zip(pytree.tree_leaves(self.inputs), pytree.tree_leaves(inputs), strict=True):
            buffer.copy_(value)
        self.replay()


class GraphedPasses:
    """Runs passes of a step by replaying graphs.

    Args:
        record: how to record; None: as a CUDA graph.

    Raises:
        ValueError: there is no CUDA device, or more than one process.
    """

    def __init__(self, task: Task, world: World, record: Recorder | None = None) -> None:
        if world.size > 1:
            raise ValueError(f"train.cuda_graph=True: must be False with {world.size} processes")
        if record is None and world.device.type != "cuda":
            raise ValueError(f"train.cuda_graph=True: must be False on {world.device.type}")
        self.task = task
        self._record = record or CudaRecorder()
        self._parameters: list[Tensor] = [p for p in task.model.parameters() if p.requires_grad]
        # One set for all shapes, of which one is replayed at a time, in the layout of the parameters, which fused
        # optimisers ask for and not every backward gives.
        self._grads = [torch.empty_like(p) for p in self._parameters]
        self._recorded: dict[Any, _Recorded] = {}

    def __call__(
        self, inputs: tuple[Tensor, ...], arguments: dict[str, Any], share: float, coupled: Any = None
    ) -> Tensor:
        """Adds `share` times the gradient of the loss to that of the parameters; gives the task's scalars."""
        model, read = self.task.model, (inputs, self.task.draw(inputs, arguments), coupled or ())
        # Where runs of samples begin shows in the shapes of what was drawn.
        shape = (*(tuple(x.shape) for x in pytree.tree_leaves(read)), share)
        if shape not in self._recorded:
            made = _Recorded(model, read, arguments, share, self._parameters, self._grads, self._record)
            self._recorded[shape] = made
        recorded = self._recorded[shape]
        recorded(read)
        for parameter, grad in zip(self._parameters, self._grads, strict=True):
            if parameter.grad is not None:
                parameter.grad += grad
            else:
                # The next pass replays into the same memory.
                parameter.grad = grad if share == 1 else grad.clone()
        return recorded.scalars.clone()
