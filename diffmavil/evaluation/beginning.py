"""What a run begins with, `--init`: an image MAE, or, of a pretraining, weights of ours, found by what a person calls
them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.folders import expand
from diffmavil.evaluation.pretrained import find_weights, open_model
from diffmavil.model import DiffMAViL
from diffmavil.model.classifier import Classifier
from diffmavil.model.continued import continues, initialise_from_ours
from diffmavil.model.exchange import InitReport, check_image_mae, initialise_from_image_mae
from diffmavil.model.exchange.hub import looks_like_hub_id
from diffmavil.model.weights import NO_DECODER, WEIGHTS_FILE, config_of, is_ours, notes_of

C = TypeVar("C", bound=Config)


def check_beginning(config: C) -> C:
    """The config with the statistics of the sound that weights of ours were trained with, unless it tells its own.

    Raises:
        ValueError: nothing that can be read there, weights that do not fit the model, or weights of ours for
            fine-tuning, which begins with these by `--from`.
        UsageError: a folder or file of ours that is damaged.
    """
    source = config.train.init
    assert source is not None
    weights = own_weights(source)
    if weights is None:
        check_image_mae(config.model, _file(source))
        return config
    given = "an image MAE; weights of ours are given by --from"
    require(not isinstance(config, FinetuneConfig), "train.init", source, given)
    theirs = trained_with(weights)
    allowed = "a pretrained model: these are the weights of a fine-tuned classifier"
    require(not isinstance(theirs, FinetuneConfig), "train.init", source, allowed)
    return replace(config, model=continues(config.model, theirs.model, source))


def begin_with(model: DiffMAViL | Classifier, source: str) -> InitReport:
    """Overwrite in place what `source` has for `model`; errors as of `check_beginning`."""
    weights = own_weights(source)
    if weights is None:
        return initialise_from_image_mae(model, _file(source))
    found, theirs = open_model(weights)
    assert isinstance(found, DiffMAViL)  # check_beginning has looked
    assert isinstance(model, DiffMAViL)
    continues(model.config, theirs.model, source)
    state = found.state_dict()
    if weights.is_file() and NO_DECODER in notes_of(weights):
        state = {name: value for name, value in state.items() if ".decoder." not in name}
    return initialise_from_ours(model, state, theirs.model, source)


def own_weights(source: str) -> Path | None:
    """The weights of ours that are meant, a file or a checkpoint's folder; None: a file of somebody else, or none.

    Raises:
        ValueError: a folder without weights, or a name that the Hub does not know.
    """
    path = expand(source)
    if _file(source).is_file():
        ours = is_ours(_file(source))
    else:  # a run under way, a checkpoint, or what its message is to name; or owner/name
        ours = path.is_dir() or (not path.exists() and looks_like_hub_id(source))
    return find_weights(source) if ours else None


def trained_with(weights: Path) -> Config:
    """The config of what `own_weights` found. Raises `UsageError` if it cannot be read."""
    return config_of(weights) if weights.is_file() else load_config(weights / CONFIG_FILE)


def _file(source: str) -> Path:
    """What is named, or the weights in a folder as transformers has it."""
    path = expand(source)
    return path / WEIGHTS_FILE if (path / WEIGHTS_FILE).is_file() else path
