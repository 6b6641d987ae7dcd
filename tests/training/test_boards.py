"""Curves on boards: what each is told, resume, failures; wandb and MLflow by doubles, and themselves if installed."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from diffmavil.config import Config
from diffmavil.config.cli import RunOptions, parse_train
from diffmavil.config.errors import UsageError
from diffmavil.config.files import config_from_yaml, config_to_yaml
from diffmavil.config.presets import preset
from diffmavil.training.boards import Board, Boards, check_boards, open_boards
from diffmavil.training.distributed import World
from diffmavil.training.metrics import RunLog, read_metrics
from diffmavil.training.run import open_run
from diffmavil.training.telemetry import Telemetry

CPU = torch.device("cpu")
CONFIG = preset("diffmavil-tiny")
RECORD: dict[str, float] = {
    "step": 2,
    "loss": 1.5,
    "loss/video": 0.5,
    "lr": 1e-3,
    "batch_size": 4,
    "clips_per_second": 9.0,
    "gflop_per_second": 1.0,
    "data_wait": 0.1,
    "nonfinite_steps": 0,
    "bad_clips": 0,
    "grad_norm": float("nan"),
}


def logged(run_dir: Path, *names: Any, steps: range = range(1, 3), resumed: int = 0, config: Config = CONFIG) -> None:
    """What a run does with its boards."""
    run_dir.mkdir(exist_ok=True)
    with RunLog(
        run_dir, open_boards(names, run_dir, config, resumed), resumed_step=resumed, total_steps=steps.stop
    ) as log:
        for step in steps:
            log.record(RECORD | {"step": step}, eta_seconds=1.0)


class Wandb(ModuleType):
    """In place of wandb, by the calls that its documentation describes."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.runs: list[SimpleNamespace] = []

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings

    def init(self, **given: Any) -> Any:
        run = SimpleNamespace(given=given, rows=[], axes={}, code=None)
        run.log = run.rows.append
        run.define_metric = lambda name, step_metric=None: run.axes.update({name: step_metric})
        run.finish = lambda exit_code: setattr(run, "code", exit_code)
        self.runs.append(run)
        return run


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Wandb:
    double = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", double)
    for name in ("WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return double


def test_wandb_gets_config_and_records_and_goes_on_with_the_same_run(wandb: Wandb, tmp_path: Path):
    run_dir = tmp_path / "mine"
    logged(run_dir, "wandb")
    (first,) = wandb.runs
    assert (first.given["project"], first.given["name"], first.given["resume"]) == ("diffmavil", "mine", "allow")
    assert first.given["config"]["optim"]["lr"] == CONFIG.optim.lr
    assert first.axes == {"step": None, "*": "step"}, "a resumed run may go back, which wandb's own steps may not"
    assert [row["step"] for row in first.rows] == [1, 2]
    assert first.rows[0]["loss/video"] == 0.5
    assert "grad_norm" not in first.rows[0], "what is no number is left out"
    assert first.code == 0
    faster = replace(CONFIG, optim=replace(CONFIG.optim, lr=1.0))
    logged(run_dir, "wandb", steps=range(2, 4), resumed=1, config=faster)
    assert wandb.runs[1].given["id"] == first.given["id"]
    assert wandb.runs[1].given["config"]["optim"]["lr"] == 1.0
    assert wandb.runs[1].given["allow_val_change"]
    logged(tmp_path / "other", "wandb")
    assert wandb.runs[2].given["id"] != first.given["id"]


def test_a_run_that_failed_is_one_on_the_board(wandb: Wandb, tmp_path: Path):
    boards = open_boards(("wandb",), tmp_path, CONFIG, 0)
    with pytest.raises(KeyboardInterrupt), RunLog(tmp_path, boards, resumed_step=0, total_steps=9):
        raise KeyboardInterrupt
    assert wandb.runs[0].code == 1


class Mlflow:
    """In place of MLflow's client, by the calls that its documentation describes."""

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, SimpleNamespace] = {}
        self.uris: list[str | None] = []

    def MlflowClient(self, uri: str | None = None) -> Mlflow:
        self.uris.append(uri)
        return self

    def get_experiment_by_name(self, name: str) -> Any:
        return SimpleNamespace(experiment_id=self.experiments[name]) if name in self.experiments else None

    def create_experiment(self, name: str, artifact_location: str | None = None) -> str:
        self.experiments[name] = str(len(self.experiments))
        return self.experiments[name]

    def create_run(self, experiment_id: str, run_name: str) -> Any:
        ident = f"run{len(self.runs)}"
        self.runs[ident] = SimpleNamespace(
            name=run_name, params={}, metrics=[], files={}, status=["RUNNING"], experiment=experiment_id
        )
        return SimpleNamespace(info=SimpleNamespace(run_id=ident))

    def update_run(self, run_id: str, status: str) -> None:
        self.runs[run_id].status.append(status)

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(params) <= 100
        for param in params:
            assert param.key not in self.runs[run_id].params, "MLflow refuses to change a parameter"
            self.runs[run_id].params[param.key] = param.value
        self.runs[run_id].metrics += [(m.key, m.value, m.step) for m in metrics]

    def log_text(self, run_id: str, text: str, file: str) -> None:
        self.runs[run_id].files[file] = text

    def set_terminated(self, run_id: str, status: str) -> None:
        self.runs[run_id].status.append(status)


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Mlflow:
    double = Mlflow()
    module, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    module.MlflowClient = double.MlflowClient  # type: ignore[attr-defined]
    entities.Param = lambda key, value: SimpleNamespace(key=key, value=value)  # type: ignore[attr-defined]
    entities.Metric = lambda key, value, timestamp, step: SimpleNamespace(key=key, value=value, step=step)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_NAME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "1")  # put back afterwards
    return double


def test_mlflow_gets_config_and_records_and_goes_on_with_the_same_run(mlflow: Mlflow, tmp_path: Path):
    run_dir = tmp_path / "runs" / "mine"
    run_dir.parent.mkdir()
    logged(run_dir, "mlflow")
    assert mlflow.uris == [f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"]
    run = mlflow.runs["run0"]
    assert run.name == "mine"
    assert run.params["optim.lr"] == str(CONFIG.optim.lr)
    assert yaml.safe_load(run.files["config.yaml"])["optim"]["lr"] == CONFIG.optim.lr
    assert ("loss/total", 1.5, 1) in run.metrics, "its folders cannot hold loss beside loss/video"
    assert ("loss/video", 0.5, 2) in run.metrics
    assert run.status == ["RUNNING", "FINISHED"]
    faster = replace(CONFIG, optim=replace(CONFIG.optim, lr=1.0))
    logged(run_dir, "mlflow", steps=range(2, 4), resumed=1, config=faster)
    assert list(mlflow.runs) == ["run0"]
    assert run.params["optim.lr"] == str(CONFIG.optim.lr)
    assert yaml.safe_load(run.files["config.yaml"])["optim"]["lr"] == 1.0
    assert run.status == ["RUNNING", "FINISHED", "RUNNING", "FINISHED"]


def test_mlflow_s_own_variables_decide_where(mlflow: Mlflow, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "videos")
    logged(tmp_path / "one", "mlflow")
    logged(tmp_path / "two", "mlflow")
    assert mlflow.uris == [None, None]
    assert mlflow.experiments == {"videos": "0"}
    assert [run.experiment for run in mlflow.runs.values()] == ["0", "0"]


def test_several_boards_and_none(wandb: Wandb, tmp_path: Path):
    logged(tmp_path / "both", "tensorboard", "wandb")
    assert list((tmp_path / "both" / "tensorboard").iterdir())
    assert len(wandb.runs) == 1
    logged(tmp_path / "none")
    assert not (tmp_path / "none" / "tensorboard").exists()
    assert [record["step"] for record in read_metrics(tmp_path / "none")] == [1, 2], "metrics.jsonl is always written"


class Moody:
    """Fails at some records."""

    name = "moody"

    def __init__(self, fails: set[int]) -> None:
        self.fails, self.shown = fails, []

    def record(self, metrics: Any, step: int) -> None:
        if step in self.fails:
            raise ConnectionError("no answer")
        self.shown.append(step)

    def close(self, failed: bool) -> None:
        raise ConnectionError("gone")


def test_a_board_that_fails_is_told_and_after_three_times_left_out():
    board: Board = Moody({2, 4, 5, 6})
    boards = Boards([board])
    said = [boards.record({"step": step, "loss": 1.0}, step) for step in range(1, 9)]
    assert [len(lines) for lines in said] == [0, 1, 0, 1, 1, 1, 0, 0]
    assert said[1] == ["moody: step 2 could not be recorded: no answer"]
    assert said[5] == [f"{said[1][0].replace('2', '6')}; nothing more is sent to it, metrics.jsonl has it all"]
    assert board.shown == [1, 3]  # type: ignore[attr-defined]
    assert boards.close(failed=False) == []
    assert Boards([Moody(set())]).close(failed=False) == ["moody: could not be closed: gone"]


def test_a_board_that_cannot_be_opened_ends_the_run_before_it_begins(wandb: Wandb, tmp_path: Path, monkeypatch):
    def refuse(**given: Any) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(ValueError, match=r"train.log='wandb': cannot be opened: no API key; WANDB_MODE=offline"):
        open_boards(("tensorboard", "wandb"), tmp_path, CONFIG, 0)
    assert not (tmp_path / "boards.json").exists()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_package_that_is_missing_is_told_before_anything_is_written(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.setitem(sys.modules, name, None)
    preset_name, config, options = parse_train(["--log", "tensorboard", name, "--run-dir", str(tmp_path / "run")])
    assert config.train.log == ("tensorboard", name)
    with pytest.raises(UsageError, match=rf"train.log='{name}': needs pip install 'diffmavil\[{name}\]'"):
        open_run(preset_name, config, options, World(0, 1, CPU))
    assert not (tmp_path / "run").exists()
    check_boards(("tensorboard",))


def test_only_rank_0_opens_boards(wandb: Wandb, tmp_path: Path):
    config = replace(CONFIG, train=replace(CONFIG.train, log=("wandb",)))
    step: Any = SimpleNamespace(task=SimpleNamespace(names=("loss",)))
    run: Any = SimpleNamespace(folder=tmp_path, notes=())
    loader: Any = SimpleNamespace(data_wait=0.0)
    with Telemetry(run, config, World(1, 2, CPU), step, loader, 0):
        pass
    assert wandb.runs == []
    with Telemetry(run, config, World(0, 2, CPU), step, loader, 0):
        pass
    assert [run.code for run in wandb.runs] == [0]


def test_configs_of_before_know_tensorboard_alone():
    old = yaml.safe_load(config_to_yaml(CONFIG))
    del old["train"]["log"]
    assert config_from_yaml(yaml.safe_dump(old)).train.log == ("tensorboard",)
    assert RunOptions().run_dir is None


@pytest.mark.parametrize("names", [("wandb", "wandb"), ("visdom",)])
def test_boards_that_there_are_not(names: Any):
    with pytest.raises(ValueError, match=r"train\.log=.*: must be some of \('tensorboard', .*, each once"):
        replace(CONFIG.train, log=names)


@contextmanager
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.slow
def test_wandb_itself_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with _their_warnings():
        pytest.importorskip("wandb", reason="wandb is not installed")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("WANDB_SILENT", "true")
        logged(tmp_path / "run", "wandb")
        logged(tmp_path / "run", "wandb", steps=range(2, 4), resumed=1)
    ident = json.loads((tmp_path / "run" / "boards.json").read_text())["wandb"]
    sessions = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    # Two that begin in the same second are told apart by what stands behind.
    assert [f"-{ident}" in folder.name for folder in sessions] == [True] * len(sessions)
    kept = b"".join(file.read_bytes() for folder in sessions for file in folder.glob(f"run-{ident}.wandb"))
    assert b"loss/video" in kept
    assert b"layer_decay" in kept


@pytest.mark.slow
def test_mlflow_itself_in_a_local_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with _their_warnings():
        mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed")
        pytest.importorskip("sqlalchemy", reason="sqlalchemy, which MLflow's database needs, is not installed")
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        logged(tmp_path / "run", "mlflow")
        logged(tmp_path / "run", "mlflow", steps=range(2, 4), resumed=1)
        client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("diffmavil")
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.status == "FINISHED"
        assert run.data.params["optim.layer_decay"] == str(CONFIG.optim.layer_decay)
        history = client.get_metric_history(run.info.run_id, "loss/total")
        assert [point.step for point in history] == [1, 2, 2, 3]
        assert client.list_artifacts(run.info.run_id)[0].path == "config.yaml"
