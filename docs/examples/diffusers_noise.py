"""The forward process of a diffusion model's training loop, as diffusers writes it, by `add_noise`.

    noise = torch.randn_like(x0)
    x_t = scheduler.add_noise(x0, noise, timesteps)

becomes

    x_t = add_noise(x0, scheduler.alphas_cumprod[timesteps], seed, offset)

The noise is made where it is used and never stored; it follows from (seed, number of the sample), so that a run on more
processes, or a resumed one, sees the noise it would have seen. Here the model predicts x0; one that predicts the noise
gets it again, bit for bit: `add_noise` of zeros with alpha_bar 0.

    python docs/examples/diffusers_noise.py
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maekernels import add_noise


def alphas_cumprod(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """float32 [steps], what `DDPMScheduler().alphas_cumprod` holds; take the scheduler's own where there is one."""
    return torch.cumprod(1 - torch.linspace(first, last, steps), dim=0)


class Denoiser(nn.Module):
    def __init__(self, channels: int = 3, width: int = 32) -> None:
        super().__init__()
        self.time = nn.Embedding(1000, width)
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.leave = nn.Sequential(nn.GELU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x_t: Tensor, timesteps: Tensor) -> Tensor:
        return self.leave(self.enter(x_t) + self.time(timesteps)[:, :, None, None])


def noise_of(x0: Tensor, seed: int, offset: int) -> Tensor:
    """What was added, for a model that predicts it."""
    return add_noise(torch.zeros_like(x0), x0.new_zeros(len(x0), dtype=torch.float32), seed, offset)


def main(steps: int = 60, batch: int = 16, predict: str = "x0") -> list[float]:
    torch.manual_seed(0)
    model, alpha_bar, losses = Denoiser(), alphas_cumprod(), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(steps):
        x0 = torch.rand(batch, 3, 1, 1).mul(2).sub(1).expand(-1, -1, 16, 16).contiguous()  # plain colours
        timesteps = torch.randint(0, 1000, (batch,))
        offset = step * batch
        x_t = add_noise(x0, alpha_bar[timesteps], seed=0, offset=offset)
        target = x0 if predict == "x0" else noise_of(x0, 0, offset)
        loss = F.mse_loss(model(x_t, timesteps), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    found = main()
    print(f"loss {found[0]:.3f} -> {found[-1]:.3f}")
