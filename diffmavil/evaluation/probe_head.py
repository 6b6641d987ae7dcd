"""A classifier whose Linear layer begins as a linear probe on its own features (LP-FT).

Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution": the large first
gradients of a head that knows nothing change encoders more than they teach them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from diffmavil.config import FinetuneConfig
from diffmavil.data.audio import frames_in, make_log_mel
from diffmavil.data.augment import multi_hot
from diffmavil.data.clips import ClipSet
from diffmavil.data.loader import eval_batches
from diffmavil.evaluation.probe import fit_probe
from diffmavil.model.classifier import Classifier
from diffmavil.training.precision import use_bf16

MOST_CLIPS = 20_000
"""That a probe is fitted to, evenly spread over the set: it is solved in float64 from all of them at once."""


def start_with_probe(
    model: Classifier,
    config: FinetuneConfig,
    clips: ClipSet,
    *,
    batch_size: int,
    progress: Callable[[int], None] = lambda clips_done: None,
) -> str:
    """Set the Linear layer to a probe on the centre crops of `clips`; a line that says what was fitted.

    Raises:
        TooManyBadClips: no clip could be decoded.
    """
    x, target = _seen(model, config, clips.spread(MOST_CLIPS), batch_size, progress)
    probe = fit_probe(x, target, "accuracy" if config.head.labels == "one" else "mAP", seed=config.train.seed)
    weight = probe.weight / rearrange(probe.standardise.std, "d -> d 1")
    bias = probe.bias - probe.standardise.mean @ weight
    # The bias of a class without a clip, which nothing holds, runs off: it begins as the least likely of the others.
    absent = ~target.any(dim=0)
    weight[:, absent] = 0
    bias[absent] = bias[~absent].min()
    with torch.no_grad():
        model.head.weight.copy_(weight.T)
        model.head.bias.copy_(bias)
    return f"the head begins as a linear probe on {len(x):,} training clips, l2 {probe.l2:g}"


@torch.no_grad()
def _seen(
    model: Classifier, config: FinetuneConfig, clips: ClipSet, batch_size: int, progress: Callable[[int], None]
) -> tuple[Tensor, Tensor]:
    """What the head would read of each clip that can be used, float32 `[N, D]`, and its classes, bool `[N, C]`."""
    device = next(model.parameters()).device
    log_mel = make_log_mel(config.model).to(device)
    x: list[Tensor] = []
    target: list[Tensor] = []
    model.eval()
    with eval_batches(config, clips, batch_size, device=device) as loader:
        for batch in loader:
            spec = log_mel(batch.wave, batch.wave_valid)
            heard = frames_in(batch.wave_valid, config.model.audio.sample_rate)
            with torch.autocast(device.type, torch.bfloat16, use_bf16(config, device)):
                x.append(model.features(batch.video, spec, heard).float())
            target.append(multi_hot(batch.labels, len(config.head.classes)).to(device) > 0)
            progress(int(batch.clip[-1]) + 1)
    model.train()
    return torch.cat(x), torch.cat(target)
