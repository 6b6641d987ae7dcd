"""Every decoder shows the same frames, within tolerances stated here; decoders that are not installed skip.

The environment variable DIFFMAVIL_REQUIRE names those that must not (`make test-dali`, `make test-torchcodec`).

Without scaling, mean difference at most 1.5 and 99 % of the pixels within 8 of 255: the same YUV, turned into RGB with
other ways to spread chroma. With crop and scaling, mean difference at most 4 on the clips of these tests: other
filters, or scaled after the turn into RGB. Single pixels where colours meet differ by far more.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from clip_files import MEDIA, number_shown
from prepared_sets import prepare_here, write_clips

from diffmavil.config import AudioConfig, Config, DataConfig, DecoderName, ModelConfig, TrainConfig, VideoConfig
from diffmavil.data import decoders
from diffmavil.data.clips import ClipSet
from diffmavil.data.decode import decode_clip
from diffmavil.data.decoders import choose_decoder, missing
from diffmavil.data.loader import eval_batches, make_loader
from diffmavil.data.samples import Sample
from diffmavil.data.shards.store import Reader
from diffmavil.data.sources import split_source
from diffmavil.data.transforms import Framing

CPU = torch.device("cpu")
NAMES: tuple[DecoderName, ...] = ("torchcodec", "dali")


def needs(decoder: DecoderName) -> None:
    if why := missing(decoder):
        if decoder in os.environ.get("DIFFMAVIL_REQUIRE", "").split(","):
            pytest.fail(f"{decoder}: {why}")
        pytest.skip(f"{decoder}: {why}")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    folder = tmp_path_factory.mktemp("generated")
    prepare_here(write_clips(folder / "clips", 6), folder / "out")
    return split_source(DataConfig(root=str(folder / "out"))).train


def config(decoder: DecoderName, size: int = 32, frames: int = 4, workers: int = 0) -> Config:
    model = ModelConfig(
        video=VideoConfig(frames=frames, size=size, seconds=0.8, patch=(2, 8, 8)), audio=AudioConfig(frames=48, mels=64)
    )
    data = DataConfig(workers=workers, decoder=decoder, prefetch=1)
    return Config(model=model, data=data, train=TrainConfig(batch_size=3))


@pytest.mark.parametrize(
    ("decoder", "size", "mean"),
    # Pictures of 48 pixels that are nothing but edges. torchcodec's are scaled as PyAV's are, DALI has its own filters.
    [("torchcodec", 48, 1.5), ("torchcodec", 32, 1.5), ("dali", 48, 1.5), ("dali", 32, 4.0)],
)
def test_the_same_frames_as_pyav(generated: ClipSet, decoder: DecoderName, size: int, mean: float) -> None:
    needs(decoder)
    names: tuple[DecoderName, ...] = (decoder, "pyav")
    ours, theirs = (list(eval_batches(config(name, size=size), generated, 4)) for name in names)
    for a, b in zip(ours, theirs, strict=True):
        assert a.video.shape == b.video.shape == (len(b), 4, size, size, 3)
        numbers = [[number_shown(f) for f in batch.video.flatten(0, 1).numpy()] for batch in (a, b)]
        assert numbers[0] == numbers[1]
        assert a.video.dtype == torch.uint8
        assert (a.video.float() - b.video.float()).abs().mean((1, 2, 3, 4)).max() < mean
        assert torch.equal(a.wave, b.wave)
        assert not a.later


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("decoder", NAMES)
def test_random_crops_and_flips(generated: ClipSet, decoder: DecoderName, workers: int) -> None:
    """Training batches: the crop, and whether it is mirrored, are functions of the position alone."""
    needs(decoder)
    with make_loader(config(decoder, workers=workers), generated, steps=4) as loader:
        ours = torch.cat([batch.video for batch in loader]).float()
    with make_loader(config("pyav"), generated, steps=4) as loader:
        theirs = torch.cat([batch.video for batch in loader]).float()
    assert (ours - theirs).abs().mean((1, 2, 3, 4)).max() < 12  # bars, whose edges are all there is
    assert (ours - theirs.flip(3)).abs().mean() > 30


@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"no real clips at {MEDIA} (DIFFMAVIL_MEDIA)")
@pytest.mark.parametrize("decoder", NAMES)
def test_real_clips(tmp_path: Path, decoder: DecoderName) -> None:
    needs(decoder)
    names = ("LipNet__bbaf2n.mpg", "learning-area__frog.webm", "WebAV__bunny_0.mp4")
    (tmp_path / "t.csv").write_text("path,start,duration\n" + "".join(f"{name},1,1.2\n" for name in names))
    prepare_here(MEDIA, tmp_path / "out", table=tmp_path / "t.csv")
    clips = split_source(DataConfig(root=str(tmp_path / "out"))).train
    whole, half = config(decoder, size=256, frames=8), config(decoder, size=128, frames=8)
    for wanted, mean, share in ((whole, 1.5, 0.99), (half, 4.0, 0.9)):
        plain = config("pyav", size=wanted.model.video.size, frames=8)
        ours, theirs = (next(iter(eval_batches(c, clips, 3))).video.float() for c in (wanted, plain))
        apart = (ours - theirs).abs()
        assert apart.mean((1, 2, 3, 4)).max() < mean
        assert (apart <= 8).float().mean() > share


def test_dali_hands_its_own_memory_over(generated: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """DLPack without a copy, and a batch stays what it is while the next ones are made."""
    needs("dali")
    given: list[int] = []
    taken = torch.from_dlpack

    def look(pictures):
        given.append(pictures.data_ptr())
        return taken(pictures)

    monkeypatch.setattr(torch, "from_dlpack", look)
    with make_loader(config("dali"), generated, steps=6) as loader:
        batches = [batch.video for batch in loader]
    assert [video.data_ptr() for video in batches] == given
    with make_loader(config("dali"), generated, steps=6) as loader:
        for kept, video in zip(batches, [batch.video.clone() for batch in loader], strict=True):
            assert torch.equal(kept, video)


def test_the_coded_picture_is_left_for_later(generated: ClipSet) -> None:
    """What DALI is given: numbers of the frames on screen at the window's instants, and the crop."""
    clip = generated.clips[0]
    sample = Reader(Path(), 0)(clip)
    assert isinstance(sample, Sample)
    wanted = config("dali").model
    squeezed = Framing(32, 32, 0, 0, 32)
    decoded = decode_clip(sample, wanted.video, wanted.audio, framing=lambda w, h: squeezed, decoder="dali")
    shown = decode_clip(sample, wanted.video, wanted.audio, framing=lambda w, h: squeezed)
    assert decoded.video.size == 0
    assert decoded.later is not None
    assert decoded.later.mp4 == sample.mp4
    assert decoded.later.framing == squeezed
    # The first clip counts from 0.
    assert decoded.later.frames.tolist() == [number_shown(frame) for frame in shown.video]
    assert decoded.windows == shown.windows


def test_choice(generated: ClipSet, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = [type(clip)("a.mp4") for clip in generated.clips]
    monkeypatch.setattr(decoders, "missing", lambda name: None)
    assert choose_decoder("auto", generated.clips, CPU) == "torchcodec"
    assert choose_decoder("auto", generated.clips, torch.device("cuda")) == "dali"
    assert choose_decoder("auto", plain, torch.device("cuda")) == "pyav"
    with pytest.raises(ValueError, match=r"data\.decoder='dali': must be 'pyav' for clips that are not prepared"):
        choose_decoder("dali", plain, CPU)
    monkeypatch.setattr(decoders, "missing", lambda name: None if name == "pyav" else "pip install it")
    assert choose_decoder("auto", generated.clips, torch.device("cuda")) == "pyav"
    with pytest.raises(ValueError, match=r"data\.decoder='torchcodec': needs pip install it"):
        choose_decoder("torchcodec", generated.clips, CPU)
