"""MAViL and DiffMAViL: the model, its pretraining losses and its features.

MAViL: Huang et al. 2023, "MAViL: Masked Audio-Video Learners" (first stage: masked reconstruction and contrast; in the
second, a teacher's features are predicted instead of patches, `diffmavil.model.teacher`).
DiffMAViL replaces mask tokens by diffused patches and lets decoders cross-attend; `ModelConfig` switches every part.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from diffmavil.config import ModelConfig, require
from diffmavil.model.blocks import choose_kernels
from diffmavil.model.branch import Branch
from diffmavil.model.contrast import inter_modal, intra_modal, pool
from diffmavil.model.decoder import DiffusedPatch, Mix
from diffmavil.model.draws import Drawn, Draws, Keep, check_keep, spans
from diffmavil.model.fusion import Fusion
from diffmavil.model.reading import read_clips
from diffmavil.model.reconstruct import Pictures, Reconstruction, draw_pictures

AUDIO_STREAM, VIDEO_STREAM = 0, 1
_TOKEN_STD = 0.02


class Losses(NamedTuple):
    """fp32 scalars. `total` is weighted; the parts are not. A part that is turned off or has no branch is 0."""

    total: Tensor
    video: Tensor
    audio: Tensor
    inter: Tensor
    intra: Tensor


class Pooled(NamedTuple):
    """Input of the contrast: pooled encoder outputs `[B, V, D]`, float32; D is 0 for an absent branch."""

    audio: Tensor
    video: Tensor
    clips: Tensor | None = None
    """int64 `[B]`: the clip of each row, where one may occur twice."""


class Coupled(NamedTuple):
    """The contrast of the clips of one pass with those of all passes, computed beforehand (`DiffMAViL.couple`)."""

    audio: Tensor
    """`[B, V, D]`: its gradient with respect to the pooled audio, for a loss that is the mean of this pass's clips."""
    video: Tensor
    inter: Tensor
    """Scalar, over all passes."""
    intra: Tensor


class Features(NamedTuple):
    """The model's features of unmasked clips. Pooled: the mean over tokens without CLS, float32.

    Features of an absent branch have no elements: `[B, 0]` or `[B, 0, D]`.
    """

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

    @property
    def kinds(self) -> dict[str, Tensor]:
        """The pooled features that exist, of "audio", "video" and "fused"."""
        pooled = {"audio": self.audio, "video": self.video, "fused": self.fused}
        return {kind: x for kind, x in pooled.items() if x.shape[1]}


class DiffMAViL(nn.Module):
    """The pretraining model that `config` describes. A variant has only the parameters that it uses.

    For a branch that `config.modalities` leaves out, the input is a tensor without elements: `[B, 0, 0, 0, 3]` for
    video, `[B, 0, 0]` for the spectrogram.
    """

    audio: Branch
    video: Branch

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        if config.hears:
            self.audio = Branch(AUDIO_STREAM, config.audio, config)
        if config.sees:
            self.video = Branch(VIDEO_STREAM, config.video, config)
        share_blocks(config, self.branches)
        fusion_depth = config.fusion_depth if config.hears and config.sees else 0
        self.fusion = Fusion(fusion_depth, config.encoder, types=config.fusion_types, norm=config.fusion_norm)
        self.apply(initialise)
        choose_kernels(self, config.attention, config.norm)

    @property
    def branches(self) -> dict[str, Branch]:
        """The branches that exist, "audio" before "video"."""
        return {name: getattr(self, name) for name in ("audio", "video") if hasattr(self, name)}

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

        Masks, timesteps and noise of sample b are a pure function of (seed, offset + b): splitting a batch, on one
        device or many, changes only which clips are each other's negatives.

        Args:
            video: `[B, T, H, W, 3]` uint8, or float in 0..1.
            spec: `[B, F, M]` normalised log-mel.
            clips: int64 `[B]`, the clip of each row: equal ones are not negatives of each other. None: all differ.
            seed: of the run, not of the step.
            offset: position of the first clip in the stream of samples.
            keep_video, keep_audio: visible tokens; at least one visible and one masked. Several counts: runs of samples
                take them in turn (`diffmavil.model.draws`).
            draws: the output of `draw` for these arguments; None: drawn here. A model that predicts features needs
                them with a teacher's targets (`diffmavil.model.teacher.Teacher.targets`).
            coupled: the contrast, if clips of other passes are part of it; None: that of this batch.

        Raises:
            ValueError: shapes that do not match the config, impossible counts, or missing targets.
        """
        if draws is None:
            draws = self.draw(video, spec, seed=seed, offset=offset, keep_video=keep_video, keep_audio=keep_audio)
        self._check_targets(draws)
        cut = spans(video.shape[0], offset, keep_audio, keep_video)
        inputs = {name: [x[span.first : span.last] for span in cut] for name, x in (("audio", spec), ("video", video))}
        drawn = draws._asdict()
        tokens, blocks = {}, {}
        for name, branch in self.branches.items():
            tokens[name], blocks[name] = branch.encode_deep(inputs[name], [one.masks.keep for one in drawn[name]])
        pooled = self._pool(self._contrasted(inputs, drawn) or tokens, clips)
        inter, intra = self._contrast(pooled) if coupled is None else (coupled.inter, coupled.intra)
        fused = self._fuse({name: [self._predicted(x) for x in batches] for name, batches in tokens.items()})
        loss = {name: pooled.audio.new_zeros(()) for name in inputs}
        for name, branch in self.branches.items():
            read = [tuple(map(self._predicted, of_span)) for of_span in blocks[name]]
            loss[name] = branch.loss(fused[name], inputs[name], drawn[name], read)
        config = self.config
        total = (
            config.video_weight * loss["video"]
            + config.audio_weight * loss["audio"]
            + config.contrast.inter_weight * inter
            + config.contrast.intra_weight * intra
        )
        if coupled is not None:
            # Adds the gradient of all passes' contrast to this one's, and nothing to the value.
            reach = (pooled.audio * coupled.audio).sum() + (pooled.video * coupled.video).sum()
            total = total + (reach - reach.detach())
        return Losses(total, loss["video"], loss["audio"], inter, intra)

    @torch.no_grad()
    def draw(self, video: Tensor, spec: Tensor, *, seed: int, offset: int, keep_video: Keep, keep_audio: Keep) -> Draws:
        """Masks, timesteps and diffused patches of a batch; arguments and errors as in `forward`."""
        self._check_inputs(video, spec, keep_video, keep_audio)
        drawn: dict[str, list[Drawn]] = {"audio": [], "video": []}
        for name, branch, x, keep, first in self._by_span(video, spec, offset, keep_video, keep_audio):
            drawn[name].append(branch.draw(x, keep, seed, first))
        return Draws(tuple(drawn["audio"]), tuple(drawn["video"]))

    def features(self, video: Tensor, spec: Tensor, heard: Tensor | None = None) -> Features:
        """Features of whole clips, nothing masked; inputs as for `forward`.

        heard: int64 `[B]`, frames of the spectrogram before the end of the audio; tokens that are only padding are not
        pooled. None: all are.
        """
        self._check_inputs(video, spec)
        pooled, tokens, *_ = read_clips(self.branches, self.fusion, {"audio": spec, "video": video}, heard)
        none = next(iter(tokens.values()))[:, :0]
        return Features(
            **{kind: pooled.get(kind, none.flatten(1).float()) for kind in ("audio", "video", "fused")},
            audio_tokens=tokens.get("audio", none),
            video_tokens=tokens.get("video", none),
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
        timestep: int | None = None,
        as_predicted: bool = False,
    ) -> Reconstruction:
        """The model's reconstructions of masked clips; see `Reconstruction`. Inputs as for `forward`.

        A model with diffused patches starts from pure noise and takes `sample_steps` DDIM steps: one step gives its
        mean prediction, which is smooth and closest in squared error; more give one sharper sample. A model with mask
        tokens predicts once. All masked patches are decoded, whatever `decode_fraction` is. timestep and as_predicted:
        as in `diffmavil.model.reconstruct.draw_pictures`.

        Raises:
            ValueError: as in `forward`, or a model that predicts features, which cannot be drawn.
        """
        width = self.config.target_width
        require(
            width is None, "model.target_width", width, "None to be drawn: the model predicts features, not patches"
        )
        self._check_inputs(video, spec, keep_video, keep_audio)
        kept = {"audio": keep_audio, "video": keep_video}
        ids, tokens, blocks = {}, {}, {}
        for name, branch, x in self._present(spec, video):
            ids[name] = branch.mask_view(len(x), kept[name], 0, seed, offset, x.device)
            tokens[name], blocks[name] = branch.encode_deep([x], [rearrange(ids[name].ids_keep, "b k -> b 1 k")])
        fused = self._fuse(tokens)
        pictures = {
            name: draw_pictures(
                branch,
                fused[name][0],
                x,
                ids[name],
                seed,
                offset,
                sample_steps,
                timestep,
                as_predicted,
                blocks[name][0],
            )
            for name, branch, x in self._present(spec, video)
        }
        absent = {name: Pictures(x, x, None, x) for name, x in (("audio", spec), ("video", video))}
        return Reconstruction(**(absent | pictures))

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
        """The contrast's input for a batch that `forward` would get with these arguments."""
        self._check_inputs(video, spec, keep_video, keep_audio)
        tokens: dict[str, list[Tensor]] = {name: [] for name in self.branches}
        for name, branch, x, keep, first in self._by_span(video, spec, offset, keep_video, keep_audio):
            ids = branch.draw_contrasted(len(x), keep, seed, first, x.device)
            tokens[name].append(branch.encode(x, ids))
        return self._pool(tokens, clips)

    def couple(self, passes: Sequence[Pooled]) -> list[Coupled]:
        """The contrast of a batch computed in several passes, as if it were one (gradient caching, Gao et al. 2021,
        "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup"): what it adds to each pass.
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
            grads: Sequence[Tensor] = [torch.zeros_like(x) for x in leaves]
            if total.requires_grad:
                grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        # The loss of a pass is the mean over its clips, weighted by their fraction of all.
        more = [sum(counts) / count for count in counts]
        return [
            Coupled(audio_grad * times, video_grad * times, inter.detach(), intra.detach())
            for times, audio_grad, video_grad in zip(more, *(grad.split(counts) for grad in grads), strict=True)
        ]

    def _present(self, spec: Tensor, video: Tensor) -> list[tuple[str, Branch, Tensor]]:
        """Name, branch and input of each modality of the model."""
        return [(name, branch, spec if name == "audio" else video) for name, branch in self.branches.items()]

    def _by_span(
        self, video: Tensor, spec: Tensor, offset: int, keep_video: Keep, keep_audio: Keep
    ) -> Iterator[tuple[str, Branch, Tensor, int, int]]:
        """For each span of a batch and modality: name, branch, input, visible patches, number of the first sample."""
        for span in spans(video.shape[0], offset, keep_audio, keep_video):
            rows = slice(span.first, span.last)
            for name, branch, x in self._present(spec[rows], video[rows]):
                yield name, branch, x, span.keep_audio if name == "audio" else span.keep_video, offset + span.first

    def _contrasted(
        self, inputs: dict[str, list[Tensor]], drawn: dict[str, Sequence[Drawn]]
    ) -> dict[str, list[Tensor]]:
        """Tokens of the views that only the contrast reads, `[(B V), 1 + L, D]` for each span; {}: there are none."""
        if not self.config.contrast_views:
            return {}
        return {
            name: branch.encode_all(inputs[name], [one.masks.contrast[0] for one in drawn[name]])
            for name, branch in self.branches.items()
        }

    def _predicted(self, tokens: Tensor) -> Tensor:
        """From the tokens `[(B V), 1 + K, D]` of all views, those of the decoded views."""
        views, predicted = self.config.masked_views, self.config.predicted_views
        if predicted == views:
            return tokens
        return rearrange(rearrange(tokens, "(b v) n d -> b v n d", v=views)[:, :predicted], "b v n d -> (b v) n d")

    def _fuse(self, tokens: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """For each span, the fused tokens `[B, 1 + K, D]` of both modalities; a single modality is returned as is."""
        if len(tokens) == 1:
            return tokens
        pairs = self.fusion(tokens["audio"], tokens["video"])
        return {"audio": [audio for audio, _ in pairs], "video": [video for _, video in pairs]}

    def _pool(self, tokens: dict[str, list[Tensor]], clips: Tensor | None) -> Pooled:
        views, cls = self.config.views, self.config.encoder.cls
        found = {
            name: rearrange(torch.cat([pool(span, cls=cls) for span in spans_of]), "(b v) d -> b v d", v=views)
            for name, spans_of in tokens.items()
        }
        one = next(iter(found.values()))
        return Pooled(found.get("audio", one[..., :0]), found.get("video", one[..., :0]), clips)

    def _contrast(self, pooled: Pooled) -> tuple[Tensor, Tensor]:
        config, (audio, video, clips) = self.config.contrast, pooled
        inter = intra = audio.new_zeros(())
        present = [x for x in (audio, video) if x.shape[-1]]
        if config.inter_weight > 0 and len(present) == 2:
            inter = inter_modal(audio, video, config.inter_temperature, clips)
        if config.intra_weight > 0 and self.config.views == 2:
            intra = intra_modal(present, config.intra_temperature, clips)
        return inter, intra

    def _check_targets(self, draws: Draws) -> None:
        """Check that targets are as wide as the decoders' features, or absent where these predict patches."""
        width = self.config.target_width
        for one in (*draws.audio, *draws.video):
            found = one.target[0].shape[-1] if one.target else None
            require(found == width, "draws.target", found, f"features of {width} numbers, as model.target_width")

    def _check_inputs(
        self, video: Tensor, spec: Tensor, keep_video: Keep | None = None, keep_audio: Keep | None = None
    ) -> None:
        check_inputs(self.config, video, spec)
        for name, keep in (("video", keep_video), ("audio", keep_audio)):
            if keep is not None and name in self.branches:
                check_keep(f"keep_{name}", keep, self.branches[name].tokens)


def share_blocks(config: ModelConfig, branches: Mapping[str, Branch]) -> None:
    """With `config.shared_encoder`, make the video's encoder blocks the same modules as the audio's."""
    if config.shared_encoder and len(branches) == 2:
        branches["video"].encoder.blocks = branches["audio"].encoder.blocks


def check_inputs(config: ModelConfig, video: Tensor, spec: Tensor) -> None:
    """Raises `ValueError` for shapes that do not fit `config`; an absent modality may have any."""
    v, a = config.video, config.audio
    require(
        len(video) == len(spec), "video.shape, spec.shape", (tuple(video.shape), tuple(spec.shape)), "as many clips"
    )
    if config.sees:
        shape = (v.frames, v.size, v.size, 3)
        allowed = f"(B, {', '.join(map(str, shape))})"
        require(video.dim() == 5 and video.shape[1:] == shape, "video.shape", tuple(video.shape), allowed)
    if config.hears:
        shape = (video.shape[0], a.frames, a.mels)
        require(tuple(spec.shape) == shape, "spec.shape", tuple(spec.shape), f"{shape}")


def initialise(module: nn.Module) -> None:
    """As in MAE: Linear xavier-uniform with zero bias, LayerNorm identity, tokens normal(0, 0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for parameter in module.parameters(recurse=False):
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.normal_(parameter, std=_TOKEN_STD)
    if isinstance(module, DiffusedPatch):  # its Linears were initialised before
        module.start_as_mask_token()
    if isinstance(module, Mix):
        module.start_at_the_last()
