"""transformers' ViTMAEForPreTraining with our ops: 4.57, 5.0 and later, and the rewrite from 5.17 on.

    embeddings   noise and argsort as before; only the visible patches are extracted and embedded, likewise positions
    attention    `attention`, if the config says sdpa
    decoder      `scatter_tokens` writes tokens, class token and mask tokens to their positions in one pass
    loss         `masked_mse` reads the target from the pixels; only masked patches are copied

Masks come from torch's generator exactly as before: a seed reproduces the run without the patch. A call with another
size, with `interpolate_pos_encoding`, with a dtype or device that the ops do not support, under torch.func, or with a
part that was replaced or a patch embedding that has hooks is computed by transformers' own code.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maekernels import gather_tokens, masked_mse, scatter_tokens
from maekernels._checks import check
from maekernels.integrations._calls import embeds_plainly, for_ops
from maekernels.integrations._instance import check_parts, overridden, replace_forward
from maekernels.integrations.forks import embed_patches, inverse, unknown_embedding

VERSIONS = "transformers 4.57 and 5.0 to 5.24"
MODULE = "transformers.models.vit_mae.modeling_vit_mae"
# 4.57 | 5.0 to 5.16 | from 5.17 on
KNOWN: dict[str, tuple[str, ...]] = {
    "ViTMAEForPreTraining.forward": ("e226833902ebadbf", "146763c2ceaac3d8", "7103c4c313b75d54"),
    "ViTMAEForPreTraining.patchify": ("7a4d6b2c104323a2", "71152f5f01e6dfed"),
    "ViTMAEEmbeddings.forward": ("82c7e2f459863d54", "d2319c6818b2e85b"),
    "ViTMAEEmbeddings.random_masking": ("d772530a0fae8ccd",),
    "ViTMAEPatchEmbeddings.forward": ("2701d6b9c8d2769a", "b0cc79047d16943f"),
    "ViTMAEDecoder.forward": ("6595ae1e3d8db230", "3a4284f1589c0599", "4a8d8cb8636d66ad"),
}
UNTIL_5_17 = {"ViTMAEForPreTraining.forward_loss": ("8fb8045bddd5873a",)}
"""A separate method until then."""


def replace(model: Any) -> list[nn.Module]:
    """Check and patch the model; returns its attention modules. `ValueError` if its code is unknown."""
    embeddings, decoder = model.vit.embeddings, model.decoder
    parts = {
        "ViTMAEForPreTraining": model,
        "ViTMAEEmbeddings": embeddings,
        "ViTMAEPatchEmbeddings": embeddings.patch_embeddings,
        "ViTMAEDecoder": decoder,
    }
    check_parts(parts, KNOWN | (UNTIL_5_17 if hasattr(type(model), "forward_loss") else {}), VERSIONS)
    problem = unknown_embedding(embeddings.patch_embeddings.projection)
    check(problem is None, "model", type(model).__name__, f"embedding patches by a plain Conv2d: {problem}")
    replace_forward(model, _model_forward(sys.modules[MODULE].ViTMAEForPreTrainingOutput))
    replace_forward(embeddings, _embeddings_forward)
    replace_forward(decoder, _decoder_forward)
    # Until 5.16, an attention module contains another one, which reads the config.
    named = [m for m in model.modules() if type(m).__name__ in ("ViTMAESelfAttention", "ViTMAEAttention")]
    return [module for module in named if hasattr(module, "config")]


def _embeddings_forward(self: Any, pixel_values: Tensor, noise: Tensor | None = None, *rest: Any, **kwargs: Any) -> Any:
    """[B, C, H, W] -> class token and visible tokens [B, 1 + K, D], mask [B, N], ids_restore [B, N]."""
    embed = self.patch_embeddings
    if rest or any(kwargs.values()) or not _fits(embed, pixel_values) or overridden(self, "random_masking"):
        return type(self).forward(self, pixel_values, noise, *rest, **kwargs)
    batch, length = pixel_values.shape[0], embed.num_patches  # len() would fix it in an export
    keep = int(length * (1 - self.config.mask_ratio))
    if noise is None:
        noise = torch.rand(batch, length, device=pixel_values.device)
    ids_shuffle = torch.argsort(noise, dim=1).to(pixel_values.device)
    ids_keep = ids_shuffle[:, :keep]
    mask = torch.ones(batch, length, device=pixel_values.device).scatter_(1, ids_keep, 0.0)
    tokens = embed_patches(embed.projection, pixel_values, ids_keep, channels_first=True)
    tokens = tokens + F.embedding(ids_keep, self.position_embeddings[0, 1:])
    cls_token = self.cls_token + self.position_embeddings[:, :1]
    return torch.cat((cls_token.expand(batch, -1, -1), tokens), dim=1), mask, inverse(ids_shuffle)


def _fits(embed: Any, pixel_values: Any) -> bool:
    """Whether these are images of the model's own size; transformers reports invalid ones."""
    if not for_ops(pixel_values) or not embeds_plainly(embed, MODULE):
        return False
    height, width = embed.image_size
    fits = pixel_values.shape[1:] == (embed.num_channels, height, width) and height == width
    return fits and height % embed.projection.kernel_size[0] == 0


def _decoder_forward(self: Any, hidden_states: Tensor, ids_restore: Tensor, *rest: Any, **kwargs: Any) -> Any:
    """Visible tokens [B, 1 + K, D] -> predictions of all patches [B, N, P]."""
    if rest or any(kwargs.values()) or not for_ops(hidden_states):
        return type(self).forward(self, hidden_states, ids_restore, *rest, **kwargs)
    x = self.decoder_embed(hidden_states)
    # As torch.cat with the mask tokens would do under autocast.
    x = x.to(torch.promote_types(x.dtype, self.mask_token.dtype))
    ids_keep = inverse(ids_restore)[:, : x.shape[1] - 1]
    places = F.pad(ids_keep + 1, (1, 0))  # the class token stays first
    x = scatter_tokens(x, places, ids_restore.shape[1] + 1, self.mask_token[0, 0]) + self.decoder_pos_embed
    for layer in self.decoder_layers:
        x = layer(x)
    logits = self.decoder_pred(self.decoder_norm(x))
    return sys.modules[MODULE].ViTMAEDecoderOutput(logits=logits[:, 1:])


def _model_forward(output: type) -> Any:
    def plain(self: Any, pixel_values: Tensor, noise: Tensor | None = None, **kwargs: Any) -> Any:
        outputs = self.vit(pixel_values, noise=noise, **kwargs)
        logits = self.decoder(outputs.last_hidden_state, outputs.ids_restore).logits
        return output(
            loss=_loss(self, pixel_values, logits, outputs.ids_restore, outputs.last_hidden_state.shape[1] - 1),
            logits=logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    as_tuple = importlib.import_module("transformers.utils.generic").can_return_tuple(plain)

    def forward(self: Any, pixel_values: Any = None, noise: Tensor | None = None, *rest: Any, **kwargs: Any) -> Any:
        theirs = rest or kwargs.get("interpolate_pos_encoding") or overridden(self, "patchify", "forward_loss")
        if theirs or not _fits(self.vit.embeddings.patch_embeddings, pixel_values):
            return type(self).forward(self, pixel_values, noise, *rest, **kwargs)
        return as_tuple(self, pixel_values, noise, **kwargs)

    return forward


def _loss(self: Any, pixel_values: Tensor, logits: Tensor, ids_restore: Tensor, keep: int) -> Tensor:
    """Mean over masked patches: every sample has equally many, so it is the mean over all their elements."""
    ids_mask = inverse(ids_restore)[:, keep:]
    size, channels = self.config.patch_size, self.config.num_channels
    normal = ([0.0] * channels, [1.0] * channels)
    norm = bool(self.config.norm_pix_loss)
    pred = gather_tokens(logits, ids_mask)
    return masked_mse(pred, pixel_values, ids_mask, (size, size), *normal, norm, channels_first=True)
