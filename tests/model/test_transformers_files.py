"""ViTMAE and VideoMAE of the transformers that is installed, into models of ours and back."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from einops import rearrange
from safetensors.torch import load_file

from diffmavil.config import DecoderConfig, DiffusionConfig, EncoderConfig, ModelConfig, VideoConfig
from diffmavil.model import DiffMAViL
from diffmavil.model.embed import all_ids
from diffmavil.model.exchange.asked import Asked
from diffmavil.model.exchange.locate import locate
from diffmavil.model.exchange.sources import import_weights
from diffmavil.model.exchange.transformers_files import write_transformers
from tests.model import foreign
from tests.model import image_mae_files as mae
from tests.model.foreign import close
from tests.model.peers import randomised, transformers
from tests.model.test_foreign_weights import clip, encoded, no_sound

_SIZES = {
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "image_size": 32,
    "patch_size": 8,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 64,
}
PICTURE = ModelConfig(
    modalities="video",
    video=VideoConfig(frames=1, size=32, patch=(1, 8, 8), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)),
    encoder=EncoderConfig(depth=2, width=48, heads=3, mlp_ratio=2.0),
    video_decoder=DecoderConfig(depth=1, width=32, heads=2, mlp_ratio=2.0),
    diffusion=DiffusionConfig(corruption="mask_token"),
    views=1,
)
CLIP = replace(
    PICTURE,
    video=VideoConfig(frames=4, size=32, patch=(2, 8, 8)),
    encoder=replace(PICTURE.encoder, cls=False, positions="sequence", norm_eps=1e-12),
)


@pytest.fixture
def ours() -> Callable[[ModelConfig], DiffMAViL]:
    def make(config: ModelConfig) -> DiffMAViL:
        model = DiffMAViL(config)
        randomised(model)
        return model

    return make


def saved(model: torch.nn.Module, path: Path, *, state: bool = False) -> Path:
    """As `save_pretrained` writes it; state: its state dict, with today's names."""
    model.save_pretrained(path)  # type: ignore[operator]  # transformers'
    if state:
        (path / "model.safetensors").unlink()
        torch.save(model.state_dict(), path / "pytorch_model.bin")
    return path


@pytest.mark.parametrize("state", [False, True], ids=["save_pretrained", "state dict"])
def test_vit_mae_and_its_decoder(tmp_path: Path, state: bool) -> None:
    peer = transformers()
    theirs = randomised(peer.ViTMAEForPreTraining(peer.ViTMAEConfig(**_SIZES, mask_ratio=0.5)))
    found = import_weights(locate(saved(theirs, tmp_path, state=state)), Asked())
    assert found.report.left == found.report.new == []
    pixels, normal = clip(1)
    with torch.no_grad():
        out = theirs(normal[:, :, 0], noise=torch.arange(16.0).expand(2, -1).contiguous())
        latent = theirs.vit(normal[:, :, 0], noise=torch.arange(16.0).expand(2, -1).contiguous()).last_hidden_state
        keep, rest = (torch.arange(*ends, dtype=torch.int32).expand(2, -1).contiguous() for ends in ((0, 8), (8, 16)))
        encoded = found.model.video.encode(pixels, rearrange(keep, "b k -> b 1 k"))
        close(encoded, latent)
        close(found.model.video.decoder(encoded, keep, rest), out.logits[:, 8:])


@pytest.mark.parametrize("pooled", [False, True], ids=["pretrained", "fine-tuned"])
def test_video_mae(tmp_path: Path, pooled: bool) -> None:
    peer = transformers()
    sizes = {**_SIZES, "num_frames": 4, "tubelet_size": 2, "use_mean_pooling": pooled}
    kind = peer.VideoMAEForVideoClassification if pooled else peer.VideoMAEForPreTraining
    theirs = randomised(kind(peer.VideoMAEConfig(**sizes)))
    found = import_weights(locate(saved(theirs, tmp_path)), Asked())
    pixels, normal = clip(4)
    with torch.no_grad():
        latent = theirs.videomae(rearrange(normal, "b c t h w -> b t c h w")).last_hidden_state
    close(encoded(found, "video", pixels), latent)
    assert any(line.startswith("classifier" if pooled else "decoder.head") for line in found.report.left)


def test_video_mae_without_any_bias(tmp_path: Path) -> None:
    peer = transformers()
    config = peer.VideoMAEConfig(**_SIZES, num_frames=4, qkv_bias=False, use_mean_pooling=False)
    theirs = randomised(peer.VideoMAEModel(config))
    found = import_weights(locate(saved(theirs, tmp_path)), Asked())
    pixels, normal = clip(4)
    with torch.no_grad():
        latent = theirs(rearrange(normal, "b c t h w -> b t c h w")).last_hidden_state
    close(encoded(found, "video", pixels), latent)
    assert any("no bias: zeros" in row.how for row in found.report.rows)


def test_the_processor_of_a_video_mae_gives_what_the_model_takes(
    ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path
) -> None:
    write_transformers(ours(CLIP), tmp_path)
    told = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert told["crop_size"] == {"height": 32, "width": 32}, "without it the processor crops to 224 x 224"
    assert told["size"] == {"shortest_edge": 32}


@pytest.mark.parametrize("decoder", ["mask tokens", "diffused"])
def test_a_picture_branch_is_a_vit_mae(ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path, decoder: str) -> None:
    """Its own features, and those of the model that comes back; every bit comes back."""
    config = PICTURE if decoder == "mask tokens" else replace(PICTURE, diffusion=DiffusionConfig())
    model = ours(config)
    report = write_transformers(model, tmp_path)
    assert report.left == ([] if decoder == "mask tokens" else ["video.decoder.blocks (12)", *report.left[1:]])
    peer = transformers()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peer.ViTMAEModel.from_pretrained(tmp_path, mask_ratio=0.0).eval()
    pixels, _ = clip(1)
    mean, std = torch.tensor(config.video.mean), torch.tensor(config.video.std)
    normal = rearrange((pixels[:, 0] - mean) / std, "b h w c -> b c h w")
    with torch.no_grad():
        out = theirs(normal, noise=torch.arange(16.0).expand(2, -1).contiguous()).last_hidden_state
        close(model.video.encode(pixels, all_ids(2, 1, 16, pixels.device)), out)


def test_a_vit_mae_of_ours_comes_back_bit_for_bit(ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path) -> None:
    model = ours(PICTURE)
    write_transformers(model, tmp_path)
    back = import_weights(locate(tmp_path), Asked())
    before, after = model.state_dict(), back.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    unused = {"video": PICTURE.video, "audio_decoder": PICTURE.audio_decoder}
    assert replace(back.config.model, **unused) == PICTURE
    assert (back.config.model.video.mean, back.config.model.video.std) == (PICTURE.video.mean, PICTURE.video.std)


@pytest.mark.parametrize("generation", ["transformers", "ours"])
def test_a_video_mae_comes_back_bit_for_bit(
    ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path, generation: str
) -> None:
    """VideoMAE -> ours -> VideoMAE, every tensor; and as transformers itself rewrites it."""
    model = ours(CLIP)
    for block in model.video.encoder.blocks:
        block.attn.qkv.bias.data[48:96] = 0  # type: ignore[union-attr]  # a key's bias, which VideoMAE has not
    report = write_transformers(model, tmp_path / "first")
    assert not any("biases of keys" in line for line in report.left)
    path = tmp_path / "first"
    if generation == "transformers":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = transformers().VideoMAEModel.from_pretrained(path).eval()
        pixels, normal = clip(4)
        with torch.no_grad():
            out = theirs(rearrange(normal, "b c t h w -> b t c h w")).last_hidden_state
            close(model.video.encode(pixels, all_ids(2, 1, 32, pixels.device)), out)
        path = saved(theirs, tmp_path / "second")
    back = import_weights(locate(path), Asked())
    own = model.state_dict()
    encoder = {name: value for name, value in back.model.state_dict().items() if ".encoder." in name}
    assert encoder.keys() == {name for name in own if ".encoder." in name}
    assert all(torch.equal(own[name], value) for name, value in encoder.items())
    write_transformers(back.model, tmp_path / "third")
    first, third = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "third"))
    assert first.keys() == third.keys()
    assert all(torch.equal(first[name], third[name]) for name in first)


def test_biases_of_keys_are_told_and_change_nothing(ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path) -> None:
    model = ours(CLIP)
    report = write_transformers(model, tmp_path)
    assert report.left[0] == "the biases of keys: VideoMAE has none, and they change no attention"
    pixels, _ = clip(4)
    expected = model.features(pixels, no_sound()).video
    got = import_weights(locate(tmp_path), Asked()).model.features(pixels, no_sound()).video
    close(got, expected)


def test_a_branch_that_fits_neither_is_told_why(ours: Callable[[ModelConfig], DiffMAViL], tmp_path: Path) -> None:
    model = ours(replace(PICTURE, video=CLIP.video))
    said = (
        r"neither of its classes computes what the video branch does: ViTMAE needs model.video.frames=1 and a tubelet "
        r"of 1; VideoMAE needs model.encoder.cls=False, model.encoder.positions=sequence"
    )
    with pytest.raises(ValueError, match=said):
        write_transformers(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ('{"model_type": "bert"}', r"config\.json beside it says model_type='bert'; must be vit_mae or videomae"),
        ('{"hidden_act": "relu"}', r"config\.json beside it says hidden_act='relu'; must be 'gelu', as ours is"),
        ('{"num_attention_heads": 5}', r"encoder.heads=5: must be a divisor of 48"),
        ("[", r"config\.json': cannot be read as JSON"),
        ("[]", r"config\.json': holds a list; must be an object"),
    ],
    ids=["type", "activation", "heads", "damaged", "list"],
)
def test_a_config_that_tells_another_model_is_refused(tmp_path: Path, told: str, said: str) -> None:
    torch.save(foreign.video_mae(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(told)
    with pytest.raises(ValueError, match=said):
        import_weights(locate(tmp_path), Asked())


VIDEO: dict[str, object] = {"num_attention_heads": 3, "image_size": 32, "num_frames": 4}


def with_table() -> foreign.State:
    """A VideoMAE that keeps its positions: of 2 x 4 x 4 patches."""
    return foreign.video_mae() | {"encoder.pos_embed": torch.zeros(1, 32, foreign.WIDTH)}


def beside(
    folder: Path, state: foreign.State, told: dict[str, object], pixels: dict[str, object] | None = None
) -> ModelConfig:
    """What becomes of a state beside a config.json and a preprocessor_config.json."""
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(told))
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels or {}))
    return import_weights(locate(folder), Asked(mels=32)).config.model


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"num_hidden_layers": 12}, "num_hidden_layers=12: must be 2, as in the file"),
        ({"hidden_size": 768}, "hidden_size=768: must be 48, as in the file"),
        ({"intermediate_size": 3072}, "intermediate_size=3072: must be 96, as in the file"),
        ({"num_channels": 4}, "num_channels=4: must be 3, as in the file"),
        ({"tubelet_size": 1}, "tubelet_size=1: must be 2, as in the file"),
        ({"patch_size": 16}, "patch_size=16: must be 8 x 8, as in the file"),
        ({"patch_size": [8, 16]}, r"patch_size=\[8, 16\]: must be 8 x 8, as in the file"),
        ({"patch_size": "8"}, "patch_size='8': must be a positive whole number, or two: height and width"),
    ],
    ids=["depth", "width", "hidden", "channels", "tubelet", "patch", "pair of patch", "text"],
)
def test_sizes_other_than_those_of_the_file_are_refused(tmp_path: Path, told: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=rf"IN='.*pytorch_model\.bin': config\.json beside it tells {said}$"):
        beside(tmp_path, foreign.video_mae(), VIDEO | told)


def test_sizes_of_the_file_are_taken(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 96, "num_channels": 3, "tubelet_size": 2}
    config = beside(tmp_path, foreign.video_mae(), VIDEO | sizes | {"patch_size": [8, 8]})
    assert (config.encoder.depth, config.encoder.width, config.video.patch) == (2, 48, (2, 8, 8))


@pytest.mark.parametrize("size", [32, [32, 32], 48, [48, 48]], ids=str)
def test_the_size_of_a_clip_may_be_a_pair(tmp_path: Path, size: int | list[int]) -> None:
    config = beside(tmp_path, foreign.video_mae(), VIDEO | {"image_size": size})
    assert config.video.size == (size if isinstance(size, int) else size[0])


@pytest.mark.parametrize("size", [32, [32, 32]], ids=str)
def test_the_size_of_a_picture_may_be_a_pair(tmp_path: Path, size: int | list[int]) -> None:
    assert beside(tmp_path, mae.random_state(), {"num_attention_heads": 3, "image_size": size}).video.size == 32


@pytest.mark.parametrize(
    ("source", "told", "said"),
    [
        (foreign.video_mae, {"image_size": [32, 48]}, r"image_size=\[32, 48\]: must be as high as wide"),
        (foreign.video_mae, {"image_size": [32]}, r"image_size=\[32\]: must be a positive whole number, or two"),
        (foreign.video_mae, {"image_size": {"height": 32}}, "image_size={'height': 32}: must be a positive whole num"),
        (mae.random_state, {"image_size": 224}, "image_size=224: must be 32 x 32, as in the file"),
        (mae.random_state, {"image_size": [16, 64]}, r"image_size=\[16, 64\]: must be 32 x 32, as in the file"),
        (with_table, {"num_frames": 16}, "num_frames=16: must be 4, as in the file"),
        (with_table, {"image_size": 64}, "has 32 positions, which do not fill frames of 8 x 8 patches"),
    ],
    ids=["not square", "one alone", "object", "of a picture", "of a picture, pair", "frames", "of a clip's table"],
)
def test_another_size_of_the_input_is_refused(
    tmp_path: Path, source: Callable[[], foreign.State], told: dict[str, object], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        beside(tmp_path, source(), VIDEO | told)


@pytest.mark.parametrize("told", [{}, {"image_size": [48, 32]}], ids=["not told", "time x mels"])
def test_one_channel_is_a_spectrogram(tmp_path: Path, told: dict[str, object]) -> None:
    grey = {"model_type": "vit_mae", "num_channels": 1, "num_attention_heads": 3}
    config = beside(tmp_path, foreign.audio_mae(), grey | told)
    assert (config.modalities, config.audio.frames, config.audio.mels) == ("audio", 48, 32)


@pytest.mark.parametrize(("size", "rows"), [(64, 64), ([32, 48], 24)], ids=["grey picture", "mels x time"])
def test_one_channel_at_another_size_is_no_spectrogram(tmp_path: Path, size: int | list[int], rows: int) -> None:
    state = foreign.audio_mae(mel_patches=1, time_patches=rows)
    grey = {"model_type": "vit_mae", "num_channels": 1, "num_attention_heads": 3, "image_size": size}
    with pytest.raises(ValueError, match=r"config\.json beside it tells image_size=.*: must be \d+ x 32, time x mels"):
        beside(tmp_path, state, grey)


_PIXELS = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}


@pytest.mark.parametrize(
    ("pixels", "mean", "std"),
    [
        ({}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"do_normalize": True, "do_rescale": True, "rescale_factor": 0.00392}, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ({"do_normalize": False}, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ],
    ids=["not told", "normalised", "not normalised"],
)
def test_how_pixels_are_normalised(
    tmp_path: Path, pixels: dict[str, object], mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    video = beside(tmp_path, foreign.video_mae(), dict(VIDEO), _PIXELS | pixels).video
    assert (video.mean, video.std) == (mean, std)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        ({"do_rescale": False}, "do_rescale=False: must be True, as ours"),
        ({"rescale_factor": 1.0}, "rescale_factor=1.0: must be 1/255, as ours"),
        ({"rescale_factor": 1 / 127.5, "do_normalize": False}, r"rescale_factor=0\.0078.*: must be 1/255, as ours"),
        ({"rescale_factor": "1/255"}, "rescale_factor='1/255': must be 1/255, as ours"),
    ],
    ids=["not rescaled", "by one", "to 0..2", "text"],
)
def test_pixels_on_another_scale_are_refused(tmp_path: Path, pixels: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=rf"preprocessor_config\.json beside it tells {said}"):
        beside(tmp_path, foreign.video_mae(), dict(VIDEO), _PIXELS | pixels)
