"""The functions for forks, against the code that forks have in their place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from maekernels.integrations import MaskedPatchEmbed, masked_ids, random_masking, tube_mask
from tests.integrations.written_maes import KINDS, OnOps, Plain
from tests.ops.mae_oracle import MEAN, STD


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_mae_on_our_ops_is_the_one_of_the_paper(kind):
    torch.manual_seed(0)
    plain = Plain(kind).double()
    ours = OnOps(kind).double()
    ours.load_state_dict(plain.state_dict())
    x, noise = torch.randn(3, kind.channels, *kind.size).double(), torch.rand(3, plain.positions.shape[1])
    losses = [model(x, noise) for model in (plain, ours)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    for (name, theirs), mine in zip(plain.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)


# random_masking


def test_random_masking_gives_what_mae_makes_of_it():
    """The three results belong together as MAE's decoder uses them."""
    x = torch.randn(4, 20, 3)
    kept, mask, ids_restore = random_masking(x, 0.75, seed=3)
    assert kept.shape == (4, 5, 3)
    assert mask.dtype == torch.float32
    assert mask.sum(1).tolist() == [15.0] * 4
    # MAE's own lines: append mask tokens, unshuffle.
    full = torch.cat([kept, torch.full((4, 15, 3), 7.0)], dim=1)
    full = torch.gather(full, 1, ids_restore[..., None].repeat(1, 1, 3))
    assert torch.equal(full[mask == 0], x[mask == 0])
    assert (full[mask == 1] == 7).all()


def test_random_masking_has_gradients():
    x = torch.randn(2, 8, 3, requires_grad=True)
    kept, mask, _ = random_masking(x, 0.5, seed=0)
    kept.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, (1 - mask)[..., None].expand_as(x))


def test_random_masking_follows_the_seed_or_torchs_generator():
    x = torch.randn(4, 64, 1)
    assert torch.equal(random_masking(x, 0.5, seed=1)[1], random_masking(x, 0.5, seed=1)[1])
    assert torch.equal(random_masking(x, 0.5, seed=1)[1][2:], random_masking(x[2:], 0.5, seed=1, offset=2)[1])
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(random_masking(x, 0.5)[1])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(random_masking(x, 0.5)[1], random_masking(x, 0.5)[1])


@pytest.mark.parametrize(("length", "ratio", "keep"), [(196, 0.75, 49), (10, 0.75, 2), (512, 0.8, 102), (4, 0.0, 4)])
def test_random_masking_counts_as_mae(length, ratio, keep):
    assert random_masking(torch.zeros(1, length, 1), ratio, seed=0)[0].shape[1] == keep == int(length * (1 - ratio))


# tube_mask and masked_ids


def test_tube_masks_are_the_same_in_every_frame():
    mask = tube_mask(3, 4, 49, 0.9, seed=5)
    assert mask.shape == (3, 4 * 49)
    frames = mask.view(3, 4, 49)
    assert (frames == frames[:, :1]).all()
    assert frames.sum(2).eq(int(0.9 * 49)).all()
    assert not torch.equal(frames[0], frames[1])
    assert torch.equal(tube_mask(2, 4, 49, 0.9, seed=5, offset=1), mask[1:])


def test_masked_ids_are_the_places_of_the_mask():
    mask = torch.rand(4, 30).argsort(dim=1) < 12
    for ids in (masked_ids(mask), masked_ids(mask, 12)):
        assert ids.ids_keep.shape == (4, 18)
        for b in range(4):
            assert ids.ids_mask[b].tolist() == mask[b].nonzero()[:, 0].tolist()
            assert ids.ids_keep[b].tolist() == (~mask[b]).nonzero()[:, 0].tolist()
    assert masked_ids(mask[:0]).ids_keep.shape == (0, 30)


def test_masked_ids_compiles_where_the_number_is_known():
    """A number that is read from the mask would break the graph, as it waits on a GPU."""
    mask = torch.rand(4, 30).argsort(dim=1) < 12
    compiled = torch.compile(lambda mask: masked_ids(mask, 12), fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(mask), masked_ids(mask), strict=True))
    with pytest.raises(RuntimeError, match="must hide `masked` tokens of every sample"):
        compiled(torch.zeros(4, 30, dtype=torch.bool))


@pytest.mark.parametrize("dynamic", [True, None], ids=["dynamic", "default"])
def test_masked_ids_compiles_for_one_number_after_another(dynamic):
    """From the second on, or at once where asked to, the compiler sees a symbol in place of the number."""
    torch._dynamo.reset()
    compiled = torch.compile(masked_ids, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for masked in (12, 13, 14):
        mask = torch.rand(4, 30).argsort(dim=1) < masked
        assert all(torch.equal(a, b) for a, b in zip(compiled(mask, masked=masked), masked_ids(mask), strict=True))


# MaskedPatchEmbed


def all_patches(conv: nn.Module, x: Tensor) -> Tensor:
    return conv(x).flatten(2).mT


@pytest.mark.parametrize(
    ("conv", "shape"),
    [
        (nn.Conv2d(3, 8, (4, 2), (4, 2)), (2, 3, 16, 8)),
        (nn.Conv2d(1, 8, 4, 4, bias=False), (2, 1, 16, 8)),
        (nn.Conv2d(1, 8, 4, 4, padding="valid"), (2, 1, 16, 8)),
        (nn.Conv3d(3, 8, (2, 4, 4), (2, 4, 4)), (2, 3, 4, 8, 8)),
    ],
    ids=["2d", "no bias", "valid", "3d"],
)
def test_chosen_patches_are_embedded_as_the_convolution_does(conv, shape):
    conv = conv.double()
    x = torch.randn(shape).double().requires_grad_()
    ids = torch.tensor([[3, 0], [5, 7]])
    expected = torch.gather(all_patches(conv, x), 1, ids[..., None].expand(-1, -1, 8))
    found = MaskedPatchEmbed(conv)(x, ids)
    torch.testing.assert_close(found, expected)
    weight, variables = torch.randn_like(found), [x, *conv.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(found, variables, weight), torch.autograd.grad(expected, variables, weight)
    )


def test_uint8_pixels_are_normalised_on_the_way():
    conv = nn.Conv2d(3, 8, 4, 4)
    x, ids = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8), torch.tensor([[1], [2]])
    mean, std = (torch.tensor(v)[:, None, None] for v in (MEAN, STD))
    expected = torch.gather(all_patches(conv, (x / 255 - mean) / std), 1, ids[..., None].expand(-1, -1, 8))
    torch.testing.assert_close(MaskedPatchEmbed(conv, MEAN, STD)(x, ids), expected, rtol=1e-5, atol=1e-5)
    as_tensors = MaskedPatchEmbed(conv, torch.tensor(MEAN), torch.tensor(STD))
    torch.testing.assert_close(as_tensors(x, ids), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"x=uint8.*must be float without mean and std"):
        MaskedPatchEmbed(conv)(x, ids)


def test_weights_stay_where_they_are():
    """A fork's state_dict, and what its optimiser holds, do not change."""
    model = nn.Module()
    model.proj = nn.Conv2d(3, 8, 4, 4)
    before = list(model.state_dict())
    model.visible = MaskedPatchEmbed(model.proj)
    assert list(model.state_dict()) == before
    assert len(list(model.parameters())) == 2
    model.double()
    assert model.visible(torch.zeros(1, 3, 8, 8).double(), torch.zeros(1, 1, dtype=torch.long)).dtype == torch.float64


def test_a_convolution_that_changed_is_refused():
    """What its own forward would do now would be left out."""
    embed, x, ids = MaskedPatchEmbed(nn.Conv2d(3, 8, 4, 4)), torch.zeros(1, 3, 8, 8), torch.zeros(1, 1).long()
    (conv,) = embed.held
    embed(x, ids)
    conv.forward = lambda x: x
    with pytest.raises(ValueError, match=r"conv=Conv2d.*must be as it was given: its forward was replaced"):
        embed(x, ids)
    del conv.forward
    nn.utils.parametrizations.weight_norm(conv)
    with pytest.raises(ValueError, match=r"must be as it was given: it is a ParametrizedConv2d"):
        embed(x, ids)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        lambda conv: prune.random_unstructured(conv, "weight", 0.5),
        lambda conv: conv.register_forward_hook(lambda module, args, out: 2 * out),
        lambda conv: conv.register_full_backward_hook(lambda module, before, after: None),
    ],
    ids=["weight_norm", "prune", "forward hook", "backward hook"],
)
def test_a_convolution_with_hooks_is_refused(change):
    """They would not run, and a weight that is made in one would be out of date."""
    conv = nn.Conv2d(3, 8, 4, 4)
    embed = MaskedPatchEmbed(conv)
    change(conv)
    with pytest.raises(ValueError, match="must be as it was given: it has hooks, which would not run"):
        embed(torch.zeros(1, 3, 8, 8), torch.zeros(1, 1).long())
    with pytest.raises(ValueError, match="by Conv2d or Conv3d: it has hooks, which would not run"):
        MaskedPatchEmbed(conv)


def test_replicas_are_refused():
    """The convolution would be that of the first."""
    with pytest.raises(ValueError, match="module=MaskedPatchEmbed in DataParallel: must be in DistributedDataParallel"):
        MaskedPatchEmbed(nn.Conv2d(3, 8, 4, 4))._replicate_for_data_parallel()


@pytest.mark.parametrize(
    ("conv", "message"),
    [
        (nn.Linear(3, 8), "it is a Linear"),
        (nn.Conv2d(3, 8, 16, 10), r"its stride is \(10, 10\), its kernel \(16, 16\)"),
        (nn.Conv2d(3, 8, 4, 4, padding=1), "it has padding, dilation or groups"),
        (nn.Conv2d(6, 8, 4, 4), "it has 6 channels of at most 4"),
    ],
    ids=["linear", "overlap", "padding", "channels"],
)
def test_another_embedding_is_refused(conv, message):
    """AudioMAE's fine-tuning may let patches overlap."""
    with pytest.raises(ValueError, match=message):
        MaskedPatchEmbed(conv)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_masking(torch.zeros(2, 3), 0.5), r"x=float32\[2, 3\]"),
        (lambda: random_masking(torch.zeros(2, 3, 1), 1.0), "mask_ratio=1.0"),
        (lambda: tube_mask(2, 0, 4, 0.5, seed=0), r"frames, patches=\(0, 4\)"),
        (lambda: tube_mask(2, 1, 4, -0.5, seed=0), "mask_ratio=-0.5"),
        (lambda: masked_ids(torch.zeros(2, 3)), r"mask=float32\[2, 3\]"),
        (lambda: masked_ids(torch.zeros(2, 3, dtype=torch.bool), 4), r"masked=4: must be in \[0, 3\]"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
