"""Changes on the device: what they do, that they depend on the position alone, and that off means off."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffmavil.config import AugmentConfig
from diffmavil.data.augment import Augment, colour_jitter, grey, mixup, multi_hot, spec_augment, time_roll

B, F, M = 64, 40, 16
EVERYTHING = AugmentConfig(colour=0.4, roll=True, time_mask=10, mel_mask=4)


def positions(first: int = 0, count: int = B) -> Tensor:
    return torch.arange(first, first + count)


def video(count: int = B) -> Tensor:
    return torch.randint(60, 180, (count, 2, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def spec(count: int = B) -> Tensor:
    """Every value names its frame and bin."""
    return (torch.arange(F)[:, None] * 100 + torch.arange(M) + 1.0).expand(count, F, M)


def test_off_is_off() -> None:
    augment = Augment(AugmentConfig(), seed=0)
    x, y = video(), spec()
    assert augment.video(x, positions()) is x
    assert augment.spec(y, positions()) is y


def test_any_layout_gives_the_same() -> None:
    """A batch at once, in four slices as on four ranks, or clip by clip from the end."""
    augment, x, y = Augment(EVERYTHING, seed=3), video(), spec()
    whole = augment.video(x, positions(1000)), augment.spec(y, positions(1000))
    for size in (16, 1):
        for at in reversed(range(0, B, size)):
            some = slice(at, at + size)
            assert torch.equal(augment.video(x[some], positions(1000 + at, size)), whole[0][some])
            assert torch.equal(augment.spec(y[some], positions(1000 + at, size)), whole[1][some])
    other = Augment(EVERYTHING, seed=4)
    assert not torch.equal(other.video(x, positions(1000)), whole[0])
    assert not torch.equal(other.spec(y, positions(1000)), whole[1])


def test_colour() -> None:
    x = video()
    out = colour_jitter(x, positions(), 0, 0.3)
    assert out.dtype == torch.uint8
    assert out.shape == x.shape
    brightness = grey(out.float()).mean((1, 2, 3, 4)) / grey(x.float()).mean((1, 2, 3, 4))
    assert 0.68 < brightness.min() < 0.8
    assert 1.2 < brightness.max() < 1.32
    contrast = grey(out.float()).std((1, 2, 3, 4)) / grey(x.float()).std((1, 2, 3, 4)) / brightness
    assert contrast.min() < 0.8
    assert contrast.max() > 1.2
    # A frame's neighbour is changed alike: still clips stay still.
    still = x[:, :1].expand(-1, 2, -1, -1, -1)
    changed = colour_jitter(still, positions(), 0, 0.3)
    assert torch.equal(changed[:, 0], changed[:, 1])
    assert torch.equal(colour_jitter(x, positions(), 0, 1e-6), x)


def test_roll_really_rolls() -> None:
    x = spec(2000)
    rolled = time_roll(x, positions(0, 2000), 0)
    shift = (rolled[:, :, 0] == 1.0).float().argmax(1)  # where the first frame went
    assert torch.equal(rolled, torch.stack([torch.roll(x[i], int(s), 0) for i, s in enumerate(shift)]))
    counts = shift.bincount(minlength=F)
    assert counts.min() > 20  # 50 expected of each
    assert counts.max() < 90


def test_spec_augment() -> None:
    x = spec(500)
    out = spec_augment(x, positions(0, 500), 0, time=10, mels=4)
    hidden = out == 0
    assert torch.equal(out[~hidden], x[~hidden])
    rows, columns = hidden.all(2), hidden.all(1)
    assert torch.equal(hidden, rows[:, :, None] | columns[:, None, :])
    assert set(rows.sum(1).tolist()) == set(range(11))
    assert set(columns.sum(1).tolist()) == set(range(5))
    for stretch in (rows, columns):  # one each
        assert ((stretch[:, 1:] & ~stretch[:, :-1]).sum(1) + stretch[:, 0]).max() == 1
        assert stretch[:, 0].any()
        assert stretch[:, -1].any()
    with pytest.raises(ValueError, match=r"data\.augment\.time_mask=41: must be in \[0, 40\]"):
        spec_augment(x, positions(0, 500), 0, time=41, mels=4)


@pytest.mark.parametrize("alpha", [1.0, 0.5, 0.2])
def test_mixup(alpha: float) -> None:
    count = 4000
    x = torch.zeros(count, 1, 1, 1, 3, dtype=torch.uint8)
    x[1::2] = 200
    y = (torch.arange(count) % 2).float().view(-1, 1, 1)
    targets = multi_hot([(i % 2,) for i in range(count)], 2)
    out = mixup(x, y, targets, positions(0, count), 0, alpha)
    own = out.targets[torch.arange(count), torch.arange(count) % 2]
    assert torch.allclose(out.targets.sum(1), torch.ones(count))
    assert own.min() >= 0.5
    assert torch.allclose(out.targets[:, 1:], out.spec.flatten(1))
    assert (out.video[:, 0, 0, 0, 0] - 200 * out.targets[:, 1]).abs().max() <= 0.5 + 1e-4
    # Variance of Beta(a, a) is 1 / (4 (2a + 1)).
    assert ((own - 0.5) ** 2).mean() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    half = mixup(x[10:20], y[10:20], targets[10:20], positions(10, 10), 0, alpha)
    assert torch.equal(half.spec, out.spec[10:20])


def test_mixup_refuses() -> None:
    x, y, t = video(3), spec(3), torch.zeros(3, 2)
    with pytest.raises(ValueError, match="an even number of clips"):
        mixup(x, y, t, positions(0, 3), 0, 0.5)
    with pytest.raises(ValueError, match=r"alpha=2: must be in \(0, 1\]"):
        mixup(x[:2], y[:2], t[:2], positions(0, 2), 0, 2)


def test_multi_hot() -> None:
    assert multi_hot([(0, 2), (), (1,)], 3).tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_same_on_a_gpu() -> None:
    augment, x, y = Augment(EVERYTHING, seed=3), video(), spec()
    there = augment.video(x.cuda(), positions().cuda()).cpu()
    assert (there.int() - augment.video(x, positions()).int()).abs().max() <= 1
    assert torch.equal(augment.spec(y.cuda(), positions().cuda()).cpu(), augment.spec(y, positions()))
