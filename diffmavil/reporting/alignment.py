"""Where in the picture the sound is: how alike the pooled sound and each video token are, over the frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from diffmavil.reporting import pictures
from diffmavil.reporting.parts import Section, Strip
from diffmavil.reporting.study import Missing, Study

TITLE = "Where the sound is"
_NOTE = (
    "Cosine of the clip's pooled sound and each video token, both from the encoders, nothing masked. Brighter places "
    "are more like the sound than the rest of the clip is. The last row has the sound of another clip: where it looks "
    "the same, the map shows what stands out in the picture, and not what is heard."
)


def section(study: Study) -> Section:
    """A heat map over the frames of a few held-out clips. Raises `Missing` for a model of one modality."""
    if not study.both:
        raise Missing("The model has one modality alone: there is no sound and picture to compare.")
    batch = study.drawn
    cosine = similarity(study)
    parts = []
    for i, path in enumerate(batch.paths):
        name, other = Path(path).stem, (i + 1) % len(batch)
        maps = [cosine[sound, i] for sound in dict.fromkeys((i, other))]
        mean = maps[0].mean().item()
        own, *its = ((heat - heat.mean()).numpy() for heat in maps)
        low, high = (float(end) for end in np.percentile(np.stack([own, *its]), [2, 98]))
        video = batch.video[i].numpy()
        strips = [
            Strip("frames", pictures.frame_strip(video, f"frames of {name}")),
            Strip("its own sound", pictures.heat_strip(video, own, low, high, f"{name}: places like its own sound")),
        ]
        for heat in its:
            another = Path(batch.paths[other]).stem
            alt = f"{name}: places like the sound of {another}"
            strips.append(Strip(f"sound of {another}", pictures.heat_strip(video, heat, low, high, alt)))
        parts.append(
            Section(f"Clip {name}", heat=f"cosine {low:+.3f} to {high:+.3f} around its mean, {mean:.2f}", strips=strips)
        )
    return Section(TITLE, _NOTE, parts=parts)


@torch.inference_mode()
def similarity(study: Study) -> Tensor:
    """Cosine of sound i and every video token of clip j of the clips drawn: float32 `[B, B, t, h, w]`."""
    batch = study.drawn
    spec, heard = study.spectrograms(batch)
    features = study.model.features(batch.video, spec, heard)
    sound, tokens = F.normalize(features.audio, dim=1), F.normalize(features.video_tokens.float(), dim=2)
    t, h, w = study.config.model.video.grid
    return rearrange(torch.einsum("i d, j n d -> i j n", sound, tokens), "i j (t h w) -> i j t h w", t=t, h=h, w=w)
