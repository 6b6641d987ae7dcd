"""What the Hub loads computes: each op against a few lines of torch."""

from pathlib import Path

import pytest
import torch

kernels = pytest.importorskip("kernels")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PATCH, MEAN, STD = (4, 4), (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def ops():
    return kernels.get_local_kernel(Path(__file__).resolve().parents[1])


@pytest.fixture
def images():
    return torch.randint(256, (3, 16, 24, 3), dtype=torch.uint8, device=DEVICE)


def patches(images):
    """[B, N, P] of [B, H, W, C], normalised."""
    x = (images.float() / 255 - torch.tensor(MEAN, device=DEVICE)) / torch.tensor(STD, device=DEVICE)
    return x.unflatten(1, (-1, 4)).unflatten(3, (-1, 4)).transpose(2, 3).flatten(3).flatten(1, 2)


@pytest.mark.kernels_ci
def test_the_visible_patches_and_the_loss_of_the_masked(ops, images):
    keep, masked = ops.random_mask(3, 24, 7, seed=5, device=DEVICE)
    assert torch.cat([keep, masked], 1).sort(1).values.tolist() == [list(range(24))] * 3
    want = patches(images)
    chosen = want.gather(1, keep.long()[..., None].expand(-1, -1, 48))
    torch.testing.assert_close(ops.patchify(images, keep, PATCH, MEAN, STD), chosen)
    pred = torch.randn(3, 17, 48, device=DEVICE, requires_grad=True)
    target = want.gather(1, masked.long()[..., None].expand(-1, -1, 48))
    loss = ops.masked_mse(pred, images, masked, PATCH, MEAN, STD, norm_pix=False)
    torch.testing.assert_close(loss, (pred - target).square().mean())
    (grad,) = torch.autograd.grad(loss, [pred])
    torch.testing.assert_close(grad, 2 * (pred.detach() - target) / pred.numel())


@pytest.mark.kernels_ci
def test_gather_undoes_scatter(ops):
    keep = ops.random_mask(3, 24, 7, seed=5, device=DEVICE).ids_keep
    tokens = torch.randn(3, 7, 20, device=DEVICE)
    whole = ops.scatter_tokens(tokens, keep, 24, fill=2.0)
    assert (whole == 2.0).sum() == 3 * 17 * 20
    assert torch.equal(ops.gather_tokens(whole, keep), tokens)


@pytest.mark.kernels_ci
def test_noise_has_its_share(ops):
    x = torch.ones(2, 40_000, device=DEVICE)
    noisy = ops.add_noise(x, torch.tensor([1.0, 0.0], device=DEVICE), seed=1)
    assert torch.equal(noisy[0], x[0])
    assert abs(noisy[1].mean()) < 0.05
    assert abs(noisy[1].std() - 1) < 0.05


@pytest.mark.kernels_ci
def test_contrast(ops):
    a, b = (torch.randn(9, 16, device=DEVICE) for _ in range(2))
    scores = torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T / 0.1
    own = torch.arange(9, device=DEVICE)
    want = (torch.nn.functional.cross_entropy(scores, own) + torch.nn.functional.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(ops.info_nce(a, b, 0.1), want, rtol=1e-4, atol=1e-4)
