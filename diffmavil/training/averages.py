"""Averages of the weights along a run, by torch's `swa_utils`, kept beside the model and in its checkpoints."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn


class Averages:
    """ema: exponential, `decay` a step, from the start. average: plain, over the last `share` of `steps` steps.

    Attributes:
        models: name -> the averaged model; empty: none is wanted.
    """

    def __init__(self, model: nn.Module, *, decay: float, share: float, steps: int) -> None:
        self._model = model
        self._mean = {"ema": get_ema_multi_avg_fn(decay), "average": get_swa_multi_avg_fn()}
        self.models: dict[str, AveragedModel] = {}
        self._first = {"ema": 1, "average": 1 + steps - max(1, round(share * steps))}
        if decay:
            self.models["ema"] = AveragedModel(model)
        if share:
            self.models["average"] = AveragedModel(model)

    def after_step(self, done: int) -> None:
        for name, averaged in self.models.items():
            if name == "average" and averaged.n_averaged > max(0, done - self._first[name]):
                averaged.n_averaged.zero_()  # a run that was made longer has some of its earlier end in it
            if done >= self._first[name]:
                self._update(name, averaged)

    @torch.no_grad()
    def _update(self, name: str, averaged: AveragedModel) -> None:
        """As its `update_parameters`, which copies its counter to the device, and so waits for the step."""
        count = int(averaged.n_averaged)
        if count == 0:
            # Buffers too, such as positions that came with the weights; none of them is trained.
            for own, theirs in zip(
                averaged.module.state_dict().values(), self._model.state_dict().values(), strict=True
            ):
                own.copy_(theirs)
        else:
            own, theirs = list(averaged.module.parameters()), list(self._model.parameters())
            self._mean[name](own, theirs, count)
        averaged.n_averaged += 1

    @property
    def state(self) -> dict[str, Tensor]:
        """The tensors themselves, to be saved and to be filled."""
        return {f"{name}/{key}": value for name, m in self.models.items() for key, value in m.state_dict().items()}
