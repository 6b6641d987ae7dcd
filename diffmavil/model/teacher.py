"""The teacher of MAViL's second stage, and what it asks of the student.

The teacher sees whole clips, nothing masked. Of every token of both modalities it gives what leaves its fusion blocks:
a feature that knows the whole clip's sound and picture (of a model of one modality: what leaves its encoder). At the
positions that the student decodes, these are its targets, in place of patches:

    features   [B, N, W]        of each modality, without CLS
    targets    [(B V), Q, W]    LayerNorm without weights over W, eps 1e-6, float32, as data2vec normalises
    loss       mean over (B V), Q and W of (prediction - target)^2

The features of a clip are computed once for all its views, and nothing but the decoded positions is gathered. What
stands at a masked position in the student's decoder is as in the first stage: a mask token, or the diffused patch.

Huang et al. 2023, "MAViL: Masked Audio-Video Learners", self-training on aligned and contextualised audio-video
features; Baevski et al. 2022, "data2vec", for a teacher that is the average of the student.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from diffmavil.config import ModelConfig
from diffmavil.model.blocks import choose_kernels
from diffmavil.model.branch import Branch
from diffmavil.model.draws import Drawn, Draws
from diffmavil.model.embed import all_ids
from diffmavil.model.fusion import Fusion
from diffmavil.model.mavil import AUDIO_STREAM, VIDEO_STREAM, DiffMAViL, check_inputs, share_blocks
from maekernels import gather_tokens

_EPS = 1e-6


class Teacher(nn.Module):
    """Encoders and fusion blocks of a `DiffMAViL`, named as there, without gradients and always in evaluation mode.

    Its weights are to be filled: by `learn_from`, or, where only shapes matter, left as they are.
    """

    audio: Branch
    video: Branch

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.hears:
            self.audio = Branch(AUDIO_STREAM, config.audio, config, decodes=False)
        if config.sees:
            self.video = Branch(VIDEO_STREAM, config.video, config, decodes=False)
        share_blocks(config, self.branches)
        depth = config.fusion_depth if len(self.branches) == 2 else 0
        self.fusion = Fusion(depth, config.encoder, types=config.fusion_types, norm=config.fusion_norm)
        choose_kernels(self, config.attention, config.norm)
        self.requires_grad_(False)
        self.eval()

    @property
    def branches(self) -> dict[str, Branch]:
        """Those that there are, "audio" before "video"."""
        return {name: getattr(self, name) for name in ("audio", "video") if hasattr(self, name)}

    @property
    def width(self) -> int:
        """Numbers in a feature."""
        return self.config.encoder.width

    def train(self, mode: bool = True) -> Teacher:
        """It stays in evaluation mode."""
        return super().train(False)

    def learn_from(self, model: DiffMAViL) -> Teacher:
        """Takes over the weights of `model`.

        Raises:
            RuntimeError: a model of another architecture.
        """
        own = self.state_dict().keys()
        self.load_state_dict({name: value for name, value in model.state_dict().items() if name in own})
        return self

    @torch.no_grad()
    def follow(self, model: DiffMAViL, decay: float) -> None:
        """weights <- decay * weights + (1 - decay) * those of `model`, which has the same architecture."""
        own, theirs = dict(self.named_parameters()), model.state_dict()
        get_ema_multi_avg_fn(decay)(list(own.values()), [theirs[name] for name in own], 0)

    @torch.no_grad()
    def forward(self, video: Tensor, spec: Tensor) -> dict[str, Tensor]:
        """Modality -> features `[B, N, W]` of every patch, without CLS; inputs as of `DiffMAViL.forward`.

        Raises:
            ValueError: shapes that do not match the config.
        """
        check_inputs(self.config, video, spec)
        tokens = {}
        for name, branch in self.branches.items():
            x = spec if name == "audio" else video
            tokens[name] = branch.encode(x, all_ids(len(x), 1, branch.tokens, x.device))
        if len(tokens) == 2:
            fused = cast(tuple[Tensor, Tensor], self.fusion(tokens["audio"], tokens["video"]))
            tokens = dict(zip(tokens, fused, strict=True))
        return {name: x[:, int(self.config.encoder.cls) :] for name, x in tokens.items()}

    @torch.no_grad()
    def targets(self, draws: Draws, video: Tensor, spec: Tensor) -> Draws:
        """What `DiffMAViL.draw` gave for these clips, with the targets of every decoded position."""
        found = self(video, spec)
        told = {name: _with_targets(getattr(draws, name), features) for name, features in found.items()}
        return draws._replace(**told)


def _with_targets(drawn: Sequence[Drawn], features: Tensor) -> tuple[Drawn, ...]:
    """features: of all spans' clips, one span after the other."""
    counts = [len(one.masks.decode) for one in drawn]
    each = zip(drawn, features.split(counts), strict=True)
    return tuple(one._replace(target=(targets_at(x, one.masks.decode),)) for one, x in each)


def targets_at(features: Tensor, ids: Tensor) -> Tensor:
    """Normalised features at the positions to decode: `[B, N, W]` at `[B, V, Q]` -> float32 `[(B V), Q, W]`."""
    chosen = gather_tokens(features, rearrange(ids, "b v q -> b (v q)").contiguous())
    normal = F.layer_norm(chosen.float(), chosen.shape[-1:], eps=_EPS)
    return rearrange(normal, "b (v q) w -> (b v) q w", v=ids.shape[1])
