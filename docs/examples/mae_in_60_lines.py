"""A masked autoencoder of one's own on the ops: 60 lines, uint8 pictures in, a loss out.

python docs/examples/mae_in_60_lines.py
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from maekernels import attention, gather_tokens, masked_mse, patchify, random_mask, scatter_tokens

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.norm_mlp = heads, nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        x = x + self.proj(attention(q, k, v).flatten(2))
        return x + self.mlp(self.norm_mlp(x))


class MAE(nn.Module):
    def __init__(self, size: int = 32, patch: int = 4, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patch, self.tokens, dim = (patch, patch), (size // patch) ** 2, 3 * patch**2
        self.embed, self.head = nn.Linear(dim, width), nn.Linear(width, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.decoder_positions = nn.Parameter(0.02 * torch.randn(self.tokens, width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.encoder = nn.Sequential(*(Block(width, heads) for _ in range(depth)), nn.LayerNorm(width))
        self.decoder = nn.Sequential(Block(width, heads), nn.LayerNorm(width))

    def forward(self, pictures: Tensor, seed: int, offset: int = 0, mask_ratio: float = 0.75) -> Tensor:
        """pictures uint8 [B, H, W, 3]; the masks follow from (seed, number of the picture)."""
        keep = int(self.tokens * (1 - mask_ratio))
        ids_keep, ids_mask = random_mask(
            len(pictures), self.tokens, keep, seed=seed, offset=offset, device=pictures.device
        )
        x = self.embed(patchify(pictures, ids_keep, self.patch, MEAN, STD)) + self.positions[ids_keep.long()]
        x = scatter_tokens(self.encoder(x), ids_keep, self.tokens, fill=self.mask_token) + self.decoder_positions
        pred = self.head(gather_tokens(self.decoder(x), ids_mask))
        return masked_mse(pred, pictures, ids_mask, self.patch, MEAN, STD, norm_pix=True)


def main(steps: int = 40, batch: int = 16) -> list[float]:
    torch.manual_seed(0)
    model, losses = MAE(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    ramp = torch.arange(32, dtype=torch.float32)
    for step in range(steps):
        angle = torch.rand(batch, 1, 1) * 6.28  # waves of any direction
        waves = (0.6 * (ramp[:, None] * angle.cos() + ramp * angle.sin())).sin()
        pictures = (127.5 + 127.5 * waves[..., None]).to(torch.uint8).expand(-1, -1, -1, 3).contiguous()
        losses.append(loss := model(pictures, seed=0, offset=step * batch))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return [loss.item() for loss in losses]


if __name__ == "__main__":
    found = main()
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
