"""Fused ops for masked autoencoders. Needs torch, and triton on CUDA. Each op is documented in its module."""

from maekernels.add_noise import add_noise
from maekernels.attention import Segments, attention
from maekernels.diffuse_patches import diffuse_patches
from maekernels.gather_tokens import gather_tokens
from maekernels.info_nce import info_nce
from maekernels.masked_mse import masked_mse
from maekernels.patchify import patchify
from maekernels.random_mask import MaskIds, random_mask
from maekernels.scatter_tokens import scatter_tokens

__all__ = [
    "MaskIds",
    "Segments",
    "add_noise",
    "attention",
    "diffuse_patches",
    "gather_tokens",
    "info_nce",
    "masked_mse",
    "patchify",
    "random_mask",
    "scatter_tokens",
]
