"""transformers' own checks of a model, with the patch on.

Its wheel has no tests; its source distribution has those that all models share (`ModelTesterMixin`: hidden states,
attentions, tuples, save and load, batches, gradient checkpointing, attention of every kind, compiling).
DIFFMAVIL_TRANSFORMERS_TESTS names the folder `tests` of the version installed, which `make test-transformers` fetches;
DIFFMAVIL_UNPATCHED=1 runs the same without the patch, to see whose a failure is.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
import unittest
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import pytest
import torch

from maekernels.integrations import patch
from maekernels.integrations._instance import is_ours
from tests.integrations.small_models import Case, make_case, package

FOLDER = os.environ.get("DIFFMAVIL_TRANSFORMERS_TESTS", "")
if not FOLDER:
    pytest.skip("DIFFMAVIL_TRANSFORMERS_TESTS is not set (make test-transformers does)", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")

transformers = package("transformers")
NAME = "their_tests"
MISSING = {"generation.test_utils": "GenerationTesterMixin", "exporters.test_export": "ExportTesterMixin"}
"""Modules that the shared tests import and the distribution leaves out."""


def shared_tests() -> Any:
    """Their module, as part of a package of another name than ours."""
    root = ModuleType(NAME)
    root.__path__ = [str(Path(FOLDER))]
    sys.modules[NAME] = root
    for module, mixin in MISSING.items():
        for name in (module.partition(".")[0], module):
            sys.modules[f"{NAME}.{name}"] = ModuleType(f"{NAME}.{name}")
        setattr(sys.modules[f"{NAME}.{module}"], mixin, type(mixin, (), {}))
    return importlib.import_module(f"{NAME}.test_modeling_common")


COMMON = shared_tests()


class Tester:
    """What the shared tests ask of a model's own tests."""

    def __init__(self, parent: unittest.TestCase, case: Case) -> None:
        self.parent, self.case = parent, case
        config = case.config()
        for name in ("image_size", "patch_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, getattr(config, name))
        self.is_training, self.batch_size = True, 3
        # Visible tokens, and ViTMAE's class token.
        self.seq_length = 15 if case.masked is None else 72 - case.masked
        self.num_masks, self.mask_length = case.masked, 72

    def prepare_config_and_inputs_for_common(self) -> tuple[Any, dict[str, torch.Tensor]]:
        return self.case.config(), dict(self.case.inputs)


class Checks(COMMON.ModelTesterMixin):
    name = ""
    test_resize_embeddings = False
    test_head_masking = False
    test_pruning = False
    test_torchscript = False
    has_attentions = True
    pipeline_model_mapping: ClassVar[dict[str, Any]] = {}

    def setUp(self) -> None:
        self.model_tester = Tester(self, make_case(self.name))
        model = type(self.model_tester.case.make())
        self.all_model_classes = (model,)
        made = model.__init__

        @functools.wraps(made)
        def made_patched(instance: Any, *args: Any, **kwargs: Any) -> None:
            made(instance, *args, **kwargs)
            if os.environ.get("DIFFMAVIL_UNPATCHED") != "1":
                patch(instance)

        patched = mock.patch.object(model, "__init__", made_patched)
        patched.start()
        self.addCleanup(patched.stop)

    def test_the_patch_is_on(self) -> None:
        (model,) = self.all_model_classes
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        assert is_ours(model(config).forward) == (os.environ.get("DIFFMAVIL_UNPATCHED") != "1")

    def test_inputs_embeds(self) -> None:
        self.skipTest("these models take pixels")

    def test_model_get_set_embeddings(self) -> None:
        self.skipTest("these models embed by a convolution")


class TestViTMAE(Checks, unittest.TestCase):
    name = "vit_mae"


class TestVideoMAE(Checks, unittest.TestCase):
    name = "video_mae"
