"""What a pretraining begins with, `--init`: an image MAE, or weights of ours, found by what a person calls them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from diffmavil.config import Config, FinetuneConfig, require
from diffmavil.config.files import CONFIG_FILE, load_config
from diffmavil.config.folders import expand
from diffmavil.evaluation.pretrained import find_weights, open_model
from diffmavil.model import DiffMAViL
from diffmavil.model.continued import continues, initialise_from_ours
from diffmavil.model.exchange import InitReport, check_image_mae, initialise_from_image_mae
from diffmavil.model.exchange.hub import looks_like_hub_id
from diffmavil.model.weights import config_of, is_ours


def check_beginning(config: Config) -> Config:
    """The config with the statistics of the sound that weights of ours were trained with, unless it tells its own.

    Raises:
        ValueError: nothing that can be read there, or weights that do not fit the model.
        UsageError: a folder or file of ours that is damaged.
    """
    source = config.train.init
    assert source is not None
    weights = _ours(source)
    if weights is None:
        check_image_mae(config.model, expand(source))
        return config
    theirs = config_of(weights) if weights.is_file() else load_config(weights / CONFIG_FILE)
    allowed = "a pretrained model: these are the weights of a fine-tuned classifier"
    require(not isinstance(theirs, FinetuneConfig), "train.init", source, allowed)
    return replace(config, model=continues(config.model, theirs.model, source))


def begin_with(model: DiffMAViL, source: str) -> InitReport:
    """Overwrite in place what `source` has for `model`; errors as of `check_beginning`."""
    weights = _ours(source)
    if weights is None:
        return initialise_from_image_mae(model, expand(source))
    found, theirs = open_model(weights)
    assert isinstance(found, DiffMAViL)  # check_beginning has looked
    continues(model.config, theirs.model, source)
    return initialise_from_ours(model, found.state_dict(), theirs.model, source)


def _ours(source: str) -> Path | None:
    """The weights of ours that are meant; None: a file of somebody else, or none."""
    path = expand(source)
    ours = is_ours(path) if path.is_file() else path.is_dir() or (not path.exists() and looks_like_hub_id(source))
    return find_weights(source) if ours else None
