"""MAViL and DiffMAViL: the model, its pretraining losses and its features.

MAViL: Huang et al. 2023, "MAViL: Masked Audio-Video Learners" (first stage: masked reconstruction and contrast; in the
second a teacher's features are predicted in place of patches, `diffmavil.model.teacher`).
DiffMAViL puts diffused patches in place of mask tokens and lets decoders cross-attend; every piece is switched by
`ModelConfig`.
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
    """fp32 scalars. `total` is weighted; the parts are not. A part that the config turns off, or has no branch for, is
    0.
    """

    total: Tensor
    video: Tensor
    audio: Tensor
    inter: Tensor
    intra: Tensor


class Pooled(NamedTuple):
    """What the contrast reads of clips: pooled encoder outputs `[B, V, D]`, float32; D is 0 of an absent branch."""

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
    """What unmasked clips look like to the model. Pooled: the mean over tokens without CLS, float32.

    What the model has no branch for has no elements: `[B, 0]` or `[B, 0, D]`.
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
        """The pooled ones that there are: of "audio", "video" and "fused"."""
        pooled = {"audio": self.audio, "video": self.video, "fused": self.fused}
        return {kind: x for kind, x in pooled.items() if x.shape[1]}


class DiffMAViL(nn.Module):
    """The pretraining model that `config` describes. A variant has only the parameters that it uses.

    Of a branch that `config.modalities` leaves out, the input is a tensor without elements: `[B, 0, 0, 0, 3]` for
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
        """Those that there are, "audio" before "video"."""
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
            draws: what `draw` gave for these arguments; None: drawn here. A model that predicts features needs them
                with a teacher's targets (`diffmavil.model.teacher.Teacher.targets`).
            coupled: the contrast, where clips of other passes take part in it; None: of this batch.

        Raises:
            ValueError: shapes that do not match the config, impossible counts, or targets that are missing.
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
            # Nothing is added to the value, and the gradient of all passes' contrast to that of this one.
            reach = (pooled.audio * coupled.audio).sum() + (pooled.video * coupled.video).sum()
            total = total + (reach - reach.detach())
        return Losses(total, loss["video"], loss["audio"], inter, intra)

    @torch.no_grad()
    def draw(self, video: Tensor, spec: Tensor, *, seed: int, offset: int, keep_video: Keep, keep_audio: Keep) -> Draws:
        """Masks, timesteps and diffused patches of a batch; arguments and errors as of `forward`."""
        self._check_inputs(video, spec, keep_video, keep_audio)
        drawn: dict[str, list[Drawn]] = {"audio": [], "video": []}
        for name, branch, x, keep, first in self._by_span(video, spec, offset, keep_video, keep_audio):
            drawn[name].append(branch.draw(x, keep, seed, first))
        return Draws(tuple(drawn["audio"]), tuple(drawn["video"]))

    def features(self, video: Tensor, spec: Tensor, heard: Tensor | None = None) -> Features:
        """Features of whole clips, nothing masked; inputs as for `forward`.

        heard: int64 `[B]`, frames of the spectrogram before the sound's end; tokens of nothing but padding are not
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
        """Pictures of what the model makes of masked clips; see `Reconstruction`. Inputs as for `forward`.

        A model with diffused patches starts from pure noise and takes `sample_steps` DDIM steps: with one step it shows
        its mean expectation, which is smooth and closest in squared error; with more, one sharper sample of what it
        thinks possible. A model with mask tokens predicts once. All masked patches are decoded, whatever
        `decode_fraction` is. timestep and as_predicted: as of `diffmavil.model.reconstruct.draw_pictures`.

        Raises:
            ValueError: as of `forward`, or a model that predicts features, of which there are no pictures.
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
        """What the contrast reads of a batch that `forward` would be given with these arguments."""
        self._check_inputs(video, spec, keep_video, keep_audio)
        tokens: dict[str, list[Tensor]] = {name: [] for name in self.branches}
        for name, branch, x, keep, first in self._by_span(video, spec, offset, keep_video, keep_audio):
            ids = branch.draw_contrasted(len(x), keep, seed, first, x.device)
            tokens[name].append(branch.encode(x, ids))
        return self._pool(tokens, clips)

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
            grads: Sequence[Tensor] = [torch.zeros_like(x) for x in leaves]
            if total.requires_grad:
                grads = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
        # The loss of a pass is the mean over its clips, and weighs as much as they are of all.
        more = [sum(counts) / count for count in counts]
        return [
            Coupled(audio_grad * times, video_grad * times, inter.detach(), intra.detach())
            for times, audio_grad, video_grad in zip(more, *(grad.split(counts) for grad in grads), strict=True)
        ]

    def _present(self, spec: Tensor, video: Tensor) -> list[tuple[str, Branch, Tensor]]:
        """Name, branch and input of each modality that there is."""
        return [(name, branch, spec if name == "audio" else video) for name, branch in self.branches.items()]

    def _by_span(
        self, video: Tensor, spec: Tensor, offset: int, keep_video: Keep, keep_audio: Keep
    ) -> Iterator[tuple[str, Branch, Tensor, int, int]]:
        """Of each span of a batch and modality: name, branch, input, visible patches, number of the first sample."""
        for span in spans(video.shape[0], offset, keep_audio, keep_video):
            rows = slice(span.first, span.last)
            for name, branch, x in self._present(spec[rows], video[rows]):
                yield name, branch, x, span.keep_audio if name == "audio" else span.keep_video, offset + span.first

    def _contrasted(
        self, inputs: dict[str, list[Tensor]], drawn: dict[str, Sequence[Drawn]]
    ) -> dict[str, list[Tensor]]:
        """Tokens of the views that the contrast alone reads, `[(B V), 1 + L, D]` of each span; {}: there are none."""
        if not self.config.contrast_views:
            return {}
        return {
            name: branch.encode_all(inputs[name], [one.masks.contrast[0] for one in drawn[name]])
            for name, branch in self.branches.items()
        }

    def _predicted(self, tokens: Tensor) -> Tensor:
        """Of the tokens `[(B V), 1 + K, D]` of all views those of the views that are decoded."""
        views, predicted = self.config.masked_views, self.config.predicted_views
        if predicted == views:
            return tokens
        return rearrange(rearrange(tokens, "(b v) n d -> b v n d", v=views)[:, :predicted], "b v n d -> (b v) n d")

    def _fuse(self, tokens: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
        """Of each span the tokens `[B, 1 + K, D]` of both modalities, each having read the other; one stays alone."""
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
        """As many numbers for each position as the decoders predict, or none where they predict patches."""
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
    """With `config.shared_encoder` the picture's encoder blocks are the sound's, from here on."""
    if config.shared_encoder and len(branches) == 2:
        branches["video"].encoder.blocks = branches["audio"].encoder.blocks


def check_inputs(config: ModelConfig, video: Tensor, spec: Tensor) -> None:
    """Raises `ValueError` for shapes that `config` does not describe; an absent modality may have any."""
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
    """As MAE: Linear xavier-uniform with zero bias, LayerNorm identity, tokens normal(0, 0.02)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for parameter in module.parameters(recurse=False):
        if not isinstance(module, nn.Linear | nn.LayerNorm):
            nn.init.normal_(parameter, std=_TOKEN_STD)
    if isinstance(module, DiffusedPatch):  # the Linears in it were before
        module.start_as_mask_token()
    if isinstance(module, Mix):
        module.start_at_the_last()
