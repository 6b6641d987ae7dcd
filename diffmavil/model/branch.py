"""One modality of the model: its encoder, its decoder, and the way of its pixels through the ops of maekernels.

Views share one batch: sample b's views are neighbours, `(b v)`. Ids of all views lie side by side, `[B, V, K]`, so
that one launch reads the patches of every view from the one clip in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from diffmavil.config import AudioConfig, ModelConfig, VideoConfig
from diffmavil.config.model import AudioMasks, VideoMasks
from diffmavil.model.decoder import Decoder, ToDecode
from diffmavil.model.diffusion import alpha_bars, reached_by, sample_timesteps, sample_uniform
from diffmavil.model.draws import Drawn, Masks
from diffmavil.model.encoder import Encoder
from maekernels import MaskIds, diffuse_patches, masked_mse, patchify, random_mask
from maekernels.philox import fold_in

MASK, SUBSET, TIMESTEP, NOISE, TOKEN = range(5)
"""Random streams of one modality and view, folded out of the seed."""
_CONTRAST_VIEW = 2
"""Number of the first view that the contrast alone reads: after the two that are masked by the schedule."""


class Branch(nn.Module):
    """Encoder, decoder and pixel facts of one modality.

    Args:
        stream: keeps the modality's random numbers apart from those of the others.
        input_config: shape, patch and normalisation of the input; spectrograms come normalised already.
        config: the whole model.
        decodes: False leaves the decoder out: what a classifier needs.
    """

    alpha_bar: Tensor
    timesteps_reached: Tensor | None
    decoder: Decoder

    def __init__(
        self, stream: int, input_config: VideoConfig | AudioConfig, config: ModelConfig, *, decodes: bool = True
    ) -> None:
        super().__init__()
        self.stream = stream
        self.grid: tuple[int, ...] = input_config.grid
        self.patch: tuple[int, ...] = input_config.patch
        self.tokens = input_config.tokens
        self.mean: tuple[float, ...] = (0.0,)
        self.std: tuple[float, ...] = (1.0,)
        decoder, hidden = config.audio_decoder, config.audio_masks
        if isinstance(input_config, VideoConfig):
            self.mean, self.std = input_config.mean, input_config.std
            decoder, hidden = config.video_decoder, config.video_masks
        self.hidden: VideoMasks | AudioMasks = hidden
        self.norm_pix = config.norm_pix
        self.decode_fraction = config.decode_fraction
        self.masked_views, self.predicted_views = config.masked_views, config.predicted_views
        self.contrast_views = config.contrast_views
        # Two views of all tokens would be one.
        most = self.tokens - (config.contrast_views == 2)
        self.contrast_keep = min(most, max(1, round((1 - (config.contrast.mask_ratio or 0.0)) * self.tokens)))
        self.diffused = config.diffusion.corruption == "diffusion"
        self.encoder = Encoder(self.grid, input_config.patch_dim, config.encoder)
        if decodes:
            width = config.encoder.width
            self.decoder = Decoder(
                self.grid,
                input_config.patch_dim,
                width,
                decoder,
                diffused=self.diffused,
                target_width=config.target_width,
                encoder_depth=config.encoder.depth,
            )
        if decodes and self.diffused:
            self.register_buffer("alpha_bar", alpha_bars(config.diffusion).float(), persistent=False)
            reached = reached_by(config.diffusion)
            self.register_buffer("timesteps_reached", reached if reached is None else reached.float(), persistent=False)
            self.times, self.token_share = config.diffusion.times, config.diffusion.token_share

    def reached(self, heard: Tensor) -> Tensor:
        """Tokens that begin before frame `heard` (int64 `[B]`) of the first axis: bool `[B, N]`, some in each row."""
        inside = self.tokens // self.grid[0]
        first = torch.arange(self.tokens, device=heard.device) // inside * self.patch[0]
        return first < rearrange(heard.clamp(min=1), "b -> b 1")

    def decode_count(self, keep: int) -> int:
        """Masked patches that are decoded when `keep` are visible: the configured share, at least one."""
        return max(1, round(self.decode_fraction * (self.tokens - keep)))

    def mask_view(self, batch: int, keep: int, view: int, seed: int, offset: int, device: torch.device) -> MaskIds:
        """One view's random split into ids_keep `[B, K]` and ids_mask `[B, N - K]`."""
        mask_seed = fold_in(seed, self.stream, MASK, view)
        groups = mask_groups(self.grid, self.hidden, device)
        return random_mask(batch, self.tokens, keep, seed=mask_seed, offset=offset, groups=groups, device=device)

    def draw_masks(self, batch: int, keep: int, seed: int, offset: int, device: torch.device) -> Masks:
        """Independent masks for every view; of those decoded, an evenly random subset of the masked patches.

        Views of the contrast alone are drawn besides, each kept as its ratio says.
        """
        keeps, decodes = [], []
        count = self.decode_count(keep)
        for view in range(self.masked_views):
            ids = self.mask_view(batch, keep, view, seed, offset, device)
            keeps.append(ids.ids_keep)
            if view >= self.predicted_views:
                continue
            decode = ids.ids_mask
            if count < decode.shape[1]:
                subset_seed = fold_in(seed, self.stream, SUBSET, view)
                chosen = random_mask(batch, decode.shape[1], count, seed=subset_seed, offset=offset, device=device)
                decode = decode.gather(1, chosen.ids_keep.long())
            decodes.append(decode)
        contrast = (self.draw_contrasted(batch, keep, seed, offset, device),) if self.contrast_views else ()
        return Masks(torch.stack(keeps, dim=1), torch.stack(decodes, dim=1), contrast)

    def draw_contrasted(self, batch: int, keep: int, seed: int, offset: int, device: torch.device) -> Tensor:
        """What is visible where the contrast reads, `[B, V, L]`: views of its own, or those with `keep` visible."""
        first, views = 0, range(self.masked_views)
        if self.contrast_views:
            first, views, keep = _CONTRAST_VIEW, range(self.contrast_views), self.contrast_keep
        drawn = [self.mask_view(batch, keep, first + view, seed, offset, device).ids_keep for view in views]
        return torch.stack(drawn, dim=1)

    def encode(self, x: Tensor, ids: Tensor, scales: Tensor | None = None) -> Tensor:
        """The clip's patches at ids `[B, V, K]`, and no others, encoded: `[(B V), 1 + K, D]`.

        scales: as of `diffmavil.model.blocks.Blocks`.
        """
        return self.encode_all([x], [ids], scales)[0]

    def encode_all(self, x: Sequence[Tensor], ids: Sequence[Tensor], scales: Tensor | None = None) -> list[Tensor]:
        """Several batches that keep other numbers of patches, each as in `encode`."""
        patches = [self.patches(*batch) for batch in zip(x, ids, strict=True)]
        return self.encoder(patches, [rearrange(i, "b v k -> (b v) k") for i in ids], scales)

    def encode_deep(self, x: Sequence[Tensor], ids: Sequence[Tensor]) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        """As `encode_all`, and of each batch what the decoder reads besides: what every block gave, or nothing."""
        if not self.decoder.mixes:
            return self.encode_all(x, ids), [()] * len(x)
        patches = [self.patches(*batch) for batch in zip(x, ids, strict=True)]
        blocks = list(self.encoder.each_block(patches, [rearrange(i, "b v k -> (b v) k") for i in ids]))
        of_batches = list(zip(*blocks, strict=True))
        return [self.encoder.norm(outputs[-1]) for outputs in of_batches], of_batches

    def patches(self, x: Tensor, ids: Tensor) -> Tensor:
        """Normalised patches at ids `[B, V, K]`: `[(B V), K, P]`."""
        flat = rearrange(ids, "b v k -> b (v k)")
        patches = patchify(x, flat, self.patch, self.mean, self.std, dtype=compute_dtype(x.device))
        return rearrange(patches, "b (v k) p -> (b v) k p", v=ids.shape[1])

    def draw(self, x: Tensor, keep: int, seed: int, offset: int) -> Drawn:
        """All that is random for the samples from `offset` on."""
        masks = self.draw_masks(x.shape[0], keep, seed, offset, x.device)
        return Drawn(masks, self.diffuse(x, masks.decode, seed, offset))

    def diffuse(self, x: Tensor, ids: Tensor, seed: int, offset: int) -> tuple[Tensor, ...]:
        """What the decoder gets at masked positions ids `[B, V, Q]`: x_t `[(B V), Q, P]` and t `[(B V)]`.

        x_t is diffused from the very patch that is predicted: with `norm_pix` the patch normalised by its own mean and
        deviation, so that x_0 has the unit variance that the noise schedule assumes, and neither brightness nor
        contrast of a masked patch is told. Of the `token_share` of samples x_t is zero and t one past the last: with
        the embedding of t that is one learnt vector, a mask token. Nothing for a model with mask tokens alone.
        """
        if not self.diffused:
            return ()
        noisy, times = [], []
        for view in range(ids.shape[1]):
            t = sample_timesteps(
                ids.shape[0],
                self.times,
                seed=fold_in(seed, self.stream, TIMESTEP, view),
                offset=offset,
                device=x.device,
                reached=self.timesteps_reached,
            )
            noise_seed = fold_in(seed, self.stream, NOISE, view)
            x_t = self.diffuse_at(x, ids[:, view], self.alpha_bar[t], noise_seed, offset)
            if self.token_share:
                token_seed = fold_in(seed, self.stream, TOKEN, view)
                hidden = sample_uniform(len(t), seed=token_seed, offset=offset, device=x.device) < self.token_share
                x_t = x_t.masked_fill(rearrange(hidden, "b -> b 1 1"), 0.0)
                t = t.masked_fill(hidden, self.times.stop)
            noisy.append(x_t)
            times.append(t)
        x_t, t = torch.stack(noisy, dim=1), torch.stack(times, dim=1)
        return rearrange(x_t, "b v q p -> (b v) q p"), rearrange(t, "b v -> (b v)")

    def diffuse_at(self, x: Tensor, ids: Tensor, alpha_bar: Tensor, seed: int, offset: int) -> Tensor:
        """x_t `[B, Q, P]` of the patches at ids `[B, Q]` for alpha_bar `[B]`."""
        return diffuse_patches(
            x,
            ids.contiguous(),
            self.patch,
            self.mean,
            self.std,
            alpha_bar,
            seed,
            offset,
            norm_pix=self.norm_pix,
            dtype=compute_dtype(x.device),
        )

    def loss(
        self,
        fused: Sequence[Tensor],
        x: Sequence[Tensor],
        drawn: Sequence[Drawn],
        blocks: Sequence[tuple[Tensor, ...]] = (),
    ) -> Tensor:
        """Mean squared error of the predicted patches or features of a clip, over decoded views and clips: fp32 scalar.

        fused: `[(B W), 1 + K, D]` of each span, of the W views that are decoded, x: its input, drawn: what was drawn
        for it, blocks: what each block of the encoder gave, in the shape of fused, for a decoder that reads them.
        """
        predicted = self.decoder(
            [
                ToDecode(
                    tokens,
                    rearrange(masks.keep[:, : self.predicted_views], "b v k -> (b v) k"),
                    rearrange(masks.decode, "b v q -> (b v) q"),
                    diffused,
                    inner,
                )
                for tokens, (masks, diffused, _), inner in zip(fused, drawn, blocks or [()] * len(x), strict=True)
            ]
        )
        losses = [self._span_loss(*span) for span in zip(predicted, x, drawn, strict=True)]
        if len(losses) == 1:
            return losses[0]
        clips = sum(len(clip) for clip in x)
        return torch.stack([loss * (len(clip) / clips) for loss, clip in zip(losses, x, strict=True)]).sum()

    def _span_loss(self, pred: Tensor, x: Tensor, drawn: Drawn) -> Tensor:
        if drawn.target:
            return mse_loss(pred.float(), drawn.target[0])
        decode = drawn.masks.decode
        pred = rearrange(pred, "(b v) q p -> b (v q) p", v=decode.shape[1])
        ids = rearrange(decode, "b v q -> b (v q)")
        return masked_mse(pred, x, ids, self.patch, self.mean, self.std, norm_pix=self.norm_pix)


def mask_groups(grid: tuple[int, ...], hidden: VideoMasks | AudioMasks, device: torch.device) -> Tensor | None:
    """Labels of what is hidden as a whole, int32 `[G, N]` as of `maekernels.random_mask`; None: each patch by itself.

    grid: patches along (time, height, width), or (time, mel).
    """
    if hidden == "patches":
        return None
    number = torch.arange(math.prod(grid), dtype=torch.int32, device=device)
    inside = math.prod(grid[1:])
    time, place = number // inside, number % inside
    groups = {"tubes": [place], "frames": [time], "times": [time], "mels": [place], "crosses": [time, place]}
    return torch.stack(groups[hidden])


def compute_dtype(device: torch.device) -> torch.dtype:
    """The type in which the next Linear computes: autocast's, where it is on."""
    # Meta tensors have no autocast. torch.amp.is_autocast_available would tell, but torch 2.11 cannot compile it.
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.get_autocast_dtype(device.type)
    return torch.float32
