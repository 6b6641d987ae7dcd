from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from diffmavil.config import AugmentConfig, Config, DataConfig, DecoderConfig, FinetuneConfig, ModelConfig, VideoConfig
from diffmavil.config.cli import parse_train
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_from_yaml, config_to_yaml, differences, load_config, save_config
from diffmavil.config.presets import PRESETS, preset


def test_every_preset_survives_yaml():
    for config in PRESETS.values():
        assert config_from_yaml(config_to_yaml(config)) == config


def test_no_preset_is_diffmavil_tiny():
    name, config, options = parse_train([])
    assert (name, config) == ("diffmavil-tiny", PRESETS["diffmavil-tiny"])
    assert not options.resume


def test_dotted_overrides_change_only_what_they_name():
    _, config, _ = parse_train(["mavil-base", "--train.steps", "7", "--model.video.frames", "8"])
    base = PRESETS["mavil-base"]
    video = replace(base.model.video, frames=8)
    expected = replace(base, model=replace(base.model, video=video), train=replace(base.train, steps=7))
    assert config == expected
    assert len(differences(base, config)) == 2


def test_what_may_be_none_is_called_by_what_it_takes(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_train(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert "None}|" not in said
    assert "--run-dir PATH" in said
    _, config, _ = parse_train(["--data.eval-root", "x", "--batch.gflop", "3.5", "--batch.rule", "flops"])
    assert (config.data.eval_root, config.batch.gflop) == ("x", 3.5)
    _, config, _ = parse_train(["--data.eval-root", "None", "--model.audio.mean", "None"])
    assert (config.data.eval_root, config.model.audio.mean) == (None, None)


def test_init_is_short_for_a_setting_that_is_kept(capsys):
    for flag in ("--init", "--train.init"):
        _, config, _ = parse_train([flag, "mae.pth"])
        assert config.train.init == "mae.pth"
        assert config_from_yaml(config_to_yaml(config)) == config
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    assert "--init STR, --train.init STR" in capsys.readouterr().out


def test_the_papers_adaptive_batch_is_that_of_its_presets():
    for size in ("small", "base", "large"):
        for name in (f"diffmavil-{size}", f"diffmavil-{size}-fast"):
            assert PRESETS[name].batch.rule == "flops"
        assert PRESETS[f"mavil-{size}"].batch.rule == "fixed"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["no-such-preset"], "diffmavil-tiny"),
        (["--resume"], "--run-dir"),
    ],
    ids=["preset", "resume-without-folder"],
)
def test_usage_errors_say_what_is_allowed(argv, said):
    with pytest.raises(UsageError, match=said):
        parse_train(argv)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--train.stepz", "5"], "--train.steps"),
        (["--train.steps", "0"], ">= 1"),
        (["--train.precision", "fp8"], "bf16"),
        (["--train.probe-every", "-1"], "train.probe_every=-1"),
        (["--train.probe-clips", "1"], ">= 2"),
        (["--model.video.size", "97"], "multiple"),
        (["--mask.video.start", "1.5"], "(0, 1)"),
        (["--data.crop-scale", "0.9", "0.5"], "low <= high"),
        (["--model.diffusion.first-step", "1001"], "diffusion.steps=1000"),
        (["--model.diffusion.draws", "snr"], "min_snr"),
        (["--model.diffusion.exponent", "0"], "diffusion.exponent=0.0: must be positive"),
        (["--model.diffusion.exponent", "nan"], "diffusion.exponent=nan: must be positive"),
        (["--model.diffusion.token-share", "1"], "diffusion.token_share=1.0: must be in [0, 1)"),
    ],
    ids=[
        *("unknown", "steps", "precision", "probe every", "probe clips", "size", "ratio", "crop", "first-step"),
        *("draws", "exponent", "no exponent", "token share"),
    ],
)
def test_wrong_flags_exit_with_2_and_say_what_is_allowed(argv, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_train(argv)
    assert stopped.value.code == 2
    words = capsys.readouterr().err.split()  # the frame around the message breaks its lines
    assert said in " ".join(words)


def test_impossible_combinations_are_refused():
    with pytest.raises(ValueError, match="decode_fraction"):
        ModelConfig(decode_fraction=0.5, video_decoder=DecoderConfig(attention="self"))
    with pytest.raises(ValueError, match=r"video\.frames=5"):
        VideoConfig(frames=5)


def test_threads_may_read_flags_at_once():
    def steps(count: int) -> int:
        return parse_train(["mavil-tiny", "--train.steps", str(count)])[1].train.steps

    counts = list(range(1, 13))
    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(steps, counts)) == counts


def test_unknown_preset_lists_the_names():
    with pytest.raises(ValueError, match=r"mavil-base.*diffmavil-large"):
        preset("mavil-huge")


def test_a_saved_config_names_an_unknown_setting(tmp_path):
    path = tmp_path / "config.yaml"
    save_config(Config(), path)
    path.write_text(path.read_text().replace("\ntrain:", "\ntrain:\n  stepz: 1"))
    with pytest.raises(UsageError, match=r"train\.stepz"):
        load_config(path)


def test_resume_takes_the_saved_config_and_flags_over_it(tmp_path):
    saved = replace(PRESETS["mavil-small"], train=replace(PRESETS["mavil-small"].train, seed=5))
    save_config(saved, tmp_path / "config.yaml")
    _, config, _ = parse_train(["--run-dir", str(tmp_path), "--resume", "--data.workers", "1"])
    assert config == replace(saved, data=replace(saved.data, workers=1))
    with pytest.raises(UsageError, match="leave it out"):
        parse_train(["mavil-small", "--run-dir", str(tmp_path), "--resume"])


@pytest.mark.parametrize("kind", [Config, FinetuneConfig])
def test_more_of_the_spectrogram_cannot_be_hidden_than_there_is(kind):
    with pytest.raises(ValueError, match=r"data\.augment\.mel_mask=129: must be at most model\.audio\.mels=128"):
        kind(data=DataConfig(augment=AugmentConfig(mel_mask=129)))
    with pytest.raises(ValueError, match=r"data\.augment\.time_mask=1025: must be at most model\.audio\.frames=1024"):
        kind(data=DataConfig(augment=AugmentConfig(time_mask=1025)))
    kind(data=DataConfig(augment=AugmentConfig(mel_mask=129)), model=ModelConfig(modalities="video"))
