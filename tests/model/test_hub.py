"""`python -m diffmavil.hub`: a folder in place of the Hub, and huggingface_hub itself against a local server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from diffmavil.config import Config, DataConfig, FinetuneConfig, HeadConfig, TrainConfig
from diffmavil.config.errors import UsageError
from diffmavil.convert import main as convert
from diffmavil.data.durable import digest_of
from diffmavil.evaluation.classification import KINDS
from diffmavil.hub import main
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.exchange.hub import looks_like_hub_id
from diffmavil.model.weights import export_weights, load_classifier, load_weights
from tests.evaluation.test_evaluate import evaluation
from tests.model import foreign
from tests.model.hub_server import Hub, serving
from tests.model.small import SMALL
from tests.reporting.test_page import scored

FILES = ["README.md", "config.json", "config.yaml", "model.safetensors"]
DATA = DataConfig(
    root="/home/someone/secret/vggsound.csv", eval_root="/home/someone/held-out", cache="/scratch/someone"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder, as far as it is read."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.manual_seed(0)
    config = Config(model=SMALL, data=DATA, train=TrainConfig(init="/home/someone/mae.pth"))
    export_weights(DiffMAViL(SMALL), config, folder / "model.safetensors")
    return folder


def test_push_and_pull_by_a_folder(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub = tmp_path / "hub"
    main(["push", str(run), "me/my-model", "--local", str(hub), "--license", "apache-2.0"])
    assert sorted(path.name for path in (hub / "me" / "my-model").iterdir()) == FILES
    assert "nothing was uploaded" in capsys.readouterr().out
    main(["pull", "me/my-model", str(tmp_path / "pulled"), "--local", str(hub)])
    before, after = (load_weights(path / "model.safetensors")[0].state_dict() for path in (run, tmp_path / "pulled"))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    card = (tmp_path / "pulled" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["library_name"], front["license"]) == ("diffmavil", "apache-2.0")


def test_a_run_is_not_pulled_over(run: Path, tmp_path: Path) -> None:
    main(["push", str(run), "me/my-model", "--local", str(tmp_path / "hub")])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("")
    with pytest.raises(UsageError, match="must be another folder: this one holds a run"):
        main(["pull", "me/my-model", str(tmp_path / "mine"), "--local", str(tmp_path / "hub")])


def test_nothing_pushed_tells_folders_of_this_machine(run: Path, tmp_path: Path) -> None:
    main(["push", str(run), "me/my-model", "--local", str(tmp_path / "hub")])
    for path in (tmp_path / "hub" / "me" / "my-model").iterdir():
        content = path.read_bytes()
        for secret in (b"someone", b"secret", str(tmp_path).encode()):
            assert secret not in content, path.name
    _, config = load_weights(tmp_path / "hub" / "me" / "my-model" / "model.safetensors")
    assert (config.data.root, config.data.eval_root, config.train.init) == ("vggsound.csv", "held-out", "mae.pth")


def test_a_classifier_is_pushed_as_one(tmp_path: Path) -> None:
    head = HeadConfig(classes=("cat", "dog"), labels="one", source="/home/someone/runs/base", fusion_depth=1)
    config = FinetuneConfig(model=SMALL, head=head)
    export_weights(Classifier(SMALL, head), config, tmp_path / "tuned.safetensors")
    main(["push", str(tmp_path / "tuned.safetensors"), "me/tuned", "--local", str(tmp_path / "hub")])
    pushed = tmp_path / "hub" / "me" / "tuned"
    told = json.loads((pushed / "config.json").read_text())
    assert (told["architectures"], told["head"]["classes"]) == (["DiffMAViLForClassification"], ["cat", "dog"])
    _, read = load_classifier(pushed / "model.safetensors")
    assert read.head == replace(head, source="base")
    assert "AutoModelForVideoClassification" in (pushed / "README.md").read_text()


def test_of_a_fine_tuned_run_the_weights_of_the_headline_are_pushed(tmp_path: Path) -> None:
    """The scores on the card are of them."""
    head = HeadConfig(classes=("cat", "dog", "owl"), labels="one", fusion_depth=1)
    run, hub = tmp_path / "run", tmp_path / "hub"
    run.mkdir()
    models = {name: Classifier(SMALL, head) for name in ("last", "best")}
    for name, model in models.items():
        export_weights(model, FinetuneConfig(model=SMALL, head=head), run / KINDS[name])
    found = replace(scored(["cat", "dog", "owl"]), sha256={name: digest_of(run / KINDS[name]) for name in models})
    assert found.headline["weights"] == "best"
    found.write(run)

    def pushed() -> tuple[torch.Tensor, str]:
        main(["push", str(run), "me/tuned", "--local", str(hub)])
        folder = hub / "me" / "tuned"
        return load_classifier(folder / "model.safetensors")[0].head.weight, (folder / "README.md").read_text()

    weight, card = pushed()
    assert torch.equal(weight, models["best"].head.weight)
    assert "model-index" in card
    for change in (lambda path: path.write_bytes(path.read_bytes() + b" "), Path.unlink):
        change(run / KINDS["best"])
        weight, card = pushed()
        assert torch.equal(weight, models["last"].head.weight)
        assert "Not evaluated." in card


def test_scores_of_other_weights_do_not_stand_on_the_card(run: Path, tmp_path: Path) -> None:
    def card() -> str:
        main(["push", str(run), "me/x", "--local", str(tmp_path / "hub")])
        return (tmp_path / "hub" / "me" / "x" / "README.md").read_text()

    judged = evaluation()
    protocol = replace(judged.protocol, weights=str(run / "model.safetensors"))
    for digest, told in ((digest_of(run / "model.safetensors"), True), ("0" * 64, False)):
        replace(judged, protocol=replace(protocol, sha256=digest)).write(run)
        assert ("model-index" in card()) == told
        assert ("Not evaluated." in card()) != told


def _foreign(folder: Path) -> None:
    torch.save(foreign.mavil(), folder / "run" / "theirs.pth")


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["push", "{run}/none", "me/x", "--local", "{hub}"], "no such file or folder"),
        (["push", "{run}/theirs.pth", "me/x", "--local", "{hub}"], "cannot be read as exported weights"),
        (["pull", "me/none", "{hub}/out", "--local", "{hub}"], "must be a folder: push has made none of this name"),
    ],
    ids=["nothing", "others' weights", "not pushed"],
)
def test_what_cannot_be_pushed_or_pulled(run: Path, tmp_path: Path, argv: list[str], said: str) -> None:
    _foreign(tmp_path)
    with pytest.raises(UsageError, match=said):
        main([word.format(run=run, hub=tmp_path / "hub") for word in argv])


def test_a_name_must_have_an_owner(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["push", str(run), "my-model"])
    assert "name='my-model': must be owner/name" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("name", ["../..", "me/..", "../me", "./me", "me/.", "me/..."])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_name_of_dots_is_no_name(
    run: Path, tmp_path: Path, name: str, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    argv = {"push": [str(run), name], "pull": [name, str(tmp_path / "out")]}[way]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit, match="2"):
        main([way, *argv, "--local", str(tmp_path / "a" / "b")])
    assert f"name='{name}': must be owner/name" in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["me/.hidden", "me/v1..2", "..me/model", "a.b/c.d"])
def test_dots_in_a_name_are_fine(name: str) -> None:
    assert looks_like_hub_id(name)


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Make huggingface_hub take an address for the Hub, or skip the test."""
    package = pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    api = package.HfApi

    def at(address: str) -> None:
        # Version 0 makes some addresses from these, whatever the endpoint is.
        template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
        for module in ("constants", "file_download"):
            name = f"huggingface_hub.{module}.HUGGINGFACE_CO_URL_TEMPLATE"
            monkeypatch.setattr(name, template, raising=False)
        monkeypatch.setattr(package, "HfApi", lambda: api(endpoint=address, token="hf_none"))

    return at


@pytest.fixture
def hub(point: Callable[[str], None]) -> Iterator[Hub]:
    with serving() as server:
        point(server.address)
        yield server


def test_push_and_pull_by_huggingface_hub(hub: Hub, run: Path, tmp_path: Path) -> None:
    main(["push", str(run), "me/my-model", "--private"])
    assert sorted(hub.models["me/my-model"]) == FILES
    assert hub.private == {"me/my-model": True}
    main(["pull", "me/my-model", str(tmp_path / "pulled")])
    for name, content in hub.models["me/my-model"].items():
        assert (tmp_path / "pulled" / name).read_bytes() == content


def test_others_weights_are_converted_from_the_hub(hub: Hub, tmp_path: Path) -> None:
    torch.save(foreign.mavil(), tmp_path / "theirs.bin")
    hub.models["someone/mavil"] = {"pytorch_model.bin": (tmp_path / "theirs.bin").read_bytes(), "other.txt": b""}
    convert(["someone/mavil", str(tmp_path / "ours"), "--heads", "3", "--trained-size", "32", "--mels", "32"])
    assert load_weights(tmp_path / "ours" / "model.safetensors")[1].model.fusion_depth == 2


def test_a_model_that_is_not_there_is_told(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^'someone/none': no such file or folder, and from the Hub: .*404"):
        convert(["someone/none", str(tmp_path / "out")])


@pytest.mark.parametrize("way", ["convert", "push", "pull"])
def test_no_network_is_told(point: Callable[[str], None], run: Path, tmp_path: Path, way: str) -> None:
    point("http://127.0.0.1:1")  # where nothing listens
    what = "not uploaded to the Hub" if way == "push" else "no such file or folder, and from the Hub"
    command, out = convert if way == "convert" else main, str(tmp_path / "out")
    argv = {"convert": ["me/x", out], "push": ["push", str(run), "me/x"], "pull": ["pull", "me/x", out]}[way]
    with pytest.raises(UsageError, match=f"^'me/x': {what}: .*onnect"):
        command(argv)
