"""`patch` and `unpatch` refuse what they do not know, and then have changed nothing."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path
from types import MethodType

import pytest
import torch
from torch import nn

from maekernels.integrations import patch, unpatch
from maekernels.integrations._fingerprints import fingerprint, foreign_wrapper, of_source
from maekernels.integrations._instance import is_ours
from tests.integrations.small_models import NAMES, make_case, vit_mae

BOTH = pytest.mark.parametrize("name", NAMES)


def touched(model: nn.Module) -> bool:
    return any("forward" in vars(module) for module in model.modules())


@pytest.mark.parametrize("model", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 8, 4, 4))], ids=["linear", "sequential"])
def test_another_model(model):
    with pytest.raises(ValueError, match=r"model=torch.nn.modules.*: must be ViTMAEForPreTraining or VideoMAE"):
        patch(model)
    with pytest.raises(ValueError, match=r"must be patched"):
        unpatch(model)


@BOTH
def test_a_subclass_with_a_forward_of_its_own(name):
    base = type(make_case(name).make())

    class Other(base):
        def forward(self, pixel_values, **kwargs):
            return super().forward(2 * pixel_values, **kwargs)

    model = Other(make_case(name).make().config)
    with pytest.raises(
        ValueError, match=r"model=Other.forward of test_patch_refuses.*: must be code that this patch was written for"
    ):
        patch(model)
    assert not touched(model)


@BOTH
def test_a_subclass_that_leaves_it_alone(name):
    base = type(make_case(name).make())

    class Named(base):
        def describe(self):
            return "mine"

    model = patch(Named(make_case(name).make().config))
    assert touched(model)


@BOTH
def test_twice(name):
    model = patch(make_case(name).make())
    with pytest.raises(ValueError, match="must be not yet patched"):
        patch(model)
    unpatch(model)
    with pytest.raises(ValueError, match="must be patched"):
        unpatch(model)


@BOTH
def test_a_part_that_was_replaced(name):
    model = make_case(name).make()
    embed = model.get_input_embeddings()
    embed.projection = nn.Sequential(embed.projection)
    with pytest.raises(ValueError, match=r"embedding .* by a plain Conv.d: it is a Sequential"):
        patch(model)
    assert not touched(model)


@BOTH
def test_a_forward_that_somebody_else_replaced(name):
    model = make_case(name).make()
    own = type(model).forward
    model.forward = MethodType(lambda self, *args, **kwargs: own(self, *args, **kwargs), model)
    with pytest.raises(ValueError, match="whose forward was replaced: must be as its package made it: patch it first"):
        patch(model)


@pytest.mark.parametrize(
    ("name", "part", "method"),
    [
        ("vit_mae", "", "patchify"),
        ("vit_mae", "", "forward_loss"),
        ("vit_mae", "vit.embeddings", "random_masking"),
        ("vit_mae", "vit.embeddings.patch_embeddings", "forward"),
        ("vit_mae", "decoder", "forward"),
        ("video_mae", "videomae.embeddings.patch_embeddings", "forward"),
    ],
)
def test_a_method_that_somebody_else_replaced(name, part, method):
    """The patch goes around all of these, so that another would not be called."""
    model = make_case(name).make()
    owner = model.get_submodule(part)
    if not hasattr(type(owner), method):
        pytest.skip(f"{type(owner).__name__} of this transformers has no {method}")
    setattr(owner, method, lambda *args, **kwargs: None)
    with pytest.raises(ValueError, match=f"model={type(owner).__name__} whose {method} was replaced: must be as its"):
        patch(model)
    assert not any(is_ours(vars(module).get("forward")) for module in model.modules())


def wrapped(function):
    """As a library that times or logs wraps a method: with the name, the module and the source of what it wraps."""

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs)

    return wrapper


@BOTH
def test_a_wrapper_in_a_subclass(name):
    base = type(make_case(name).make())

    class Wrapped(base):
        forward = wrapped(base.forward)

    assert fingerprint(Wrapped.forward) == fingerprint(base.forward)
    model = Wrapped(make_case(name).make().config)
    with pytest.raises(ValueError, match=r"model=Wrapped.forward in a wrapper of test_patch_refuses: must be code"):
        patch(model)
    assert not touched(model)


def test_a_wrapper_in_the_class(monkeypatch):
    model = vit_mae().make()
    embeddings = type(model.vit.embeddings)
    monkeypatch.setattr(embeddings, "random_masking", wrapped(embeddings.random_masking))
    with pytest.raises(ValueError, match=r"model=ViTMAEEmbeddings.random_masking in a wrapper of test_patch_refuses"):
        patch(model)


def test_wrappers_are_told_by_who_wrote_them():
    def plain():
        pass

    assert foreign_wrapper(plain) is None
    assert foreign_wrapper(torch.no_grad()(plain)) is None
    assert foreign_wrapper(torch.no_grad()(wrapped(plain))) == __name__
    assert foreign_wrapper(functools.lru_cache(plain)) == "functools"


def test_unpatch_under_a_wrapper():
    """What accelerate does for mixed precision."""
    model = patch(vit_mae().make())
    model.forward = functools.wraps(model.forward)(lambda *args, inner=model.forward, **kwargs: inner(*args, **kwargs))
    with pytest.raises(ValueError, match=r"whose patched forward was wrapped since.*unwrap_model"):
        unpatch(model)
    assert is_ours(model.vit.embeddings.forward)


def test_five_channels():
    model = vit_mae(num_channels=5).make()
    with pytest.raises(ValueError, match="it has 5 channels of at most 4"):
        patch(model)


@pytest.mark.parametrize("masked", [0, 72, 73])
def test_masked_out_of_range(masked):
    with pytest.raises(ValueError, match=rf"masked={masked}: must be between 0 and the 72 tokens of a clip"):
        patch(make_case("video_mae").make(), masked=masked)


def test_masked_for_pictures():
    with pytest.raises(ValueError, match=r"masked=3: must be None for .*ViTMAEForPreTraining"):
        patch(vit_mae().make(), masked=3)


SOURCE = '''
@decorated
def forward(self, x: Tensor, n=1) -> Tensor:
    """What it does."""
    # a comment
    if x is None:
        raise ValueError(f"Size ({n}*{n}) doesn't fit")  # another
    return self.layer(
        x, n
    )
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ('"""What it does."""', '"""Something else."""', True),
        ("# a comment", "", True),
        (": Tensor", ": torch.FloatTensor", True),
        ("self.layer(\n        x, n\n    )", "self.layer(x, n)", True),
        ("self.layer", "self.other", False),
        ("self, x", "self, y", False),
        ("x, n\n", "n, x\n", False),
        ("{n}*{n}", "{n}+{n}", False),
    ],
)
def test_fingerprints(old, new, same):
    assert old in SOURCE
    assert (of_source(SOURCE) == of_source(SOURCE.replace(old, new))) == same


def test_the_same_on_every_python():
    """Hashes are written down in the patches: here one that Python 3.10 to 3.13 agree in."""
    assert of_source(SOURCE) == "8e763dc31188810c"


def test_importing_it_needs_torch_alone():
    code = """
import sys
from pathlib import Path
import maekernels.integrations
print(sorted(name for name in ("transformers", "timm", "einops", "triton") if name in sys.modules))
import torch
print(maekernels.integrations.random_masking(torch.zeros(1, 8, 2), 0.5)[0].shape)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "kernels")}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[]\n{torch.Size([1, 4, 2])}\n"
