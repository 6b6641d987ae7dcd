"""transformers' VideoMAEForPreTraining with our ops: 4.57 and 5.x.

    embeddings   only the visible tubelets are extracted and embedded
    attention    `attention`, if the config says sdpa
    loss         `masked_mse` reads the target from the pixels: mapped back to [0, 1], each channel of a tubelet
                 normalised by its own mean and deviation

transformers indexes with the boolean mask, which waits for the device four times per forward pass, and each time copies
its position tables there. Here the mask is converted to token indices on the device: `masked` is the number of masked
tokens per clip, and nothing waits; without it, the number is read from the mask. Masks with unequal numbers per clip
are refused, where transformers would mix samples. A call without a mask, with another size, with a dtype or device that
the ops do not support, under torch.func, or with a patch embedding that was replaced or has hooks is computed by
transformers' own code.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maekernels import masked_mse
from maekernels._checks import check
from maekernels.integrations._calls import embeds_plainly, for_ops
from maekernels.integrations._instance import check_parts, replace_forward
from maekernels.integrations.forks import embed_patches, masked_ids, unknown_embedding

VERSIONS = "transformers 4.57 and 5.0 to 5.24"
MODULE = "transformers.models.videomae.modeling_videomae"
# 4.57 | 5.0 to 5.23 | 5.24
KNOWN: dict[str, tuple[str, ...]] = {
    "VideoMAEForPreTraining.forward": ("0827797e0ba62f72", "ce601d870296d35d", "4a80ec03f710f410"),
    "VideoMAEEmbeddings.forward": ("43e850f6b70afd69",),
    "VideoMAEPatchEmbeddings.forward": ("d9541ce9bc43539f",),
    "VideoMAEDecoder.forward": ("a0060227a903dfc4", "087d28d10ef082cd"),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""ImageNet's, used to map pixels with three channels back to [0, 1]."""


def replace(model: Any, masked: int | None) -> list[nn.Module]:
    """Check and patch the model; returns its attention modules. `ValueError` if its code is unknown."""
    embeddings = model.videomae.embeddings
    parts = {
        "VideoMAEForPreTraining": model,
        "VideoMAEEmbeddings": embeddings,
        "VideoMAEPatchEmbeddings": embeddings.patch_embeddings,
        "VideoMAEDecoder": model.decoder,
    }
    check_parts(parts, KNOWN, VERSIONS)
    problem = unknown_embedding(embeddings.patch_embeddings.projection)
    check(problem is None, "model", type(model).__name__, f"embedding tubelets by a plain Conv3d: {problem}")
    length = embeddings.num_patches
    check(masked is None or 0 < masked < length, "masked", masked, f"between 0 and the {length} tokens of a clip")
    replace_forward(model, _model_forward(sys.modules[MODULE].VideoMAEForPreTrainingOutput, masked))
    replace_forward(embeddings, _embeddings_forward(masked))
    return [module for module in model.modules() if type(module).__name__ == "VideoMAESelfAttention"]


def _ours(embed: Any, pixel_values: Any, mask: Any) -> bool:
    """Whether these are clips of the model's own size with a boolean mask; transformers reports invalid ones."""
    if not for_ops(pixel_values) or pixel_values.dim() != 5 or not embeds_plainly(embed, MODULE):
        return False
    _, frames, channels, height, width = pixel_values.shape
    tubelet, rows, columns = embed.projection.kernel_size
    fits = (channels, height, width) == (embed.num_channels, *embed.image_size)
    whole = frames % tubelet == 0 and height % rows == 0 and width % columns == 0
    tokens = frames // tubelet * (height // rows) * (width // columns)
    shape = (pixel_values.shape[0], embed.num_patches)  # len() would fix it in an export
    masked = isinstance(mask, Tensor) and mask.dtype == torch.bool and mask.shape == shape
    return fits and whole and tokens == embed.num_patches and masked


def _table(owner: Any, device: torch.device) -> Tensor:
    """The position table [N, D], moved to the device once and kept there."""
    if owner.position_embeddings.device != device:
        owner.position_embeddings = owner.position_embeddings.to(device)
    return owner.position_embeddings[0].detach()


def _embeddings_forward(masked: int | None) -> Any:
    def forward(self: Any, pixel_values: Any, bool_masked_pos: Any) -> Tensor:
        """Clips [B, T, C, H, W] -> visible tokens [B, K, D]."""
        embed = self.patch_embeddings
        if not _ours(embed, pixel_values, bool_masked_pos):
            return type(self).forward(self, pixel_values, bool_masked_pos)
        ids_keep = masked_ids(bool_masked_pos.to(pixel_values.device), masked).ids_keep
        # Channels last, as a view: the ops read any strides.
        video = pixel_values.movedim(2, -1)
        tokens = embed_patches(embed.projection, video, ids_keep, channels_first=False)
        table = _table(self, tokens.device).to(tokens.dtype)
        return tokens + F.embedding(ids_keep, table)

    return forward


def _model_forward(output: type, masked: int | None) -> Any:
    def plain(self: Any, pixel_values: Tensor, bool_masked_pos: Tensor, **kwargs: Any) -> Any:
        outputs = self.videomae(pixel_values, bool_masked_pos=bool_masked_pos, **kwargs)
        ids = masked_ids(bool_masked_pos.to(pixel_values.device), masked)
        visible = self.encoder_to_decoder(outputs.last_hidden_state)
        table = _table(self, pixel_values.device).to(pixel_values.dtype)
        positions = [F.embedding(part, table) for part in ids]
        tokens = torch.cat([visible + positions[0], self.mask_token + positions[1]], dim=1)
        logits = self.decoder(tokens, ids.ids_mask.shape[1]).logits
        return output(
            loss=_loss(self, pixel_values, logits, ids.ids_mask),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    as_tuple = importlib.import_module("transformers.utils.generic").can_return_tuple(plain)

    def forward(self: Any, pixel_values: Any, bool_masked_pos: Any = None, *rest: Any, **kwargs: Any) -> Any:
        if rest or not _ours(self.videomae.embeddings.patch_embeddings, pixel_values, bool_masked_pos):
            return type(self).forward(self, pixel_values, bool_masked_pos, *rest, **kwargs)
        return as_tuple(self, pixel_values, bool_masked_pos, **kwargs)

    return forward


def _loss(self: Any, pixel_values: Tensor, logits: Tensor, ids_mask: Tensor) -> Tensor:
    config = self.config
    channels = config.num_channels
    norm = bool(config.norm_pix_loss)
    check(
        norm or channels == 3,
        "norm_pix_loss",
        norm,
        f"True for {channels} channels, which are not taken back to [0, 1]",
    )
    mean, std = [0.0] * channels, [1.0] * channels
    if channels == 3:  # x * STD + MEAN, as (x - mean) / std
        mean, std = [-m / s for m, s in zip(MEAN, STD, strict=True)], [1 / s for s in STD]
    patch = (config.tubelet_size, config.patch_size, config.patch_size)
    loss = masked_mse(logits, pixel_values.movedim(2, -1), ids_mask, patch, mean, std, "channel" if norm else False)
    if torch.is_autocast_enabled(logits.device.type):
        return loss
    # torch's MSELoss returns the dtype of its inputs.
    return loss.to(torch.promote_types(logits.dtype, pixel_values.dtype))
