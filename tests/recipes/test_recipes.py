"""Every recipe, by the commands of its own README, on a stand-in of its set.

A page's commands are run as they are written, with the files that it names; flags put behind them make the model tiny
and the training two steps (`readme_commands.SMALLER`). Recipes that start from AudioSet's weights find those that the
recipe audioset-2m has left.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from diffmavil.config.cli import parse_train
from diffmavil.config.errors import UsageError
from diffmavil.config.files import load_config
from diffmavil.data.shards.index import Description
from diffmavil.evaluation.classification import read_classification
from recipes.common import make_tables
from recipes.scores import main as scores
from tests.recipes.readme_commands import ROOT, run_page
from tests.recipes.standins import STAND_INS, esc10, esc50, fsdd, grid, wav

RECIPES = ROOT / "recipes"
NAMES = sorted(page.parent.name for page in RECIPES.glob("*/README.md"))
STARTS_FROM = dict.fromkeys(("audioset-20k", "esc50", "speech-commands-v2"), "audioset-2m")
FINETUNED = {
    "audioset-2m": [f"audioset-2m-{task}" for task in ("audio", "video", "av")],
    "audioset-20k": [f"audioset-20k-{task}" for task in ("audio", "video", "av")],
    "vggsound": [f"vggsound-{task}" for task in ("audio", "video", "av")],
    "esc50": [f"esc50-fold{fold}" for fold in range(1, 6)],
    "esc10": [f"esc10-fold{fold}" for fold in range(1, 6)],
    "speech-commands-v2": ["speech-commands"],
    "fsdd": ["fsdd-finetuned", "fsdd-scratch"],
    "grid": [f"grid-{task}" for task in ("audio", "video", "av")],
}
Ran = Callable[[str], Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands are run: it has the recipes, as the folder of the repository, with SpecAugment's masks of at
    most a quarter of the small spectrograms.
    """
    folder, small = tmp_path_factory.mktemp("recipes"), {"time_mask": 16, "mel_mask": 8}
    for file in RECIPES.glob("*/*.yaml"):
        copy = folder / "recipes" / file.parent.name / file.name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(
            re.sub(r"(time_mask|mel_mask): \d+", lambda found: f"{found[1]}: {small[found[1]]}", file.read_text())
        )
    return folder


@pytest.fixture(scope="module")
def ran(place: Path) -> Ran:
    """Runs a recipe's page, once, after that which it starts from, and gives the folder of runs."""
    done: set[str] = set()

    def run(name: str) -> Path:
        if name not in done:
            if name in STARTS_FROM:
                run(STARTS_FROM[name])
            done.add(name)
            make = STAND_INS[name]
            if make:
                make(place / "data")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                patch.setenv("HOME", str(place))  # where statistics are kept
                run_page(RECIPES / name / "README.md", place / "data")
        return place / "runs"

    return run


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_by_its_own_commands(name: str, ran: Ran) -> None:
    runs = ran(name)
    for run in FINETUNED[name]:
        found = read_classification(runs / run)
        assert found is not None, f"{run} has no scores"
        assert found.skipped == {}
        assert found.task == (run.rpartition("-")[2] if run.endswith(("-audio", "-video", "-av")) else "audio")
        assert len(found.classes) == {"esc10": 2, "grid": 2}.get(name, 3)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_uses_every_file_of_settings_that_it_has(name: str) -> None:
    page = (RECIPES / name / "README.md").read_text()
    files = {f"recipes/{name}/{file.name}" for file in (RECIPES / name).glob("*.yaml")}
    assert files == set(re.findall(r"--config (\S+)", page))


@pytest.mark.parametrize("file", sorted(RECIPES.glob("*/pretrain.yaml")), ids=lambda file: file.parent.name)
def test_what_a_file_says_is_what_training_does(file: Path) -> None:
    preset, config, _ = parse_train(["--config", str(file)])
    assert f"preset: {preset}\n" in file.read_text()
    assert config.model.modalities == ("audio" if file.parent.name in ("esc10", "fsdd") else "av")


def paths(table: Path) -> set[Path]:
    with table.open(newline="") as file:
        return {(table.parent / row["path"]).resolve() for row in csv.DictReader(file)}


def test_pretraining_never_sees_the_fold_that_is_tested_on(ran: Ran, place: Path) -> None:
    runs = ran("esc10")
    for fold in range(1, 6):
        held_out = paths(place / "tables" / "esc10" / f"fold{fold}-test.csv")
        assert {path.name[0] for path in held_out} == {str(fold)}
        for run in (f"esc10-pretrain{fold}", f"esc10-fold{fold}"):
            trained_on = paths(place / load_config(runs / run / "config.yaml").data.root)
            assert len(trained_on) == 8
            assert not trained_on & held_out


def test_prepare_reads_audioset_as_published(ran: Ran, place: Path) -> None:
    ran("audioset-20k")
    for name, clips in (("as2m", 6), ("as20k", 3), ("as-eval", 3)):
        found = Description.from_bytes((place / "data/prepared" / name / "dataset.json").read_bytes())
        assert (found.facts["clips"], found.facts["skipped"]) == (clips, 0)
        assert found.classes == ["Speech", "Child speech, kid speaking", "Dog"]


def test_words_of_grid(ran: Ran, place: Path) -> None:
    ran("grid")
    with (place / "tables/grid/test-words.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {Path(row["path"]).stem for row in rows} == {"bbal9a", "bbaszn", "bbal7s"}
    assert [(row["start"], row["duration"], row["labels"]) for row in rows[:2]] == [
        ("0.000", "0.640", "bin"),
        ("0.140", "0.640", "blue"),
    ]
    with (place / "tables/grid/test-digit.csv").open(newline="") as file:
        assert [row["labels"] for row in csv.DictReader(file)] == ["7", "9", "0"]


def test_scores_of_folds_are_put_together(ran: Ran, capsys: pytest.CaptureFixture[str]) -> None:
    runs = ran("esc10")
    capsys.readouterr()
    scores([str(runs / f"esc10-fold{fold}") for fold in range(1, 6)])
    assert "mean of 5" in capsys.readouterr().out
    with pytest.raises(UsageError, match="fine-tuned to its end"):
        scores([str(runs / "esc10-pretrain1")])


def damaged(make: Callable[[Path], None], folder: str, harm: Callable[[Path], object]) -> Callable[[Path], Path]:
    """Makes a stand-in and damages it; gives its folder."""

    def made(data: Path) -> Path:
        make(data)
        harm(data / folder)
        return data / folder

    return made


def empty(data: Path) -> Path:
    data.mkdir()
    return data


BROKEN = {
    "esc50, empty": ("esc50", empty, r"esc50\.csv: cannot be read"),
    "esc50, a clip is missing": (
        "esc50",
        damaged(esc50, "ESC-50-master", lambda root: (root / "audio/3-3001-A-1.wav").unlink()),
        r"3-3001-A-1\.wav': must be there",
    ),
    "esc50, another table": (
        "esc50",
        damaged(esc50, "ESC-50-master", lambda root: (root / "meta/esc50.csv").write_text("file,fold\na,1\n")),
        r"'file,fold': must be a CSV with the columns filename, fold, category",
    ),
    "esc10, empty": ("esc10", empty, "'001 - Dog bark'"),
    "esc10, a file of another name": (
        "esc10",
        damaged(esc10, "ESC-10-master", lambda root: (root / "002 - Rain/rain.ogg").touch()),
        r"rain\.ogg': must be named FOLD-NUMBER-TAKE\.ogg",
    ),
    "esc10, a fold is missing": (
        "esc10",
        damaged(esc10, "ESC-10-master", lambda root: [file.unlink() for file in root.glob("*/5-*")]),
        r"folds=\[1, 2, 3, 4\]",
    ),
    "speech-commands-v2, empty": ("speech-commands-v2", empty, r"validation_list\.txt: cannot be read"),
    "fsdd, empty": ("fsdd", empty, "recordings/0_george_0.wav"),
    "fsdd, a file of another name": (
        "fsdd",
        damaged(fsdd, "free-spoken-digit-dataset", lambda root: wav(root / "recordings" / "zero.wav", 1)),
        r"zero\.wav': must be named DIGIT_SPEAKER_NUMBER\.wav",
    ),
    "grid, empty": ("grid", empty, "videos as bbaf2n"),
    "grid, an alignment is missing": (
        "grid",
        damaged(grid, "grid", lambda root: (root / "alignments/bbaf2n.align").unlink()),
        r"bbaf2n\.mp4='no file': must be a file bbaf2n\.align",
    ),
    "grid, two speakers": (
        "grid",
        damaged(grid, "grid", lambda root: (root / "bbaf2n.mpg").touch()),
        "SRC is the folder of one speaker",
    ),
}


@pytest.mark.parametrize(("recipe", "make", "said"), BROKEN.values(), ids=list(BROKEN))
def test_a_set_that_is_laid_out_otherwise_is_refused(
    recipe: str, make: Callable[[Path], Path], said: str, tmp_path: Path
) -> None:
    main = importlib.import_module(f"recipes.{recipe}.tables").main
    with pytest.raises(UsageError, match=said):
        main([str(make(tmp_path / "data")), str(tmp_path / "tables")])
    assert not (tmp_path / "tables").exists()


def test_folders_of_tables(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"SRC=.*must be a folder"):
        make_tables([str(tmp_path / "no"), str(tmp_path / "out")], "esc10", lambda src: {})
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"OUT=.*cannot be written"):
        make_tables([str(tmp_path), str(tmp_path / "file")], "esc10", lambda src: {})
