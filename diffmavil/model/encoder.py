"""The encoder of one modality: a vision transformer over the visible patches alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from diffmavil.config import EncoderConfig
from diffmavil.model.blocks import Blocks, SelfBlock, layer_norm
from diffmavil.model.embed import PatchEmbed


class Encoder(nn.Module):
    """Embedding, pre-norm blocks, and a last LayerNorm, unless `config` leaves it out.

    Args:
        grid: patches along each axis, for the fixed positions.
        patch_dim: values in one patch.
        config: size of the transformer.

    Attributes:
        cls: whether a CLS token stands in front of what it gives.
    """

    def __init__(self, grid: tuple[int, ...], patch_dim: int, config: EncoderConfig) -> None:
        super().__init__()
        self.embed = PatchEmbed(grid, patch_dim, config.width, cls=config.cls, positions=config.positions)
        self.cls = config.cls
        self.blocks = Blocks(
            SelfBlock(config.width, config.heads, config.mlp_ratio, config.norm_eps) for _ in range(config.depth)
        )
        self.norm = layer_norm(config.width, config.norm_eps) if config.final_norm else nn.Identity()

    def forward(
        self, patches: Tensor | Sequence[Tensor], ids: Tensor | Sequence[Tensor], scales: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """patches `[B, K, P]` at ids `[B, K]` -> `[B, 1 + K, D]`, the CLS token first; without one `[B, K, D]`.

        Or lists of them, for batches that keep other numbers of patches. scales: as of `Blocks`.
        """
        if isinstance(patches, Tensor):
            return self.forward([patches], [ids], scales)[0]  # type: ignore[list-item]  # a tensor each
        embedded = [self.embed(*batch) for batch in zip(patches, ids, strict=True)]
        return [self.norm(x) for x in self.blocks(embedded, scales=scales)]

    def each_block(self, patches: Sequence[Tensor], ids: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """What each block gives, `[B, 1 + K, D]` of each batch, before the last LayerNorm; batches as of `forward`."""
        return self.blocks.each([self.embed(*batch) for batch in zip(patches, ids, strict=True)])
