"""Each op on the inputs of a case, as every provider computes it.

A `Problem` holds one set of inputs and two implementations: `ours`, the public function of maekernels (with
backend="torch" its plain reference), and `eager`, the baseline. The checks and the clocks use nothing else.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from torch import Tensor

import maekernels
from benchmarks import eager
from benchmarks.cases import Case

Output = Tensor | tuple[Tensor, ...]


class Problem:
    """Base: draws inputs for `case`, reproducibly from `seed`.

    Args:
        batch: samples; for `info_nce` the rows of each side.
        dtype: of activations. Pixels are always uint8 (spectrograms float32).
    """

    leaves: ClassVar[tuple[str, ...]] = ()
    """Names of the inputs that get a gradient; if empty, the op has no backward."""
    random: ClassVar[bool] = False
    """The result is random, and eager code draws other numbers than ours."""
    native: ClassVar[bool] = True
    """The op has a C++ kernel for the CPU."""
    rounds_as_torch: ClassVar[bool] = False
    """Eager code is one call of torch: its rounding error is that of any good kernel."""

    def __init__(self, case: Case, batch: int, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
        self.case, self.batch, self.device, self.dtype = case, batch, device, dtype
        self.generator = torch.Generator(device).manual_seed(seed)
        self.seed = torch.tensor(seed, dtype=torch.int64, device=device)
        self.mean, self.std = (torch.tensor(v, device=device) for v in (case.mean, case.std))
        self.draw()
        self.prepare()
        for name in self.leaves:
            getattr(self, name).requires_grad_()

    @classmethod
    def default_batch(cls, case: Case, device_type: str) -> int:
        return case.batch(device_type)

    def draw(self) -> None:
        """Create the inputs."""

    def prepare(self) -> None:
        """Create what eager code already has before its clock starts."""

    def ours(self, backend: str | None = None) -> Output:
        raise NotImplementedError

    def eager(self) -> Output:
        raise NotImplementedError

    def in_float64(self) -> Problem:
        """The same problem in float64, for the reference result. uint8 pixels and float32 alpha_bar are unchanged."""
        twin = copy.copy(self)
        twin.dtype = torch.float64
        for name, value in vars(self).items():
            if isinstance(value, Tensor) and value.is_floating_point() and name != "alpha_bar":
                setattr(twin, name, value.detach().double().requires_grad_(name in self.leaves))
        twin.prepare()
        return twin

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device, generator=self.generator).to(self.dtype)

    def draw_ids(self) -> None:
        """Random ids_keep `[B, K]` and ids_mask `[B, N - K]`, int32, ascending, as `random_mask` returns them."""
        order = torch.rand(self.batch, self.case.tokens, device=self.device, generator=self.generator).argsort(dim=1)
        keep, mask = order.split([self.case.kept, self.case.masked], dim=1)
        self.ids_keep, self.ids_mask = keep.sort(dim=1).values.int(), mask.sort(dim=1).values.int()

    def draw_pixels(self) -> None:
        shape = (self.batch, *self.case.pixel_shape)
        if self.case.kind == "spectrogram":
            self.pixels = torch.randn(shape, device=self.device, generator=self.generator)
        else:
            self.pixels = torch.randint(256, shape, dtype=torch.uint8, device=self.device, generator=self.generator)

    def draw_alpha_bar(self) -> None:
        uniform = torch.rand(self.batch, device=self.device, generator=self.generator)
        self.alpha_bar = 0.05 + 0.9 * uniform

    def float_clip(self) -> Tensor:
        """The normalised clip that eager code stores: float32, or float64 for the reference result."""
        return eager.normalise(self.pixels, self.mean, self.std)

    @property
    def pixel_args(self) -> tuple[tuple[int, ...], tuple[float, ...], tuple[float, ...]]:
        """patch, mean, std."""
        return self.case.patch, self.case.mean, self.case.std


class RandomMask(Problem):
    random = True

    def ours(self, backend: str | None = None) -> Output:
        case = self.case
        return maekernels.random_mask(self.batch, case.tokens, case.kept, seed=self.seed, backend=backend)

    def eager(self) -> Output:
        ids_keep, mask, _ = eager.random_mask(self.batch, self.case.tokens, self.case.kept, self.device)
        return ids_keep, mask


class Patchify(Problem):
    def draw(self) -> None:
        self.draw_ids()
        self.draw_pixels()

    def prepare(self) -> None:
        self.long_ids = self.ids_keep.long()

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.patchify(self.pixels, self.ids_keep, *self.pixel_args, dtype=self.dtype, backend=backend)

    def eager(self) -> Output:
        patches = eager.cut(self.float_clip(), self.case.patch)
        return eager.gather_tokens(patches, self.long_ids).to(self.dtype)


class GatherTokens(Problem):
    leaves = ("x",)

    def draw(self) -> None:
        self.draw_ids()
        self.x = self.normal(self.batch, self.case.tokens, self.case.width)

    def prepare(self) -> None:
        self.long_ids = self.ids_keep.long()

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.gather_tokens(self.x, self.ids_keep, backend=backend)

    def eager(self) -> Output:
        return eager.gather_tokens(self.x, self.long_ids)


class ScatterTokens(Problem):
    leaves = ("values", "fill")

    def draw(self) -> None:
        self.draw_ids()
        self.values = self.normal(self.batch, self.case.kept, self.case.decoder_width)
        self.fill = self.normal(self.case.decoder_width)

    def prepare(self) -> None:
        self.ids_restore = torch.cat([self.ids_keep, self.ids_mask], dim=1).argsort(dim=1)

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.scatter_tokens(self.values, self.ids_keep, self.case.tokens, self.fill, backend=backend)

    def eager(self) -> Output:
        return eager.scatter_tokens(self.values, self.ids_restore, self.fill)


class AddNoise(Problem):
    leaves = ("x0",)
    random = True

    def draw(self) -> None:
        self.draw_alpha_bar()
        self.x0 = self.normal(self.batch, self.case.masked, self.case.patch_dim)

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.add_noise(self.x0, self.alpha_bar, self.seed, backend=backend)

    def eager(self) -> Output:
        return eager.add_noise(self.x0, self.alpha_bar)

    def signal(self) -> Tensor:
        """The signal that the noise is added to."""
        return self.x0


class DiffusePatches(Problem):
    random = True

    def draw(self) -> None:
        self.draw_ids()
        self.draw_alpha_bar()
        self.draw_pixels()

    def prepare(self) -> None:
        self.long_ids, self.clip = self.ids_mask.long(), self.float_clip()

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.diffuse_patches(
            self.pixels,
            self.ids_mask,
            *self.pixel_args,
            alpha_bar=self.alpha_bar,
            seed=self.seed,
            norm_pix=True,
            dtype=self.dtype,
            backend=backend,
        )

    def eager(self) -> Output:
        return eager.diffuse_patches(self.clip, self.long_ids, self.case.patch, self.alpha_bar, self.dtype)

    def signal(self) -> Tensor:
        patches = eager.normalise_patches(eager.cut(self.clip, self.case.patch))
        return eager.gather_tokens(patches, self.long_ids)


class MaskedMse(Problem):
    leaves = ("pred",)

    def draw(self) -> None:
        self.draw_ids()
        self.draw_pixels()
        self.pred = self.normal(self.batch, self.case.masked, self.case.patch_dim)

    def prepare(self) -> None:
        self.long_ids, self.clip = self.ids_mask.long(), self.float_clip()

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.masked_mse(self.pred, self.pixels, self.ids_mask, *self.pixel_args, backend=backend)

    def eager(self) -> Output:
        return eager.masked_mse(self.pred, self.clip, self.long_ids, self.case.patch)


class InfoNce(Problem):
    leaves = ("a", "b")
    native = False
    temperature = 0.1

    @classmethod
    def default_batch(cls, case: Case, device_type: str) -> int:
        return case.pairs(device_type)

    def draw(self) -> None:
        self.a = self.normal(self.batch, self.case.width)
        self.b = self.a + 2 * self.normal(self.batch, self.case.width)  # paired rows are similar

    def ours(self, backend: str | None = None) -> Output:
        return maekernels.info_nce(self.a, self.b, self.temperature, backend=backend)

    def eager(self) -> Output:
        return eager.info_nce(self.a, self.b, self.temperature)


PROBLEMS: dict[str, type[Problem]] = {
    "random_mask": RandomMask,
    "patchify": Patchify,
    "gather_tokens": GatherTokens,
    "scatter_tokens": ScatterTokens,
    "add_noise": AddNoise,
    "diffuse_patches": DiffusePatches,
    "masked_mse": MaskedMse,
    "info_nce": InfoNce,
}
