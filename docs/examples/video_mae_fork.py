"""Tube masking and a fused loss in a fork of VideoMAE's own code, which transformers does not have.

What a fork has, and what it has here:

    TubeMaskingGenerator, in the data loader, by numpy        tube_mask(batch, frames, patches, ratio, seed=, offset=)
    x = self.patch_embed(x); x = x[~mask].reshape(B, -1, C)   MaskedPatchEmbed(self.patch_embed.proj)(x, ids_keep)
    engine_for_pretraining: 20 lines that make the target     masked_mse(pred, x, ids_mask, ..., norm_pix="channel")

The lines of this model that are not VideoMAE's are marked.

    python docs/examples/video_mae_fork.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maekernels import masked_mse
from maekernels.integrations import MaskedPatchEmbed, masked_ids, tube_mask

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PATCH, FRAMES, SIDE, WIDTH = (2, 8, 8), 2, 4, 48
"""Tubelets of 4 frames of 32 x 32: 2 x 4 x 4 tokens."""


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, WIDTH, PATCH, PATCH)


class PretrainVisionTransformer(nn.Module):
    pos_embed: Tensor

    def __init__(self) -> None:
        super().__init__()
        tokens = FRAMES * SIDE**2
        layer = {"nhead": 4, "dim_feedforward": 96, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.patch_embed = PatchEmbed()
        self.embed_visible = MaskedPatchEmbed(self.patch_embed.proj)  # ours; adds nothing to the state_dict
        self.register_buffer("pos_embed", 0.1 * torch.randn(tokens, WIDTH), persistent=False)
        self.encoder = nn.TransformerEncoderLayer(WIDTH, **layer)
        self.decoder = nn.TransformerEncoderLayer(WIDTH, **layer)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.head = nn.Linear(WIDTH, 3 * PATCH[0] * PATCH[1] * PATCH[2])

    def forward(self, x: Tensor, mask: Tensor, masked: int) -> Tensor:
        """x [B, C, T, H, W] normalised, mask bool [B, N] -> the loss."""
        ids_keep, ids_mask = masked_ids(mask, masked)  # ours: nothing waits for the device
        visible = self.encoder(self.embed_visible(x, ids_keep) + F.embedding(ids_keep, self.pos_embed))
        hidden = self.mask_token + F.embedding(ids_mask, self.pos_embed)
        full = torch.cat([visible + F.embedding(ids_keep, self.pos_embed), hidden], dim=1)
        pred = self.head(self.decoder(full)[:, -masked:])
        # Ours: the target is read from the pixels, taken back to [0, 1] (x * STD + MEAN) on the way.
        mean, std = [-m / s for m, s in zip(MEAN, STD, strict=True)], [1 / s for s in STD]
        return masked_mse(pred, x, ids_mask, PATCH, mean, std, norm_pix="channel", channels_first=True)


def main(steps: int = 30, batch: int = 8, mask_ratio: float = 0.75) -> list[float]:
    torch.manual_seed(0)
    model, losses = PretrainVisionTransformer(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    masked = FRAMES * int(mask_ratio * SIDE**2)
    columns = torch.arange(32)
    for step in range(steps):
        place = torch.randint(0, 32, (batch, 1, 1, 1, 1)) + torch.arange(4)[:, None, None]
        x = torch.sin(0.4 * (columns + place)).expand(-1, 3, -1, 32, -1)  # waves that move
        mask = tube_mask(batch, FRAMES, SIDE**2, mask_ratio, seed=0, offset=step * batch)
        loss = model(x, mask, masked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    found = main()
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
