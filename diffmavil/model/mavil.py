"""MAViL and DiffMAViL: the model, its pretraining losses and its features.

MAViL: Huang et al. 2023, "MAViL: Masked Audio-Video Learners" (first stage: masked reconstruction and contrast).
DiffMAViL puts diffused patches in place of mask tokens and lets decoders cross-attend; every piece is switched by
`ModelConfig`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from diffmavil.config import ModelConfig, require
from diffmavil.model.blocks import choose_kernels
from diffmavil.model.branch import Branch
from diffmavil.model.contrast import inter_modal, intra_modal, pool
from diffmavil.model.decoder import DiffusedPatch
from diffmavil.model.draws import Draws, Keep, check_keep, spans
from diffmavil.model.embed import all_ids
from diffmavil.model.fusion import Fusion
from diffmavil.model.reconstruct import Reconstruction, draw_pictures

AUDIO_STREAM, VIDEO_STREAM = 0, 1
_TOKEN_STD = 0.02


class Losses(NamedTuple):
    """fp32 scalars. `total` is weighted; the parts are not. A part that the config turns off is 0."""

    total: Tensor
    video: Tensor
    audio: Tensor
    inter: Tensor
    intra: Tensor


class Pooled(NamedTuple):
    """What the contrast reads of clips: pooled encoder outputs `[B, V, D]`, float32."""

    audio: Tensor
    video: Tensor
    clips: Tensor | None = None
    """int64 `[B]`: which clip each row shows, where one may come twice."""


class Coupled(NamedTuple):
    """The contrast of the clips of one pass with those of all passes, worked out beforehand (`DiffMAViL.couple`)."""

    audio: Tensor
    """`[B, V, D]`: its gradient with respect to the pooled audio, of a loss that is the mean over this pass's clips."""
    video: Tensor
    inter: Tensor
    """Scalar, of all passes."""
    intra: Tensor


class Features(NamedTuple):
    """What unmasked clips look like to the model. Pooled: the mean over tokens without CLS, float32."""

    audio: Tensor
    """`[B, D]`, pooled audio encoder."""
    video: Tensor
    """`[B, D]`, pooled video encoder."""
    fused: Tensor
    """`[B, 2D]`, pooled audio and pooled video tokens of the fusion encoder."""
    audio_tokens: Tensor
    """`[B, Na, D]`, audio encoder."""
    video_tokens: Tensor
    """`[B, Nv, D]`, video encoder."""


class DiffMAViL(nn.Module):
    """The pretraining model that `config` describes. A variant has only the parameters that it uses."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.audio = Branch(AUDIO_STREAM, config.audio, config)
        self.video = Branch(VIDEO_STREAM, config.video, config)
        self.fusion = Fusion(config.fusion_depth, config.encoder)
        self.apply(_initialise)
        choose_kernels(self, config.attention, config.norm)

    def forward(
        self,
        video: Tensor,
        spec: Tensor,
        clips: Tensor | None = None,
        *,
        seed: int,
        offset: int,
        keep_video: Keep,
        keep_audio: Keep,
        draws: Draws | None = None,
        coupled: Coupled | None = None,
    ) -> Losses:
        """Pretraining losses of a batch.

        Masks, timesteps and noise of sample b are a pure function of (seed, offset + b): cutting a batch in two, on
        one device or many, changes nothing but which clips are each other's negatives.

        Args:
            video: `[B, T, H, W, 3]` uint8, or float in 0..1.
            spec: `[B, F, M]` normalised log-mel.
            clips: int64 `[B]`, which clip each one is: equal ones are no negatives of each other. None: all differ.
            seed: of the run, not of the step.
            offset: position of the first clip in the stream of samples.
            keep_video, keep_audio: visible tokens; at least one visible and one masked. Several counts: runs of samples
                take them in turn (`diffmavil.model.draws`).
            draws: what `draw` gave for these arguments; None: drawn here.
            coupled: the contrast, where clips of other passes take part in it; None: of this batch.

        Raises:
            ValueError: shapes that do not match the config, or impossible counts.
        """
        if draws is None:
            draws = self.draw(video, spec, seed=seed, offset=offset, keep_video=keep_video, keep_audio=keep_audio)
        cut = spans(video.shape[0], offset, keep_audio, keep_video)
        specs, videos = ([x[span.first : span.last] for span in cut] for x in (spec, video))
        audio_tokens = self.audio.encode_all(specs, [drawn.masks.keep for drawn in draws.audio])
        video_tokens = self.video.encode_all(videos, [drawn.masks.keep for drawn in draws.video])
        pooled = self._pool(audio_tokens, video_tokens, clips)
        inter, intra = self._contrast(pooled) if coupled is None else (coupled.inter, coupled.intra)
        fused = self.fusion(audio_tokens, video_tokens)
        audio_loss = self.audio.loss([audio for audio, _ in fused], specs, draws.audio)
        video_loss = self.video.loss([video for _, video in fused], videos, draws.video)
        config = self.config
        total = (
            config.video_weight * video_loss
            + config.audio_weight * audio_loss
            + config.contrast.inter_weight * inter
            + config.contrast.intra_weight * intra
        )
        if coupled is not None:
            # Nothing is added to the value, and the gradient of all passes' contrast to that of this one.
            reach = (pooled.audio * coupled.audio).sum() + (pooled.video * coupled.video).sum()
            total = total + (reach - reach.detach())
        return Losses(total, video_loss, audio_loss, inter, intra)

    @torch.no_grad()
    def draw(self, video: Tensor, spec: Tensor, *, seed: int, offset: int, keep_video: Keep, keep_audio: Keep) -> Draws:
        """Masks, timesteps and diffused patches of a batch; arguments and errors as of `forward`."""
        self._check_inputs(video, spec)
        check_keep("keep_video", keep_video, self.video.tokens)
        check_keep("keep_audio", keep_audio, self.audio.tokens)
        audio, video_drawn = [], []
        for span in spans(video.shape[0], offset, keep_audio, keep_video):
            rows, first = slice(span.first, span.last), offset + span.first
            audio.append(self.audio.draw(spec[rows], span.keep_audio, seed, first))
            video_drawn.append(self.video.draw(video[rows], span.keep_video, seed, first))
        return Draws(tuple(audio), tuple(video_drawn))

    def features(self, video: Tensor, spec: Tensor) -> Features:
        """Features of whole clips, nothing masked; inputs as for `forward`."""
        self._check_inputs(video, spec)
        audio = self.audio.encode(spec, all_ids(spec.shape[0], 1, self.audio.tokens, spec.device))
        video_tokens = self.video.encode(video, all_ids(video.shape[0], 1, self.video.tokens, video.device))
        fused = self.fusion(audio, video_tokens)
        return Features(
            audio=pool(audio),
            video=pool(video_tokens),
            fused=torch.cat([pool(tokens) for tokens in fused], dim=1),
            audio_tokens=audio[:, 1:],
            video_tokens=video_tokens[:, 1:],
        )

    @torch.no_grad()
    def reconstruct(
        self,
        video: Tensor,
        spec: Tensor,
        *,
        seed: int,
        offset: int,
        keep_video: int,
        keep_audio: int,
        sample_steps: int = 8,
    ) -> Reconstruction:
        """Pictures of what the model makes of masked clips; see `Reconstruction`. Inputs as for `forward`.

        A model with diffused patches starts from pure noise and takes `sample_steps` DDIM steps: with one step it shows
        its mean expectation, which is smooth and closest in squared error; with more, one sharper sample of what it
        thinks possible. A model with mask tokens predicts once. All masked patches are decoded, whatever
        `decode_fraction` is.
        """
        self._check_inputs(video, spec)
        check_keep("keep_video", keep_video, self.video.tokens)
        check_keep("keep_audio", keep_audio, self.audio.tokens)
        audio_ids = self.audio.mask_view(spec.shape[0], keep_audio, 0, seed, offset, spec.device)
        video_ids = self.video.mask_view(video.shape[0], keep_video, 0, seed, offset, video.device)
        audio_tokens = self.audio.encode(spec, rearrange(audio_ids.ids_keep, "b k -> b 1 k"))
        video_tokens = self.video.encode(video, rearrange(video_ids.ids_keep, "b k -> b 1 k"))
        fused_audio, fused_video = self.fusion(audio_tokens, video_tokens)
        return Reconstruction(
            video=draw_pictures(self.video, fused_video, video, video_ids, seed, offset, sample_steps),
            audio=draw_pictures(self.audio, fused_audio, spec, audio_ids, seed, offset, sample_steps),
        )

    def pooled(
        self,
        video: Tensor,
        spec: Tensor,
        clips: Tensor | None = None,
        *,
        seed: int,
        offset: int,
        keep_video: Keep,
        keep_audio: Keep,
    ) -> Pooled:
        """What the contrast reads of a batch that `forward` would be given with these arguments."""
        self._check_inputs(video, spec)
        tokens: dict[str, list[Tensor]] = {"audio": [], "video": []}
        for span in spans(video.shape[0], offset, keep_audio, keep_video):
            rows, first = slice(span.first, span.last), offset + span.first
            for name, branch, x, keep in (
                ("audio", self.audio, spec[rows], span.keep_audio),
                ("video", self.video, video[rows], span.keep_video),
            ):
                views = [branch.mask_view(len(x), keep, view, seed, first, x.device) for view in range(branch.views)]
                tokens[name].append(branch.encode(x, torch.stack([ids.ids_keep for ids in views], dim=1)))
        return self._pool(tokens["audio"], tokens["video"], clips)

    def couple(self, passes: Sequence[Pooled]) -> list[Coupled]:
        """The contrast of a batch that is computed in several passes, as if it were one (gradient caching, Gao et al.
        2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): for each of them what it adds.
        """
        config, counts = self.config.contrast, [len(one.audio) for one in passes]
        ids = [one.clips for one in passes if one.clips is not None]
        with torch.enable_grad():
            audio, video = (
                torch.cat(parts).detach().requires_grad_()
                for parts in ([one.audio for one in passes], [one.video for one in passes])
            )
            inter, intra = self._contrast(Pooled(audio, video, torch.cat(ids) if ids else None))
            total = config.inter_weight * inter + config.intra_weight * intra
            leaves = (audio, video)
            grads = torch.autograd.grad(total, leaves) if total.requires_grad else [torch.zeros_like(x) for x in leaves]
        # The loss of a pass is the mean over its clips, and weighs as much as they are of all.
        more = [sum(counts) / count for count in counts]
        return [
            Coupled(audio_grad * times, video_grad * times, inter.detach(), intra.detach())
            for times, audio_grad, video_grad in zip(more, *(grad.split(counts) for grad in grads), strict=True)
        ]

    def _pool(self, audio_tokens: Sequence[Tensor], video_tokens: Sequence[Tensor], clips: Tensor | None) -> Pooled:
        audio, video = (
            rearrange(torch.cat([pool(span) for span in tokens]), "(b v) d -> b v d", v=self.config.views)
            for tokens in (audio_tokens, video_tokens)
        )
        return Pooled(audio, video, clips)

    def _contrast(self, pooled: Pooled) -> tuple[Tensor, Tensor]:
        config, (audio, video, clips) = self.config.contrast, pooled
        inter = intra = audio.new_zeros(())
        if config.inter_weight > 0:
            inter = inter_modal(audio, video, config.inter_temperature, clips)
        if config.intra_weight > 0 and self.config.views == 2:
            intra = intra_modal(audio, video, config.intra_temperature, clips)
        return inter, intra

    def _check_inputs(self, video: Tensor, spec: Tensor) -> None:
        v, a = self.config.video, self.config.audio
        shape = (v.frames, v.size, v.size, 3)
        allowed = f"(B, {', '.join(map(str, shape))})"
        require(video.dim() == 5 and video.shape[1:] == shape, "video.shape", tuple(video.shape), allowed)
        shape = (video.shape[0], a.frames, a.mels)
        require(tuple(spec.shape) == shape, "spec.shape", tuple(spec.shape), f"{shape}")


def _initialise(module: nn.Module) -> None:
    """As MAE: Linear xavier-uniform with zero bias, LayerNorm identity, tokens normal(0, 0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for parameter in module.parameters(recurse=False):
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.normal_(parameter, std=_TOKEN_STD)
    if isinstance(module, DiffusedPatch):  # the Linears in it were before
        module.start_as_mask_token()
