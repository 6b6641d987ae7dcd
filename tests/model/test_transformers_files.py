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
