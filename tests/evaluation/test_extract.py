"""`python -m diffmavil.extract`: what is written, going on after a kill, many processes, bad clips, wrong arguments."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

import diffmavil
import diffmavil.evaluation.feature_files as feature_files
from diffmavil.config import Config
from diffmavil.config.cli import parse_flags, run_main
from diffmavil.config.errors import RunError, TooManyBadClips, UsageError
from diffmavil.data.locks import hold_part
from diffmavil.data.sources import split_source
from diffmavil.evaluation.embed import Embedder, load
from diffmavil.evaluation.extraction import Extraction
from diffmavil.evaluation.feature_files import FeatureSet, read_features
from diffmavil.evaluation.features import KINDS, extract, untrained_model
from diffmavil.extract import Options, main, open_embedder
from diffmavil.extract import prepare as prepare_extraction
from diffmavil.model.weights import export_weights
from diffmavil.prepare import main as prepare
from diffmavil.training.distributed import World
from tests.data.clip_files import write_clip

CLIPS = 7


@pytest.fixture(scope="module")
def fp32(config: Config) -> Config:
    return replace(config, train=replace(config.train, precision="fp32"))


@pytest.fixture(scope="module")
def weights(fp32: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "model.safetensors"
    export_weights(untrained_model(fp32.model, seed=5), fp32, path)
    return path


@pytest.fixture(scope="module")
def table(fp32: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of seven parts of clips with labels."""
    clips = split_source(fp32.data).held_out.clips[:CLIPS]
    rows = [f"{clip.path},{0.5 * (i % 2)},{4.4},{'even' if i % 2 == 0 else 'odd;loud'}" for i, clip in enumerate(clips)]
    path = tmp_path_factory.mktemp("table") / "clips.csv"
    path.write_text("path,start,duration,labels\n" + "\n".join(rows) + "\n")
    return path


@pytest.fixture
def run(table: Path, weights: Path, tmp_path: Path) -> Callable[..., FeatureSet]:
    """Extract into a folder of the test, in this process, and read it."""

    def extracted(*flags: str, src: Path = table, out: Path = tmp_path / "features") -> FeatureSet:
        main([str(src), str(out), "--from", str(weights), "--workers", "0", "--part", "3", *flags])
        return read_features(out)

    return extracted


def parts(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "parts").iterdir()}


def test_features_are_those_of_the_evaluation(run, fp32: Config, table: Path, capsys: pytest.CaptureFixture[str]):
    found = run("--batch-size", "4")
    clips = split_source(replace(fp32.data, root=str(table))).train
    expected = extract({"it": untrained_model(fp32.model, seed=5)}, fp32, clips, batch_size=4)
    assert list(found.features) == list(KINDS)
    for kind, x in found.features.items():
        torch.testing.assert_close(x, expected.features["it"][kind], rtol=1e-5, atol=1e-6)
    assert found.paths == [clip.path for clip in clips.clips]
    assert found.starts == [0.0 if i % 2 == 0 else 0.5 for i in range(CLIPS)]
    assert found.classes == ["even", "loud", "odd"]
    assert [set(labels) for labels in found.labels[:2]] == [{0}, {1, 2}]
    assert found.clip.tolist() == list(range(CLIPS))
    assert found.bad == {}
    assert found.times["video"][:2, 0].tolist() == pytest.approx([0.2, 0.7], abs=0.05)
    printed = capsys.readouterr().out
    assert "7 clips of" in printed
    assert "3 of 3 parts to do" in printed
    assert "audio 48, video 48, fused 96" in printed


def test_everything_that_can_be_asked_for(run, weights: Path, table: Path):
    found = run("--hop", "0.2", "--layers", "-1", "--tokens", "--kinds", "fused", "--saved", "float16")
    model = load(weights, device="cpu")
    assert list(found.features) == ["fused"]
    assert found.features["fused"].dtype == torch.float16
    assert found.clip.bincount().tolist() == [3] * CLIPS
    assert found.layers["audio"].shape == (21, 1, 48)
    assert found.tokens["video"].shape == (21, 2, 2, 2, 48)
    assert found.layer_tokens["audio"].shape == (21, 1, 4, 2, 48)
    first = found.paths[0]
    alone = model.embed(first, tokens=True)
    assert torch.isclose(found.tokens["video"].float().std(), alone.tokens["video"].std(), rtol=0.5)
    means = found.by_clip()
    assert len(means) == CLIPS
    assert means.tokens == {}
    torch.testing.assert_close(
        means.features["fused"][0].float(), found.features["fused"][:3].float().mean(0), rtol=2e-3, atol=2e-3
    )
    assert means.times["video"][0].tolist() == pytest.approx([0.0, 4.4], abs=0.05)
    assert found.settings["layers"] == [0]


def test_the_same_command_goes_on_and_does_only_what_is_missing(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run()
    out = tmp_path / "features"
    before = parts(out)
    (out / "parts" / "part-00001.safetensors").unlink()
    (out / "parts" / ".part-00001.safetensors.77.tmp").write_bytes(b"half of it")
    tried = []
    stream = Embedder.stream

    def spy(self, items, *args, **kwargs):
        tried.append(len(items))
        return stream(self, items, *args, **kwargs)

    monkeypatch.setattr(Embedder, "stream", spy)
    run()
    assert tried == [3]
    assert parts(out) == before
    run()
    assert tried == [3], "nothing is left to do"


@pytest.mark.slow
def test_a_kill_loses_no_finished_part(table: Path, weights: Path, tmp_path: Path, environment: dict[str, str]):
    command = [sys.executable, "-m", "diffmavil.extract", str(table), str(tmp_path / "killed"), "--from", str(weights)]
    flags = ["--workers", "1", "--part", "1", "--batch-size", "1"]
    process = subprocess.Popen([*command, *flags], env=environment, stdout=subprocess.DEVNULL)
    folder, due = tmp_path / "killed" / "parts", time.monotonic() + 120
    while time.monotonic() < due and process.poll() is None and len(list(folder.glob("part-*"))) < 2:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("part-*")}
    assert done
    main([str(table), str(tmp_path / "killed"), "--from", str(weights), "--workers", "0", "--part", "1"])
    main([str(table), str(tmp_path / "whole"), "--from", str(weights), "--workers", "0", "--part", "1"])
    assert all(path.stat().st_mtime_ns == before for path, before in done.items())
    assert [path.name for path in (tmp_path / "killed" / "parts").iterdir() if path.name.startswith(".")] == []
    one, other = read_features(tmp_path / "killed"), read_features(tmp_path / "whole")
    torch.testing.assert_close(one.features, other.features, rtol=1e-4, atol=1e-5)
    assert one.paths == other.paths


@pytest.mark.slow
def test_several_processes_share_the_work(run, table: Path, weights: Path, tmp_path: Path, environment: dict[str, str]):
    alone = run()
    out = tmp_path / "shared"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    flags = [str(table), str(out), "--from", str(weights), "--workers", "0", "--part", "3"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "diffmavil.extract", *flags],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("7 of 7") == 1, "one of them speaks"
    torch.testing.assert_close(read_features(out).features, alone.features, rtol=1e-4, atol=1e-5)


def test_shares_of_several_machines(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "shares"
    with pytest.raises(ValueError, match="2 of 3 parts are missing; the same command goes on"):
        run("--shard", "1/2", out=out)
    assert "share 1/2 is done; 2 of 3 parts are left to others" in capsys.readouterr().out
    torch.testing.assert_close(run("--shard", "0/2", out=out).features, run().features, rtol=1e-4, atol=1e-5)
    assert (out / "bad.csv").exists()


def test_places_may_have_other_numbers_of_processes(table: Path, weights: Path, tmp_path: Path):
    """One process at the first, two at the second: every part is someone's, and no one else's."""
    parts: list[int] = []
    for place, size in (("0/2", 1), ("1/2", 2)):
        for rank in range(size):
            given = [str(table), str(tmp_path / "out"), "--from", str(weights), "--part", "1", "--shard", place]
            options = parse_flags(Options, given, prog="extract")
            peers = World(rank, size, torch.device("cpu"))
            job = prepare_extraction(options, open_embedder(options, peers), peers)
            parts += range(job.part, CLIPS, job.of)
    assert sorted(parts) == list(range(CLIPS))


def test_shares_of_other_numbers_with_parts_in_common_are_refused(run, tmp_path: Path):
    """Parts under way would be taken for what a kill has left, and removed."""
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="parts are missing"):
        run("--shard", "1/2", out=out)
    with (
        hold_part(out, ".share", 0, 2),
        pytest.raises(RunError, match=r"extracts share 0/2 \(process \d+ on \S+\), which has parts of share 2/4"),
    ):
        run("--shard", "2/4", out=out)


def test_two_processes_do_not_do_the_same_share(run, monkeypatch: pytest.MonkeyPatch):
    once = Extraction.run

    def twice(self, *args):
        with self._alone():
            once(self, *args)

    monkeypatch.setattr(Extraction, "run", twice)
    with pytest.raises(RunError, match="another process extracts share 0/1"):
        run()


def test_prepared_shards(run, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(4):
        folder = tmp_path / "src" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_clip(folder / f"{i}.mkv", seconds=2)
    prepare([str(tmp_path / "src"), str(tmp_path / "prepared"), "--workers", "1"])
    found = run(src=tmp_path / "prepared")
    assert found.classes == ["a", "b"]
    assert sorted(found.labels) == [(0,), (0,), (1,), (1,)]
    assert found.features["fused"].shape == (4, 96)
    assert sorted(found.cut_from) == sorted((f"{'ab'[i % 2]}/{i}.mkv", 0.0) for i in range(4))
    monkeypatch.chdir(tmp_path)
    assert run(src=Path("prepared")).paths == found.paths  # named another way it is the same set


def test_bad_clips_are_named_in_the_file_and_in_the_output(run, fp32: Config, tmp_path: Path, capsys):
    src = tmp_path / "src"
    src.mkdir()
    for i, clip in enumerate(split_source(fp32.data).held_out.clips[:5]):
        (src / f"{i}.mp4").write_bytes(Path(clip.path).read_bytes())
    write_clip(src / "1.mp4", codecs=("libx264", None))
    found = run("--max-bad-share", "0.5", src=src)
    assert found.bad == {1: "no audio stream"}
    assert found.clip.tolist() == [0, 2, 3, 4]
    assert found.paths[1].endswith("1.mp4")
    with (tmp_path / "features" / "bad.csv").open() as file:
        assert list(csv.DictReader(file)) == [{"path": found.paths[1], "start": "", "reason": "no audio stream"}]
    told = capsys.readouterr().out
    assert "4 of 5" in told
    assert "1, named in bad.csv" in told


@pytest.mark.parametrize("flags", [(), ("--tokens", "--layers", "all", "--saved", "float16", "--windows", "2")])
def test_clips_that_were_mended_are_tried_again_on_request(run, fp32: Config, tmp_path: Path, flags):
    """The rest is neither computed again nor changed, and the files are those of a first try."""
    src, first, again = tmp_path / "src", tmp_path / "first", tmp_path / "again"
    src.mkdir()
    whole = [Path(clip.path).read_bytes() for clip in split_source(fp32.data).held_out.clips[:5]]
    for i, data in enumerate(whole):
        (src / f"{i}.mp4").write_bytes(data)
    run(*flags, src=src, out=first)
    for i in (1, 3, 4):  # all of the second part
        (src / f"{i}.mp4").write_bytes(b"nothing")
    wanted = (*flags, "--max-bad-share", "0.9")
    assert sorted(run(*wanted, src=src, out=again).bad) == [1, 3, 4]
    before = parts(again)
    assert sorted(run(*wanted, "--retry-bad", src=src, out=again).bad) == [1, 3, 4]
    assert parts(again) == before
    for i in (1, 4):
        (src / f"{i}.mp4").write_bytes(whole[i])
    assert sorted(run(*wanted, src=src, out=again).bad) == [1, 3, 4]
    assert sorted(run(*wanted, "--retry-bad", src=src, out=again).bad) == [3]
    (src / "3.mp4").write_bytes(whole[3])
    for i in (0, 1, 2, 4):
        (src / f"{i}.mp4").write_bytes(b"not read")
    assert not run(*wanted, "--retry-bad", src=src, out=again).bad
    assert (again / "bad.csv").read_text().splitlines() == ["path,start,reason"]
    made, kept = read_features(first), read_features(again)
    for group in ("features", "times", "layers", "tokens", "layer_tokens"):
        found = getattr(kept, group)
        assert found.keys() == getattr(made, group).keys()
        for name, x in getattr(made, group).items():
            torch.testing.assert_close(found[name], x)
    assert torch.equal(kept.clip, made.clip)


def test_too_many_bad_clips_stop_it(run, tmp_path: Path):
    src = tmp_path / "src"
    src.mkdir()
    write_clip(src / "0.mp4", seconds=2)
    for i in range(1, 5):
        (src / f"{i}.mp4").write_bytes(b"nothing")
    with pytest.raises(TooManyBadClips, match=r"4 of the 5 clips tried could not be used.*--max-bad-share=0\.2"):
        run(src=src)
    with pytest.raises(TooManyBadClips, match="4 of the 5"):
        run(src=src)  # all of it is done, and that is as bad
    assert run("--max-bad-share", "0.9", src=src).clip.tolist() == [0]
    (src / "0.mp4").write_bytes(b"nothing")
    with pytest.raises(RunError, match=r"no clip could be used; .*bad\.csv says why"):
        run("--max-bad-share", "1", src=src, out=tmp_path / "none")
    assert len(read_features(tmp_path / "none")) == 0


OTHER = {
    ("--windows", "2"): "windows=1, now 2",
    ("--kinds", "audio"): r"kinds=\['audio', 'video', 'fused'\], now \['audio'\]",
    ("--part", "2"): "part_clips=3, now 2",
    ("--saved", "float16"): "saved='float32', now 'float16'",
    ("--precision", "bfloat16"): "precision='float32', now 'bfloat16'",
}


def test_other_settings_are_refused_in_a_folder_that_has_begun(run, tmp_path: Path):
    out = tmp_path / "features"
    run()
    manifest = (out / "manifest.json").read_bytes()
    for flags, why in OTHER.items():
        with pytest.raises(UsageError, match=rf"OUT='{out}': holds features with .*{why}: choose another folder"):
            run(*flags)
    assert (out / "manifest.json").read_bytes() == manifest


def test_other_weights_and_other_clips_are_refused(run, fp32: Config, table: Path, tmp_path: Path):
    run()
    export_weights(untrained_model(fp32.model, seed=6), fp32, tmp_path / "other.safetensors")
    with pytest.raises(UsageError, match="holds features with other weights"):
        main([str(table), str(tmp_path / "features"), "--from", str(tmp_path / "other.safetensors"), "--part", "3"])
    fewer = tmp_path / "fewer.csv"
    fewer.write_text("".join(table.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UsageError, match="holds features with other clips"):
        run(src=fewer)
    renamed = tmp_path / "renamed.csv"
    renamed.write_text(table.read_text().replace(",even\n", ",ever\n"))
    with pytest.raises(UsageError, match="holds features with other names of classes"):
        run(src=renamed)


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (["SRC", "OUT"], "--from is needed: python -m diffmavil.extract SRC OUT --from RUN"),
        (["SRC", "OUT", "--from", "nowhere/at/all"], "nowhere/at/all: no such file or folder"),
        (["missing", "OUT", "--from", "W"], "SRC='missing' does not exist"),
        (["SRC", "OUT", "--from", "W", "--layers", "7"], r"layers=7: must be in \[-1, 1\)"),
        (
            ["SRC", "OUT", "--from", "W", "--layers", "last"],
            "--layers='last': must be numbers of encoder blo",
        ),
        (["SRC", "OUT", "--from", "W", "--windows", "2", "--hop", "1"], "windows=2: must be left out beside hop=1.0"),
        (
            ["SRC", "OUT", "--from", "W", "--modalities", "audio", "--kinds", "fused"],
            "--kinds='fused': must be of audio",
        ),
        (["SRC", "OUT", "--from", "W", "--shard", "2/2"], "--shard='2/2': must be i/n with 0 <= i < n"),
        (["SRC", "OUT", "--from", "W", "--format", "parquet", "--saved", "bfloat16"], "must be float32 or float16"),
        (["SRC", "TABLE", "--from", "W"], "cannot be written"),
        (["SRC", "FULL", "--from", "W"], "must be a new or empty folder, or one with features begun"),
    ],
)
def test_wrong_arguments_end_with_code_2(table: Path, weights: Path, tmp_path: Path, capsys, monkeypatch, flags, why):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    names = {"SRC": table, "TABLE": table, "OUT": tmp_path / "out", "FULL": tmp_path / "full", "W": weights}
    monkeypatch.setattr(sys, "argv", ["extract", *(str(names.get(word, word)) for word in flags)])
    with pytest.raises(SystemExit) as ended:
        run_main(main)
    assert ended.value.code == 2
    told = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert re.search(why, told), told
    assert not (tmp_path / "out").exists()


def test_sound_alone_by_a_model_of_both(run, tmp_path: Path):
    (tmp_path / "src").mkdir()
    write_clip(tmp_path / "src" / "a.wav", codecs=(None, "pcm_s16le"))
    with pytest.raises(UsageError, match="sound alone needs --modalities audio"):
        run(src=tmp_path / "src")
    found = run("--modalities", "audio", src=tmp_path / "src")
    assert list(found.features) == ["audio"]
    assert list(found.times) == ["audio"]


def test_parquet_needs_its_package(run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"--format=parquet: needs pyarrow: pip install 'diffmavil\[parquet\]'"):
        run("--format", "parquet")


def test_parquet_holds_the_same(run, tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    flags = ("--windows", "2", "--layers", "all", "--tokens")
    one, other = run(*flags), run(*flags, "--format", "parquet", out=tmp_path / "parquet")
    for group in ("features", "layers", "tokens", "layer_tokens", "times"):
        torch.testing.assert_close(getattr(one, group), getattr(other, group), rtol=0, atol=0)
    assert (one.paths, one.labels, one.starts) == (other.paths, other.labels, other.starts)
    rows = parquet.read_table(tmp_path / "parquet" / "parts" / "part-00000.parquet").to_pylist()
    assert rows[2]["path"] == one.paths[1]
    assert sorted(rows[2]["labels"]) == ["loud", "odd"]
    assert rows[0]["fused"] == pytest.approx(one.features["fused"][0].tolist())
    run(*flags, "--format", "parquet", out=tmp_path / "parquet")


def test_a_full_disk_ends_it_with_code_1(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def full(*args, **kwargs):
        raise SafetensorError("No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr(feature_files, "save_file", full)
        why = r"cannot write .*part-00000\.safetensors: No space left.*the same command goes on"
        with pytest.raises(RunError, match=why):
            run()
    assert parts(tmp_path / "features") == {}
    assert len(run()) == CLIPS


@pytest.mark.parametrize("damage", [b"", b"0123456789"], ids=["empty", "damaged"])
def test_a_damaged_part_is_told(run, tmp_path: Path, damage: bytes):
    run()
    (tmp_path / "features" / "parts" / "part-00001.safetensors").write_bytes(damage)
    with pytest.raises(RunError, match=r"part-00001\.safetensors: is damaged, .*; delete it and go on"):
        run()
    with pytest.raises(ValueError, match=r"part-00001\.safetensors: is damaged, .*; delete it and go on"):
        diffmavil.read_features(tmp_path / "features")


def test_what_holds_no_features(tmp_path: Path):
    with pytest.raises(ValueError, match=r"holds no features: manifest\.json cannot be read"):
        diffmavil.read_features(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"settings": {"format": "safetensors"}, "parts": 3}))
    with pytest.raises(ValueError, match="3 of 3 parts are missing"):
        diffmavil.read_features(tmp_path)
