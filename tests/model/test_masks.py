"""What is hidden as a whole: tubes and frames of video, columns and rows of the spectrogram."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diffmavil.model import DiffMAViL
from diffmavil.model.branch import Branch
from tests.model.small import SMALL

VIDEO, AUDIO = SMALL.video.grid, SMALL.audio.grid  # (2, 4, 4) and (8, 4)


def branch_of(**masks: str) -> Branch:
    model = DiffMAViL(replace(SMALL, **masks))  # type: ignore[arg-type]
    return model.video if "video_masks" in masks else model.audio


def visible(branch: Branch, keep: int, clips: int = 64) -> Tensor:
    """bool `[clips, *grid]`, of the first view."""
    ids = branch.mask_view(clips, keep, 0, seed=1, offset=0, device=torch.device("cpu")).ids_keep
    seen = torch.zeros(clips, branch.tokens, dtype=torch.bool).scatter_(1, ids.long(), True)
    return seen.reshape(clips, *branch.grid)


@pytest.mark.parametrize(
    ("masks", "keep", "axes"),
    [
        ({"video_masks": "tubes"}, 8, (1,)),
        ({"video_masks": "frames"}, 16, (2, 3)),
        ({"audio_masks": "times"}, 12, (2,)),
        ({"audio_masks": "mels"}, 16, (1,)),
    ],
)
def test_a_whole_is_seen_or_hidden(masks: dict[str, str], keep: int, axes: tuple[int, ...]) -> None:
    seen = visible(branch_of(**masks), keep)
    assert (seen.flatten(1).sum(1) == keep).all()
    assert torch.equal(seen.all(axes), seen.any(axes))
    shown = seen.all(axes).flatten(1).float().mean(0)
    assert shown.min() > 0.1, "each of them is seen at times"


def test_a_share_that_is_no_whole_number_splits_one_of_them() -> None:
    seen = visible(branch_of(audio_masks="times"), 10)
    assert (seen.flatten(1).sum(1) == 10).all()
    assert ((seen.any(2) & ~seen.all(2)).sum(1) == 1).all()


def test_crosses_leave_what_lies_in_visible_columns_and_rows() -> None:
    """The largest rectangle of columns and rows that has room in what is kept is seen whole."""
    seen = visible(branch_of(audio_masks="crosses"), 12)
    columns, rows = seen.any(2), seen.any(1)
    hull = columns[:, :, None] & rows[:, None, :]
    assert torch.equal(hull & seen, seen)
    assert hull.flatten(1).sum(1).float().mean() < 20, (
        "of 32 patches; single ones would have nearly all of them as hull"
    )


def test_weights_know_nothing_of_masks() -> None:
    plain, tubes = DiffMAViL(SMALL), DiffMAViL(replace(SMALL, video_masks="tubes"))
    assert plain.state_dict().keys() == tubes.state_dict().keys()
    assert dict(plain.named_buffers()).keys() == dict(tubes.named_buffers()).keys()


@pytest.mark.parametrize("name", ["video_masks", "audio_masks"])
def test_another_kind_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"model.{name}='blocks': must be one of \('patches', "):
        replace(SMALL, **{name: "blocks"})  # type: ignore[arg-type]
