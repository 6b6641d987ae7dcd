"""Pooling and the two contrastive losses against InfoNCE written out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffmavil.model.contrast import inter_modal, intra_modal, pool


def _info_nce(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    right = torch.arange(len(a))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def test_pooling_leaves_the_cls_token_out() -> None:
    tokens = torch.randn(2, 5, 3)
    tokens[:, 0] = 1e6
    torch.testing.assert_close(pool(tokens), tokens[:, 1:].mean(dim=1))


@pytest.mark.parametrize("views", [1, 2])
def test_inter_modal_is_the_mean_over_views(views: int) -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(6, views, 8), torch.randn(6, views, 8)
    expected = sum(_info_nce(audio[:, v], video[:, v], 0.1) for v in range(views)) / views
    torch.testing.assert_close(inter_modal(audio, video, 0.1), expected)


def test_intra_modal_is_the_mean_over_modalities() -> None:
    torch.manual_seed(0)
    audio, video = torch.randn(6, 2, 8), torch.randn(6, 2, 8)
    expected = (_info_nce(audio[:, 0], audio[:, 1], 1.0) + _info_nce(video[:, 0], video[:, 1], 1.0)) / 2
    torch.testing.assert_close(intra_modal([audio, video], 1.0), expected)


def test_bf16_autocast_does_not_round_the_logits():
    """With a clip twice in the batch as without: logits of ten have steps of a sixteenth in bf16."""
    torch.manual_seed(0)
    audio, video, clips = torch.randn(6, 1, 8), torch.randn(6, 1, 8), torch.tensor([3, 4, 3, 5, 6, 7])
    expected = inter_modal(audio, video, 0.05, clips)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert inter_modal(audio, video, 0.05, clips) == expected


def test_rows_of_one_clip_are_no_negatives_of_each_other():
    generator = torch.Generator().manual_seed(0)
    audio, video = (torch.randn(6, 2, 16, generator=generator, dtype=torch.float32) for _ in range(2))
    different = torch.arange(6)
    torch.testing.assert_close(inter_modal(audio, video, 0.1, different), inter_modal(audio, video, 0.1))
    torch.testing.assert_close(intra_modal([audio, video], 0.1, different), intra_modal([audio, video], 0.1))
    # Clip 0 comes twice, with the same sound and nearly the same picture.
    audio[5], video[5] = audio[0], video[0] + 0.01 * video[1]
    twice = torch.tensor([0, 1, 2, 3, 4, 0])
    told, untold = inter_modal(audio, video, 0.1, twice), inter_modal(audio, video, 0.1)
    rows = []
    for a, b in ((audio, video), (video, audio)):
        for v in range(2):
            logits = (
                torch.nn.functional.normalize(a[:, v], dim=1) @ torch.nn.functional.normalize(b[:, v], dim=1).T / 0.1
            )
            for i in range(6):
                others = [j for j in range(6) if j == i or twice[j] != twice[i]]
                rows.append(logits[i, others].logsumexp(0) - logits[i, i])
    torch.testing.assert_close(told, torch.stack(rows).mean())
    assert told < untold
