"""docs/kernels.md: its example is a masked autoencoder's loss as MAE writes it, and its table is what is counted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks import eager
from benchmarks.cases import CASES
from benchmarks.counts import limit_table
from maekernels import random_mask

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text()


class ForeignMAE(nn.Module):
    """A small video MAE of somebody else: convolutional patch embedding, `[B, C, T, H, W]` floats."""

    patch, tokens = (2, 16, 16), 2 * 2 * 3
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv3d(3, 16, self.patch, stride=self.patch)
        self.encoder, self.to_decoder = nn.Linear(16, 16), nn.Linear(16, 8)
        self.decoder = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 2 * 16 * 16 * 3)
        self.mask_token = nn.Parameter(torch.randn(8))
        self.positions, self.decoder_positions = torch.randn(self.tokens, 16), torch.randn(self.tokens, 8)

    def embed(self, patches: Tensor) -> Tensor:
        """The convolution as the page says."""
        return nn.functional.linear(patches, self.conv.weight.permute(0, 2, 3, 4, 1).flatten(1), self.conv.bias)

    def loss(self, video: Tensor, keep: Tensor, masked: Tensor) -> Tensor:
        """As the peers write it, for given masks."""
        clip = eager.normalise(video, torch.tensor(self.mean), torch.tensor(self.std))
        x = self.conv(clip).flatten(2).transpose(1, 2) + self.positions
        x = self.to_decoder(self.encoder(eager.gather_tokens(x, keep)))
        x = eager.scatter_tokens(x, torch.cat([keep, masked], dim=1).argsort(dim=1), self.mask_token)
        pred = self.head(self.decoder(x + self.decoder_positions))
        return eager.masked_mse(eager.gather_tokens(pred, masked), clip, masked, self.patch)


@pytest.fixture(scope="module")
def example() -> str:
    (found,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    return found


def test_the_example_is_the_loss_of_a_foreign_mae_with_its_gradients(example: str):
    names: dict = {}
    exec(example, names)
    model, video = ForeignMAE(), torch.randint(256, (3, 4, 32, 48, 3), dtype=torch.uint8)
    parameters = list(model.parameters())
    found = names["mae_loss"](model, video, seed=7)
    keep, masked = random_mask(3, model.tokens, model.tokens // 5, seed=7)
    expected = model.loss(video, keep.long(), masked.long())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    gradients = zip(torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters), strict=True)
    for ours, theirs in gradients:
        assert float(theirs.norm()) > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_the_example_is_short(example: str):
    body = [line for line in example.splitlines() if line.strip()]
    assert len(body) <= 10


def test_the_table_of_limits_is_what_is_counted():
    (found,) = re.findall(r"<!-- limits -->\n\n(.*?)\n\n<!-- /limits -->", PAGE, flags=re.DOTALL)
    assert found == limit_table(CASES["base-16-frames"], torch.bfloat16, pairs=512)
