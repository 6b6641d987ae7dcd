"""The classifier: losses by hand, what is random, what is frozen, and what it takes over from pretrained weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffmavil.config import HeadConfig, Modalities
from diffmavil.model.classifier import Classifier, ClassifierDraws, start_from
from diffmavil.model.flops import classifier_flops
from tests.model.small import SMALL

PLAIN = HeadConfig(
    classes=("bell", "dog", "rain"),
    labels="one",
    drop_path=0,
    mask_time=0,
    mask_mel=0,
    label_smoothing=0,
    fusion_depth=1,
)
RANDOM = replace(PLAIN, drop_path=0.4, mask_time=0.25, mask_mel=0.5, mask_video=0.3)
SEVERAL = replace(PLAIN, labels="several")


def made(head: HeadConfig = PLAIN, modalities: Modalities = "av", seed: int = 0) -> Classifier:
    """A classifier whose head tells something, as after some training."""
    torch.manual_seed(seed)
    model = Classifier(replace(SMALL, modalities=modalities), head)
    torch.nn.init.normal_(model.head.weight, std=0.1)
    return model


def heard(clips: int) -> Tensor:
    return torch.full((clips,), SMALL.audio.frames)


def one_hot(clips: int) -> Tensor:
    return F.one_hot(torch.arange(clips) % 3, 3).float()


@pytest.mark.parametrize("modalities", ["av", "audio", "video"])
@pytest.mark.parametrize("head", [PLAIN, SEVERAL], ids=["one", "several"])
def test_scores_are_probabilities_of_each_class(clips, modalities, head):
    video, spec = clips(4)
    video, spec = video if modalities != "audio" else video[:, :0], spec if modalities != "video" else spec[:, :0]
    model = made(head, modalities)
    with torch.no_grad():
        scores = model.scores(video, spec, heard(4))
    assert scores.shape == (4, 3)
    assert scores.dtype == torch.float32
    assert ((scores > 0) & (scores < 1)).all()
    assert torch.allclose(scores.sum(1), torch.ones(4)) == (head.labels == "one")
    (loss,) = model(video, spec, heard(4), one_hot(4), seed=0, offset=0)
    assert loss.shape == ()
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_scores_are_not_rounded_to_bf16(clips):
    """Of equal scores the order of the classes would make the first the answer."""
    video, spec = clips(4)
    model = made(PLAIN)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features, scores = (read(video, spec, heard(4)) for read in (model.features, model.scores))
    logits = torch.nn.functional.linear(features.float(), model.head.weight, model.head.bias)
    assert not torch.equal(logits, logits.bfloat16().float())
    torch.testing.assert_close(scores, logits.softmax(dim=1))


def test_the_loss_of_one_label(clips):
    video, spec = clips(4)
    model = made(replace(PLAIN, label_smoothing=0.1))
    targets = torch.tensor([[1, 0, 0], [0.3, 0, 0.7], [0, 1, 0], [0, 0.5, 0.5]])
    weights = torch.tensor([0.5, 1.0, 3.0])
    with torch.no_grad():
        (loss,) = model(video, spec, heard(4), targets, seed=0, offset=0, weights=weights)
        logs = model.scores(video, spec, heard(4)).log()
    smooth = 0.9 * targets + 0.1 / 3
    assert loss.item() == pytest.approx(-(smooth * weights * logs).sum(1).mean().item(), rel=1e-5)


def test_the_loss_of_several_labels(clips):
    video, spec = clips(4)
    model = made(replace(SEVERAL, label_smoothing=0.1))
    targets = torch.tensor([[1.0, 1, 0], [0, 0, 0.6], [0, 1, 0], [1, 1, 1]])
    weights = torch.tensor([0.5, 1.0, 3.0])
    with torch.no_grad():
        (loss,) = model(video, spec, heard(4), targets, seed=0, offset=0, weights=weights)
        scores = model.scores(video, spec, heard(4))
    each = -(targets * scores.log() + (1 - targets) * (1 - scores).log())
    assert loss.item() == pytest.approx((weights * each).mean().item(), rel=1e-5)  # labels are not smoothed


def test_the_first_loss_is_that_of_knowing_nothing(clips):
    torch.manual_seed(0)
    model = Classifier(SMALL, PLAIN)
    (loss,) = model(*clips(6), heard(6), one_hot(6), seed=0, offset=0)
    assert loss.item() == pytest.approx(torch.tensor(3.0).log().item(), abs=1e-3)


def test_masks_are_whole_columns_and_rows_of_the_spectrogram(clips):
    model = made(replace(RANDOM, mask_time=0.25, mask_mel=0.5))
    drawn = model.draw(*clips(40), seed=5, offset=0)
    columns, rows = model.audio.grid
    assert (columns, rows) == (8, 4)
    seen = torch.zeros(40, columns * rows, dtype=torch.bool).scatter(1, drawn.ids["audio"][:, 0].long(), True)
    seen = rearrange(seen, "b (t m) -> b t m", m=rows)
    kept_columns, kept_rows = seen.any(2), seen.any(1)
    assert (kept_columns.sum(1) == 6).all()
    assert (kept_rows.sum(1) == 2).all()
    assert torch.equal(seen, kept_columns[:, :, None] & kept_rows[:, None, :])
    assert drawn.ids["audio"].shape == (40, 1, model.kept("audio")) == (40, 1, 12)
    assert drawn.ids["video"].shape == (40, 1, model.kept("video")) == (40, 1, round(0.7 * 32))
    assert kept_columns.any(0).all()
    assert not kept_columns.all(0).any()


def test_masks_leave_one_column_and_row_at_least(clips):
    model = made(replace(RANDOM, mask_time=0.99, mask_mel=0.99, mask_video=0.99))
    assert (model.kept("audio"), model.kept("video")) == (1, 1)
    (loss,) = model(*clips(4), heard(4), one_hot(4), seed=0, offset=0)
    assert loss.isfinite()


def test_all_that_is_random_belongs_to_seed_and_position(clips):
    """A batch cut in two, as over two processes, draws the same; another seed and another place draw otherwise."""
    model = made(RANDOM)
    video, spec = clips(6)

    def drawn(rows: slice, seed: int, offset: int) -> list[Tensor]:
        found = model.draw(video[rows], spec[rows], seed=seed, offset=offset)
        scales = [rearrange(found.scales[name], "d two b -> b d two") for name in ("audio", "video", "fusion")]
        return [found.ids["audio"], found.ids["video"], *scales]

    whole = drawn(slice(0, 6), 3, 100)
    parts = zip(drawn(slice(0, 2), 3, 100), drawn(slice(2, 6), 3, 102), strict=True)
    assert all(torch.equal(torch.cat(part), one) for part, one in zip(parts, whole, strict=True))
    for other in (drawn(slice(0, 6), 4, 100), drawn(slice(0, 6), 3, 106)):
        assert not any(torch.equal(a, b) for a, b in zip(whole[:2], other[:2], strict=True))
    with torch.no_grad():
        (at_once,) = model(video, spec, heard(6), one_hot(6), seed=3, offset=100)
        cut = [
            model(video[r], spec[r], heard(6)[r], one_hot(6)[r], seed=3, offset=100 + r.start)[0]
            * (r.stop - r.start)
            / 6
            for r in (slice(0, 2), slice(2, 6))
        ]
    assert sum(cut) == pytest.approx(at_once.item(), rel=1e-5)


def test_blocks_are_left_out_by_their_rate_and_weigh_1_in_the_mean(clips):
    model = made(replace(RANDOM, drop_path=0.4, fusion_depth=3))
    scales = model.draw(*clips(1), seed=1, offset=0).scales
    assert {name: x.shape for name, x in scales.items()} == {
        "audio": (2, 2, 1),
        "video": (2, 2, 1),
        "fusion": (3, 2, 1),
    }
    video, spec = clips(1)
    many = model.draw(video.expand(8000, -1, -1, -1, -1), spec.expand(8000, -1, -1), seed=1, offset=0).scales
    rates = {"audio": (0.0, 0.4), "video": (0.0, 0.4), "fusion": (0.4, 0.4, 0.4)}
    for name, by_block in rates.items():
        for rate, scale in zip(by_block, many[name], strict=True):
            assert scale.unique().tolist() == pytest.approx([0, 1 / (1 - rate)] if rate else [1])
            assert scale.mean(1).tolist() == pytest.approx([1, 1], abs=0.04)
    assert not torch.equal(many["audio"][1], many["video"][1])
    assert not torch.equal(many["audio"][1, 0], many["audio"][1, 1])


@pytest.mark.parametrize(("learning", "whole"), [(0, 2), (1, 1), (2, 0), (None, 0)])
def test_frozen_blocks_are_never_left_out(clips, learning, whole):
    """RANDOM's first block has a rate of 0, so of a depth of 2 the second tells."""
    video, spec = clips(1)
    model = made(replace(RANDOM, drop_path=0.4, fusion_depth=3, blocks=learning))
    scales = model.draw(video.expand(500, -1, -1, -1, -1), spec.expand(500, -1, -1), seed=1, offset=0).scales
    for name in ("audio", "video"):
        assert (scales[name][:whole] == 1).all()
        assert (scales[name][1] == 0).any() == (whole < 2)
    assert (scales["fusion"] == 0).any()


def test_without_drop_path_and_masks_training_sees_what_scores_see(clips):
    video, spec = clips(4)
    model = made()
    assert model.draw(video, spec, seed=0, offset=0).scales == {}
    with torch.no_grad():
        (loss,) = model(video, spec, heard(4), one_hot(4), seed=0, offset=0)
        plain = model.scores(video, spec, heard(4))
    assert loss.item() == pytest.approx(-(one_hot(4) * plain.log()).sum(1).mean().item(), rel=1e-6)


def test_a_block_that_is_left_out_adds_nothing(clips):
    """Scales of 0 for all blocks are as no blocks; of 1, as no scales."""
    model, (video, spec) = made(modalities="audio"), clips(3)
    ids = model.draw(video, spec, seed=0, offset=0).ids

    def loss(*scales: Tensor) -> float:
        draws = ClassifierDraws(ids, {"audio": scales[0]} if scales else {})
        with torch.no_grad():
            return model(video, spec, heard(3), one_hot(3), seed=0, offset=0, draws=draws)[0].item()

    assert loss(torch.ones(2, 2, 3)) == loss()
    without = loss(torch.zeros(2, 2, 3))
    assert without != loss()
    for block in model.audio.encoder.blocks:
        for parameter in block.parameters():
            torch.nn.init.normal_(parameter)
    assert loss(torch.zeros(2, 2, 3)) == without


def test_padding_is_not_pooled(clips):
    """What the last block makes of tokens behind the sound's end has no way into the scores."""
    model, (video, spec) = made(modalities="audio"), clips(2)
    ends = torch.tensor([17, 64])  # three columns of eight frames, and all eight
    with torch.no_grad():
        tokens = model.audio.encode(spec, model.draw(video, spec, seed=0, offset=0).ids["audio"])[:, 1:]
        grid = rearrange(tokens, "b (t m) d -> b t m d", t=8)
        pooled = torch.stack([grid[0, :3].mean((0, 1)), grid[1].mean((0, 1))])
        by_hand = model.head(model.norm(pooled)).softmax(1)
        assert torch.allclose(model.scores(video, spec, ends), by_hand, atol=1e-6)


def test_a_clip_that_lost_all_columns_of_its_sound_is_pooled_as_a_whole(clips):
    model, (video, spec) = made(replace(PLAIN, mask_time=0.8), modalities="audio"), clips(30)
    ends = torch.ones(30, dtype=torch.int64)
    (loss,) = model(video, spec, ends, one_hot(30), seed=0, offset=0)
    assert loss.isfinite()


@pytest.mark.parametrize(
    ("learning", "frozen"), [(0, {"embed", "0", "1", "norm"}), (1, {"embed", "0"}), (2, {"embed"})]
)
def test_the_top_blocks_alone_learn(clips, learning, frozen):
    model = made(replace(PLAIN, blocks=learning))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (loss,) = model(*clips(6), heard(6), one_hot(6), seed=0, offset=0)
    loss.backward()
    torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1).step()
    for name, parameter in model.named_parameters():
        part = name.split(".encoder.")[-1].removeprefix("blocks.").split(".")[0] if ".encoder." in name else ""
        assert parameter.requires_grad == (part not in frozen), name
        assert (parameter.grad is None) == (part in frozen), name
        assert torch.equal(parameter, before[name]) == (part in frozen), name


def test_all_learn_by_default():
    assert all(p.requires_grad for p in made().parameters())


@pytest.mark.parametrize("blocks", [3, 12])
def test_more_blocks_than_there_are(blocks):
    with pytest.raises(ValueError, match=rf"head\.blocks={blocks}: must be at most 2, the depth of the encoders"):
        made(replace(PLAIN, blocks=blocks))


@pytest.mark.parametrize(
    ("head", "says"),
    [
        (replace(PLAIN, classes=("one",)), r"head\.classes=\('one',\): must be at least two names"),
        (replace(PLAIN, labels="auto"), r"head\.labels='auto': must be one or several"),
    ],
)
def test_what_a_head_must_know(head, says):
    with pytest.raises(ValueError, match=says):
        made(head)


# From pretrained weights


def test_encoders_and_fusion_are_the_pretrained_ones(build, clips):
    """Features of unmasked clips are equal bit for bit, and the head is new."""
    pretrained, model = build(SMALL), made(seed=5)
    head = model.head.weight.clone()
    told = start_from(model, pretrained.state_dict())
    taken = sum(".decoder." not in name for name in pretrained.state_dict())
    assert told == [
        f"taken from the weights: {taken} tensors; new: the head",
        "left over: audio.decoder, video.decoder",
    ]
    video, spec = clips(3)
    seen = {}
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    with torch.no_grad():
        model.scores(video, spec, torch.tensor([64, 30, 9]))
        features = pretrained.features(video, spec, torch.tensor([64, 30, 9]))
    assert torch.equal(seen["pooled"], features.fused)
    assert torch.equal(model.head.weight, head)


@pytest.mark.parametrize("modalities", ["audio", "video"])
def test_one_branch_of_weights_that_have_both(build, clips, modalities):
    pretrained, model = build(SMALL), made(modalities=modalities, seed=5)
    told = start_from(model, pretrained.state_dict())
    assert told[-1].startswith("left over: audio.") and "fusion.blocks" in told[-1]  # noqa: PT018  # one line
    seen = {}
    model.norm.register_forward_pre_hook(lambda _, inputs: seen.update(pooled=inputs[0]))
    video, spec = clips(3)
    with torch.no_grad():
        model.scores(video, spec, heard(3))
        features = pretrained.features(video, spec, heard(3))
    assert torch.equal(seen["pooled"], getattr(features, modalities))


def test_fusion_blocks_beyond_the_pretrained_ones_begin_as_the_identity(build, clips):
    pretrained, model, deeper = build(SMALL), made(seed=5), made(replace(PLAIN, fusion_depth=3), seed=6)
    start_from(model, pretrained.state_dict())
    told = start_from(deeper, pretrained.state_dict())
    assert "new, beginning as the identity: 2 fusion blocks" in told
    deeper.head.load_state_dict(model.head.state_dict())
    video, spec = clips(3)
    with torch.no_grad():
        scores = [one.scores(video, spec, heard(3)) for one in (model, deeper)]
    assert torch.equal(scores[0], scores[1])
    (loss,) = deeper(*clips(3), heard(3), one_hot(3), seed=0, offset=0)
    loss.backward()
    last = [deeper.get_parameter(f"fusion.blocks.{i}.mlp.2.weight").grad for i in (1, 2)]
    assert all(grad is not None and grad.any() for grad in last)


def test_fusion_of_weights_that_have_none_is_told_to_be_new(build):
    told = start_from(made(), build(replace(SMALL, fusion_depth=0)).state_dict())
    assert "new: fusion.audio_type, fusion.norm.bias, fusion.norm.weight, fusion.video_type" in told


def test_from_another_classifier():
    first, second = made(seed=1), made(replace(PLAIN, classes=("a", "b", "c", "d", "e")), seed=2)
    start_from(second, first.state_dict())
    own = second.state_dict()
    assert all(torch.equal(own[name], value) for name, value in first.state_dict().items() if "encoder" in name)
    assert second.head.weight.shape == (5, 96)


def test_weights_without_the_branch(build):
    deaf = build(replace(SMALL, modalities="video")).state_dict()
    with pytest.raises(ValueError, match=r"--task='audio': must be among what the weights have: video"):
        start_from(made(modalities="audio"), deaf)


def test_weights_of_another_width(build):
    wide = replace(SMALL, encoder=replace(SMALL.encoder, width=60))
    with pytest.raises(ValueError, match=r"audio\.encoder\.embed\.cls=\(1, 1, 60\): must be \(1, 1, 48\)"):
        start_from(made(), build(wide).state_dict())


@pytest.mark.parametrize("blocks", [None, 1, 0])
def test_flops_of_a_step_leave_out_what_does_not_learn(clips, blocks):
    model, (video, spec) = made(replace(PLAIN, blocks=blocks), "video"), clips(2)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(video, spec, heard(2), one_hot(2), seed=0, offset=0)[0].backward()
    told = classifier_flops(model) + 2 * classifier_flops(model, learning=True)
    # Patch embeddings have no gradient of their input, which three forwards count: a tenth of so small a model.
    assert 2 * told == pytest.approx(counter.get_total_flops(), rel=0.12)


@pytest.mark.parametrize("modalities", ["av", "audio", "video"])
def test_flops_agree_with_torch_on_a_real_forward(clips, modalities):
    model, (video, spec) = made(RANDOM, modalities), clips(2)
    # torch's counter does not know the fused attention for CPU; the unfused one is two matmuls.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(video, spec, heard(2), one_hot(2), seed=0, offset=0)
    assert 2 * classifier_flops(model) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_recomputing_blocks_changes_no_gradient(clips):
    model = made(RANDOM)
    gradients: list[dict[str, Tensor]] = []
    for recompute in (False, True):
        for branch in model.branches.values():
            branch.encoder.blocks.recompute = recompute
        model.fusion.blocks.recompute = recompute
        model.zero_grad()
        model(*clips(4), heard(4), one_hot(4), seed=0, offset=0)[0].backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_drawn_beforehand_or_inside_is_the_same(clips):
    """As a CUDA graph has it."""
    model, (video, spec) = made(RANDOM), clips(4)
    draws: ClassifierDraws = model.draw(video, spec, seed=2, offset=8, weights=None)
    losses = [model(video, spec, heard(4), one_hot(4), seed=2, offset=8, draws=d)[0] for d in (None, draws)]
    assert torch.equal(losses[0], losses[1])
