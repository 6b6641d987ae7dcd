"""The harness knows right from wrong: eager code and ours agree, and a planted error of every kind is named."""

from __future__ import annotations

import pytest
import torch

import maekernels
from benchmarks.cases import CASES, Case
from benchmarks.check import complaint, expected
from benchmarks.problems import PROBLEMS, Output, Problem
from diffmavil.config.presets import preset

VIDEO = Case("video", "video", (4, 32, 48), (2, 16, 16), 24, 16, 0.75, cpu_batch=3, cuda_batch=3)
IMAGE = Case("image", "image", (32, 48), (16, 16), 24, 16, 0.5, cpu_batch=3, cuda_batch=3)
SPECTROGRAM = Case("spectrogram", "spectrogram", (64, 32), (16, 16), 24, 16, 0.75, cpu_batch=3, cuda_batch=3)
SMALL = (VIDEO, IMAGE, SPECTROGRAM)


def make(op: str, case: Case = VIDEO, dtype: torch.dtype = torch.float32) -> Problem:
    return PROBLEMS[op](case, 3, torch.device("cpu"), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
@pytest.mark.parametrize("op", PROBLEMS)
def test_eager_reference_and_ours_are_right(op: str, case: Case, dtype: torch.dtype):
    problem = make(op, case, dtype)
    right = expected(problem)
    assert complaint(problem, lambda p: p.eager(), right, draws_its_own=True) is None
    assert complaint(problem, lambda p: p.ours("torch"), right) is None
    assert complaint(problem, lambda p: p.ours(), right) is None


@pytest.mark.parametrize("op", sorted(set(PROBLEMS) - {"random_mask"}))
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda out: out * 1.01, "relative error", id="one percent off"),
        pytest.param(lambda out: out * float("nan"), "relative error of nan", id="nan"),
        pytest.param(lambda out: out[None], "output 0 is", id="another shape"),
    ],
)
def test_a_wrong_output_is_named(op: str, spoil, said: str):
    problem = make(op)

    def wrong(p: Problem) -> Output:
        out = p.ours()
        assert isinstance(out, torch.Tensor)
        return spoil(out)

    assert said in (complaint(problem, wrong, expected(problem)) or "")


@pytest.mark.parametrize("op", [op for op, kind in PROBLEMS.items() if kind.leaves])
def test_a_wrong_gradient_is_named(op: str):
    problem = make(op)

    def wrong(p: Problem) -> Output:
        out = p.ours()
        assert isinstance(out, torch.Tensor)
        return out.detach() + 1.01 * (out - out.detach())

    assert "gradient 0 has a relative error" in (complaint(problem, wrong, expected(problem)) or "")


def test_ids_that_are_not_ours_are_named():
    problem = make("random_mask")

    def wrong(p: Problem) -> Output:
        return maekernels.random_mask(p.batch, p.case.tokens, p.case.kept, seed=1)

    assert "wrong integers" in (complaint(problem, wrong, expected(problem)) or "")


def test_noise_of_another_stream_is_named_unless_it_may_be_its_own():
    problem = make("add_noise")
    assert "relative error" in (complaint(problem, lambda p: p.eager(), expected(problem)) or "")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        pytest.param(lambda p, noise: 1.1 * noise, "variance", id="too strong"),
        pytest.param(lambda p, noise: noise + 0.1, "mean", id="not centred"),
    ],
)
def test_noise_that_is_not_standard_normal_is_named(spoil, said: str):
    problem = make("add_noise", Case("big", "image", (128, 128), (16, 16), 24, 16, 0.75, cpu_batch=3, cuda_batch=3))

    def wrong(p) -> Output:
        alpha_bar = p.alpha_bar[:, None, None]
        return alpha_bar.sqrt() * p.x0 + (1 - alpha_bar).sqrt() * spoil(p, torch.randn_like(p.x0))

    assert said in (complaint(problem, wrong, expected(problem), draws_its_own=True) or "")


def test_draws_that_repeat_are_named():
    problem = make("add_noise")
    said = complaint(problem, lambda p: p.ours(), expected(problem), draws_its_own=True)
    assert said == "two draws are the same"


def test_masks_that_do_not_fit_their_ids_are_named():
    problem = make("random_mask")

    def wrong(p: Problem) -> Output:
        ids_keep, mask = p.eager()
        return ids_keep, mask.roll(1, dims=1)

    said = complaint(problem, wrong, expected(problem), draws_its_own=True)
    assert said == "the ids kept are not the positions left unmasked"


@pytest.mark.parametrize(("name", "config"), [("base-16-frames", "mavil-base"), ("large", "mavil-large")])
def test_cases_are_the_shapes_of_the_presets(name: str, config: str):
    case, model = CASES[name], preset(config).model
    assert (case.tokens, case.patch_dim) == (model.video.tokens, model.video.patch_dim)
    assert (case.width, case.decoder_width) == (model.encoder.width, model.video_decoder.width)
    assert (case.mean, case.std) == (model.video.mean, model.video.std)


def test_the_audio_case_is_that_of_the_preset():
    case, audio = CASES["base-audio"], preset("mavil-base").model.audio
    assert (case.tokens, case.patch_dim) == (audio.tokens, audio.patch_dim)
