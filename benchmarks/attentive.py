"""An attentive probe: one learnt query looks at all frozen tokens, a linear layer reads what it finds.

As in V-JEPA's evaluations (Bardes et al. 2024), smaller: one layer of attention, no MLP. Unlike a linear probe it is
not convex, so that it depends on its seed and on how long it is trained.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

HEADS = 4
EPOCHS, LEAST_STEPS = 20, 1000
BATCH = 64
LR = 1e-3
WEIGHT_DECAY = 0.05


class AttentiveProbe(nn.Module):
    """Tokens `[B, T, D]` and which of them are real, bool `[B, T]` -> logits `[B, C]`."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width, affine=False)
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.attention = nn.MultiheadAttention(width, HEADS, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        seen = torch.zeros_like(tokens)
        seen[real] = self.norm(tokens[real])
        query = self.query.expand(len(tokens), -1, -1)
        found, _ = self.attention(query, seen, seen, key_padding_mask=~real, need_weights=False)
        return self.head(found[:, 0])


def attentive_accuracy(
    learn: tuple[Tensor, Tensor], target: Tensor, judge: tuple[Tensor, Tensor], judge_target: Tensor, *, seed: int
) -> float:
    """Top-1 in [0, 1] on the second set of a probe trained on the first.

    Args:
        learn, judge: tokens float32 `[N, T, D]`, and bool `[N, T]`, which of them are not padding.
        target, judge_target: bool `[N, C]`, one class in each row.
        seed: of the probe's weights and of the order.
    """
    tokens, real = learn
    answer = target.int().argmax(dim=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = AttentiveProbe(tokens.shape[-1], target.shape[1])
        optimizer = torch.optim.AdamW(probe.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        batches = -(-len(tokens) // BATCH)
        epochs = max(EPOCHS, -(-LEAST_STEPS // batches))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * batches)
        for _ in range(epochs):
            for rows in torch.randperm(len(tokens)).split(BATCH):
                loss = F.cross_entropy(probe(tokens[rows], real[rows]), answer[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                schedule.step()
    probe.eval()
    with torch.inference_mode():
        pairs = zip(judge[0].split(256), judge[1].split(256), strict=True)
        said = torch.cat([probe(x, mask).argmax(dim=1) for x, mask in pairs])
    return (said == judge_target.int().argmax(dim=1)).double().mean().item()
