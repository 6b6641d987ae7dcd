"""Positions, patch embedding, and pictures from patches."""

import pytest
import torch

from diffmavil.model.embed import PatchEmbed, all_ids, sincos_positions, unpatchify
from maekernels import patchify


@pytest.mark.parametrize("grid", [(5,), (6, 4), (3, 4, 5)], ids=str)
@pytest.mark.parametrize("width", [8, 20, 192, 772])
def test_positions_tell_every_patch_apart(grid: tuple[int, ...], width: int) -> None:
    table = sincos_positions(grid, width)
    assert table.shape == (torch.Size(grid).numel(), width)
    assert table.dtype == torch.float32
    distances = torch.cdist(table, table) + 10 * torch.eye(len(table))
    assert distances.min() > 1e-2


def test_positions_follow_the_formula() -> None:
    table = sincos_positions((3, 4), 16).reshape(3, 4, 16)
    for f in range(3):
        for m in range(4):
            angles = [axis / 10_000 ** (i / 4) for axis in (f, m) for i in range(4)]
            values = torch.tensor(angles)
            first, second = values[:4], values[4:]
            expected = torch.cat([first.sin(), first.cos(), second.sin(), second.cos()])
            torch.testing.assert_close(table[f, m], expected)


def test_positions_share_columns_along_each_axis() -> None:
    table = sincos_positions((3, 4, 5), 24).reshape(3, 4, 5, 24)
    time, height, width = table.split(8, dim=-1)
    assert (time == time[:, :1, :1]).all()
    assert (height == height[:1, :, :1]).all()
    assert (width == width[:1, :1]).all()


@pytest.mark.parametrize("width", [0, 6, 191])
def test_positions_refuse_other_widths(width: int) -> None:
    with pytest.raises(ValueError, match=rf"width={width}.*multiple of 4"):
        sincos_positions((2, 2), width)


def test_unpatchify_inverts_patchify_of_video() -> None:
    video = torch.randint(0, 256, (2, 4, 12, 8, 3), dtype=torch.uint8)
    grid, patch = (2, 3, 4), (2, 4, 2)
    patches = patchify(video, all_ids(2, 1, 24, video.device)[:, 0], patch, (0.0,) * 3, (1.0,) * 3)
    torch.testing.assert_close(unpatchify(patches, grid, patch), video / 255)


def test_unpatchify_inverts_patchify_of_spectrogram() -> None:
    spec = torch.randn(2, 12, 8)
    patches = patchify(spec, all_ids(2, 1, 12, spec.device)[:, 0], (4, 2), (0.0,), (1.0,))
    torch.testing.assert_close(unpatchify(patches, (3, 4), (4, 2)), spec)


def test_unpatchify_refuses_mixed_axes() -> None:
    with pytest.raises(ValueError, match="grid, patch"):
        unpatchify(torch.zeros(1, 8, 16), (2, 2, 2), (4, 4))


def test_patch_embedding_adds_the_position_of_the_id() -> None:
    embed = PatchEmbed((2, 3), patch_dim=5, width=8)
    assert embed.cls is not None
    torch.nn.init.normal_(embed.cls)
    patches, ids = torch.randn(2, 2, 5), torch.tensor([[0, 4], [3, 5]], dtype=torch.int32)
    tokens = embed(patches, ids)
    assert tokens.shape == (2, 3, 8)
    torch.testing.assert_close(tokens[:, 0], embed.cls[0].expand(2, -1))
    torch.testing.assert_close(tokens[1, 2], embed.proj(patches[1, 1]) + sincos_positions((2, 3), 8)[5])
