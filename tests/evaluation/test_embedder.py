"""`diffmavil.load(...).embed` and `.classify`: the evaluation's features of whatever is given."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import diffmavil
from diffmavil.config import Config, FinetuneConfig, HeadConfig
from diffmavil.data.clips import ClipSet
from diffmavil.data.sources import split_source
from diffmavil.evaluation.classify import predict
from diffmavil.evaluation.embed import Embedder
from diffmavil.evaluation.features import KINDS, extract, untrained_model
from diffmavil.evaluation.frozen_model import FrozenModel
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.weights import export_weights
from tests.data.clip_files import MEDIA, write_clip
from tests.gpu import cuda_alone

RATE = 16_000


@pytest.fixture(scope="module")
def deep(config: Config) -> Config:
    """Three encoder blocks, so that there are some to choose from."""
    encoder = replace(config.model.encoder, depth=3)
    return replace(config, model=replace(config.model, encoder=encoder), train=replace(config.train, precision="fp32"))


@pytest.fixture(scope="module")
def model(deep: Config, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    folder = tmp_path_factory.mktemp("run")
    export_weights(untrained_model(deep.model, seed=5), deep, folder / "model.safetensors")
    return diffmavil.load(folder, device="cpu")


@pytest.fixture(scope="module")
def clips(deep: Config) -> ClipSet:
    held_out = split_source(deep.data).held_out
    return replace(held_out, clips=held_out.clips[:6])


@pytest.fixture(scope="module")
def paths(clips: ClipSet) -> list[str]:
    return [clip.path for clip in clips.clips]


@pytest.fixture
def sound() -> np.ndarray:
    """float32 `[S]`, three seconds."""
    return (0.1 * np.random.default_rng(1).standard_normal(3 * RATE)).astype(np.float32)


@pytest.fixture
def frames() -> np.ndarray:
    """Six seconds at 10 frames a second, wider than high."""
    return np.random.default_rng(2).integers(0, 256, (60, 40, 56, 3), np.uint8)


@pytest.mark.parametrize("crops", [1, 3])
def test_features_are_those_of_the_evaluation(
    model: Embedder, deep: Config, clips: ClipSet, paths: list[str], crops: int
):
    expected = extract({"it": untrained_model(deep.model, seed=5)}, deep, clips, batch_size=4, crops=crops)
    found = model.embed(paths, windows=crops, batch_size=4)
    assert [one.name for one in found] == paths
    for kind in KINDS:
        got = torch.stack([getattr(one, kind) for one in found])
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected.features["it"][kind], rtol=0, atol=1e-6 if crops > 1 else 0)


def test_one_clip_gives_one_embedding(model: Embedder, paths: list[str]):
    one = model.embed(Path(paths[0]))
    (same,) = model.embed([paths[0]])
    assert {kind: x.shape for kind, x in one.clip.items()} == {"audio": (48,), "video": (48,), "fused": (96,)}
    assert torch.equal(one.fused, same.fused)
    assert torch.equal(one.fused, one.windows["fused"][0])
    assert one.times["video"].tolist() == [[0.5, 4.5]]
    assert one.times["audio"][0].mean() == pytest.approx(2.5, abs=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("given", ["script", "stdin"])
def test_a_script_needs_no_guard_for_other_processes(model: Embedder, paths, tmp_path, environment, given: str):
    code = f"""
import diffmavil
found = diffmavil.load({str(model.weights)!r}).embed({paths[:2]!r}, workers=2)
print(len(found), "embedded")
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, *([str(script)] if given == "script" else ["-"])]
    done = subprocess.run(command, input=code, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout == "2 embedded\n", done.stderr


def test_gradients_can_be_taken_of_what_is_learnt_on_top(model: Embedder, paths: list[str]):
    head = torch.nn.Linear(96, 2)
    head(model.embed(paths[0]).fused).sum().backward()
    assert head.weight.grad is not None


def test_windows_do_not_depend_on_the_batch_or_on_who_decodes(model: Embedder, paths: list[str]):
    alone = [model.embed(path, hop=0.25, batch_size=1) for path in paths[:3]]
    together = model.embed(paths[:3], hop=0.25, batch_size=7, workers=2)
    for one, other in zip(alone, together, strict=True):
        assert len(one.windows["fused"]) == 5
        assert torch.equal(one.times["video"], other.times["video"])
        assert one.times["video"][:, 0].tolist() == pytest.approx([0, 0.25, 0.5, 0.75, 1])
        torch.testing.assert_close(one.windows["fused"], other.windows["fused"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_one_modality_alone(model: Embedder, paths: list[str], kind: str):
    """What each encoder gives does not depend on the other; of sound alone the window may lie elsewhere."""
    given: Any = {kind: [paths[0]]}
    (alone,) = model.embed(**given)
    assert list(alone.windows) == [kind]
    assert list(alone.times) == [kind]
    both = model.embed(paths[0])
    assert torch.equal(getattr(alone, kind), getattr(both, kind))
    with pytest.raises(AttributeError, match=f"{paths[0]}: has no fused features, only {kind}"):
        _ = alone.fused


def test_picture_and_sound_of_one_file_given_twice_are_the_file(model: Embedder, paths: list[str]):
    pair = model.embed(video=paths[0], audio=paths[0])
    torch.testing.assert_close(pair.fused, model.embed(paths[0]).fused, rtol=0, atol=1e-5)


def test_arrays_and_tensors_of_any_rate_and_size(model: Embedder, frames: np.ndarray, sound: np.ndarray):
    both = model.embed(video=frames, fps=10, audio=sound, sample_rate=RATE)
    assert both.name == "clip 0"
    assert both.times["video"][0].tolist() == [0.0, 3.0 + 1.0]
    tensors = model.embed(
        video=torch.from_numpy(frames), fps=10.0, audio=torch.from_numpy(sound)[None], sample_rate=RATE
    )
    assert torch.equal(both.fused, tensors.fused)
    half = torch.from_numpy(sound).bfloat16()  # which numpy has not
    same = model.embed(audio=[half, half.float()], sample_rate=RATE)
    assert torch.equal(same[0].audio, same[1].audio)
    stereo = np.stack([sound, sound])
    faster = model.embed(audio=[stereo, np.repeat(sound, 3)], sample_rate=[RATE, 3 * RATE])
    assert torch.equal(faster[0].audio, both.audio) is False, "sound alone has its window at its own centre"
    torch.testing.assert_close(faster[1].times["audio"], faster[0].times["audio"])
    assert torch.nn.functional.cosine_similarity(faster[0].audio, faster[1].audio, dim=0) > 0.9
    many = model.embed(video=np.stack([frames, frames[::-1]]), fps=10)
    assert len(many) == 2
    assert not torch.equal(many[0].video, many[1].video)


def test_a_short_sound_is_padded_and_padding_is_not_pooled(model: Embedder, sound: np.ndarray):
    """As the model itself has it: tokens that begin in the sound, of the spectrogram with its padding."""
    short = model.embed(audio=sound[: RATE // 4], sample_rate=RATE, tokens=True)
    tokens = short.tokens["audio"][0]
    assert tokens.shape == (4, 2, 48)
    assert short.times["audio"].tolist() == [[0.0, 0.25]]
    begin = short.token_times["audio"][0, :, 0]
    assert begin.tolist() == pytest.approx([0, 0.16, 0.32, 0.48])
    heard = begin < short.times["audio"][0, 1]
    torch.testing.assert_close(short.audio, tokens[heard].mean((0, 1)), rtol=1e-5, atol=1e-6)


def test_tokens_lie_in_a_grid_and_know_their_times(model: Embedder, paths: list[str]):
    one = model.embed(paths[0], windows=2, tokens=True)
    assert one.tokens["video"].shape == (2, 2, 2, 2, 48)
    torch.testing.assert_close(one.tokens["video"].mean((1, 2, 3)), one.windows["video"], rtol=1e-5, atol=1e-6)
    assert one.token_times["video"][1].tolist() == [[0.75, 2.75], [2.75, 4.75]]
    assert one.token_times["audio"].shape == (2, 4, 2)


def test_layers_are_the_outputs_of_the_encoder_blocks(model: Embedder, paths: list[str]):
    one = model.embed(paths[0], layers="all", tokens=True)
    assert one.layers["audio"].shape == (1, 3, 48)
    assert one.layer_tokens["video"].shape == (1, 3, 2, 2, 2, 48)
    chosen = model.embed(paths[0], layers=[-1, 0])
    assert torch.equal(chosen.layers["video"], one.layers["video"][:, [2, 0]])
    assert torch.equal(one.fused, model.embed(paths[0]).fused), "reading blocks changes nothing"
    last = model.model.video.encoder.norm(one.layer_tokens["video"][:, -1])
    torch.testing.assert_close(last, one.tokens["video"])


@pytest.mark.parametrize("kind", ["audio", "video"])
def test_a_model_with_one_modality(deep: Config, tmp_path: Path, paths: list[str], kind):
    config = replace(deep, model=replace(deep.model, modalities=kind))
    export_weights(untrained_model(config.model, seed=1), config, tmp_path / "model.safetensors")
    model = diffmavil.load(tmp_path / "model.safetensors", device="cpu")
    assert model.modalities == kind
    assert list(model.embed(paths[0]).clip) == [kind]
    other = "video" if kind == "audio" else "audio"
    alone = {"audio": "sound alone", "video": "picture alone"}[kind]
    with pytest.raises(ValueError, match=f"{other}='given': must be left out: the model has {alone}"):
        model.embed(**cast("dict[str, Any]", {other: paths[0]}))


def test_the_type_of_the_computation_is_chosen(model: Embedder, paths: list[str]):
    half = diffmavil.load(model.weights, device="cpu", dtype=torch.bfloat16)
    assert model.dtype == torch.float32, "as the run was trained"
    found = half.embed(paths[0])
    assert found.fused.dtype == torch.float32
    assert not torch.equal(found.fused, model.embed(paths[0]).fused)
    torch.testing.assert_close(found.fused, model.embed(paths[0]).fused, rtol=0.1, atol=0.1)
    with pytest.raises(
        ValueError, match=r"dtype=torch\.float16: must be one of torch\.float32, torch\.bfloat16 on cpu"
    ):
        diffmavil.load(model.weights, device="cpu", dtype=torch.float16)
    with pytest.raises(ValueError, match="device='abacus': must be one that torch knows"):
        diffmavil.load(model.weights, device="abacus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(model: Embedder):
    with pytest.raises(ValueError, match="device='cuda': must be cpu: torch finds no GPU"):
        diffmavil.load(model.weights, device="cuda")


@pytest.mark.gpu
@cuda_alone
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_on_a_gpu(model: Embedder, paths: list[str], dtype: torch.dtype):
    found = diffmavil.load(model.weights, dtype=dtype).embed(paths[:2], windows=2, layers="all", tokens=True)
    for one, other in zip(found, model.embed(paths[:2], windows=2, layers="all", tokens=True), strict=True):
        assert one.fused.device.type == "cpu"
        close = 2e-3 if dtype == torch.float32 else 0.1
        torch.testing.assert_close(one.fused, other.fused, rtol=close, atol=close)


@pytest.mark.skipif(not MEDIA.exists(), reason=f"no real clips at {MEDIA} (DIFFMAVIL_MEDIA)")
def test_real_clips(model: Embedder):
    """The smallest of them, that it stays quick."""
    files = sorted(file for file in MEDIA.iterdir() if file.suffix in (".mp4", ".webm", ".mpg"))
    smallest = sorted(files, key=lambda file: file.stat().st_size)[:6]
    for one in model.embed(smallest):
        assert all(x.isfinite().all() for x in one.clip.values())
        ((start, end),) = one.times["video"].tolist()
        assert end - start == pytest.approx(4.0, abs=1.1)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "must be clips alone, or video, or audio"),
        ({"clips": "a.mp4", "audio": "a.wav"}, "must be clips alone"),
        ({"clips": 3}, "clips='int': must be a path, an array, a tensor, or a list of these"),
        ({"clips": np.zeros(3)}, "clips='ndarray': must be a path; arrays are given as video= and audio="),
        ({"clips": []}, "at least one"),
        ({"clips": "a.mp4", "layers": [3]}, r"layers=3: must be in \[-3, 3\)"),
        ({"clips": "a.mp4", "layers": "last"}, "layers='last': must be 'all', or numbers"),
        ({"clips": "a.mp4", "batch_size": 0}, "batch_size=0: must be >= 1"),
        ({"video": ["a.mp4", "b.mp4"], "audio": ["a.wav"]}, r"video, audio=\(2, 1\): must be as many of both"),
        ({"video": np.zeros((4, 8, 8, 3), np.uint8)}, "fps=None: must be the frames a second"),
        ({"clips": "a.mp4", "fps": 25}, "fps=25: must be left out beside clips"),
        ({"audio": (np.zeros(3), 16_000)}, "audio='a tuple with the number 16000': must be clips: a sound is an array"),
        (
            {"audio": [(np.zeros(3), 16_000)]},
            "tuple of 2: must be an array or a tensor; rates are given",
        ),
        ({"audio": [np.zeros(3)], "sample_rate": [1, 2]}, r"sample_rate=\[1, 2\]: must be one number, or 1"),
    ],
)
def test_impossible_arguments(model: Embedder, arguments, why):
    with pytest.raises(ValueError, match=why):
        model.embed(**arguments)


def test_a_bad_clip_is_named_and_can_be_kept_in_its_place(model: Embedder, paths: list[str], tmp_path: Path):
    silent = write_clip(tmp_path / "silent.mp4", codecs=("libx264", None))
    missing = str(tmp_path / "missing.mp4")
    with pytest.raises(ValueError, match=r"silent\.mp4: no audio stream; video= takes its picture alone"):
        model.embed([paths[0], str(silent)])
    found = model.embed([str(silent), paths[0], missing], return_errors=True)
    assert [type(one) for one in found] == [ValueError, type(model.embed(paths[0])), ValueError]
    assert "missing.mp4: cannot be decoded: No such file or directory" in str(found[2])
    assert torch.equal(found[1].fused, model.embed(paths[0]).fused)
    noise = [np.full(RATE, np.nan), np.zeros(RATE)]
    broken = model.embed(audio=noise, sample_rate=RATE, return_errors=True)
    assert "clip 0: its sound has 16000 samples that are NaN" in str(broken[0])
    assert broken[1].name == "clip 1"
    with pytest.raises(ValueError, match="clip 0: its sound has"):
        model.embed(audio=noise, sample_rate=RATE)


def test_features_that_are_no_numbers_are_told(model: Embedder, paths: list[str]):
    spoilt = untrained_model(model.config.model, seed=0)
    with torch.no_grad():
        spoilt.audio.encoder.norm.get_parameter("bias").fill_(torch.inf)
    broken = Embedder(spoilt, model.config, model.device, model.dtype, model.weights)
    with pytest.raises(ValueError, match="not finite"):
        broken.embed(paths[0])


def test_progress_goes_to_stderr(model: Embedder, paths: list[str], monkeypatch, capsys):
    monkeypatch.setattr("diffmavil.config.progress._FIRST", 0.0)
    model.embed(paths[:2], progress=True)
    assert "clips: 1 of 2, " in capsys.readouterr().err


@pytest.fixture(scope="module")
def classifier(deep: Config, tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    head = HeadConfig(classes=("cat", "dog", "owl"), labels="one", crops=2)
    config = FinetuneConfig(model=deep.model, data=deep.data, train=deep.train, head=head)
    torch.manual_seed(3)
    model = Classifier(config.model, head)
    torch.nn.init.normal_(model.head.weight)
    path = tmp_path_factory.mktemp("tuned") / "model.safetensors"
    export_weights(model, config, path)
    return diffmavil.load(path, device="cpu")


def test_scores_are_those_of_the_evaluation(classifier: Embedder, clips: ClipSet, paths: list[str]):
    model, config = classifier.model, classifier.config
    assert isinstance(model, Classifier)
    assert isinstance(config, FinetuneConfig)
    labelled = replace(clips, clips=[replace(clip, labels=(0,)) for clip in clips.clips])
    expected = predict({"it": model}, config, labelled, batch_size=4, crops=2).scores["it"]
    found = classifier.classify(paths, batch_size=4)
    torch.testing.assert_close(torch.stack([one.scores for one in found]), expected)
    assert found[0].windows.shape == (2, 3)
    (first, best), *_ = found[0].top(2)
    assert first == ("cat", "dog", "owl")[int(expected[0].argmax())]
    assert best == pytest.approx(float(expected[0].max()))
    assert classifier.classes == ("cat", "dog", "owl")
    assert len(classifier.classify(paths[0], hop=0.5).windows) == 3


def test_a_classifier_gives_features_too(classifier: Embedder, paths: list[str]):
    assert {kind: x.shape for kind, x in classifier.embed(paths[0]).clip.items()} == {
        "audio": (48,),
        "video": (48,),
        "fused": (96,),
    }


def test_what_cannot_be_classified(classifier: Embedder, model: Embedder, paths: list[str]):
    with pytest.raises(ValueError, match="must be asked of a fine-tuned model"):
        model.classify(paths[0])
    with pytest.raises(ValueError, match="modalities='audio': must be av: a classifier needs all"):
        classifier.classify(audio=paths[0])


def test_importing_the_package_imports_nothing_else():
    code = "import sys, diffmavil; print([m for m in ('torch', 'numpy', 'av', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert {"load", "read_features"} <= set(dir(diffmavil))
    with pytest.raises(AttributeError, match="'diffmavil' has no attribute 'loda'"):
        _ = diffmavil.loda


def test_it_is_told_what_was_loaded(model: Embedder):
    assert isinstance(model, FrozenModel)
    assert isinstance(model.model, DiffMAViL)
    assert not model.model.training
    assert repr(model) == f"<DiffMAViL {model.weights}: modalities='av', depth=3, width=48, cpu, torch.float32>"
