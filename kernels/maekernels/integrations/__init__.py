"""The ops in other people's masked autoencoders.

    patch(model), unpatch(model)     transformers' ViTMAEForPreTraining and VideoMAEForPreTraining; timm's ViT blocks
    random_masking, MaskedPatchEmbed, tube_mask     what a fork of MAE, AudioMAE or VideoMAE calls instead of its own

Needs torch alone: a peer's package is looked at only when a model of it is given. See docs/integrations.md.
"""

from maekernels.integrations._patching import patch, unpatch
from maekernels.integrations.forks import MaskedPatchEmbed, masked_ids, random_masking, tube_mask

__all__ = ["MaskedPatchEmbed", "masked_ids", "patch", "random_masking", "tube_mask", "unpatch"]
