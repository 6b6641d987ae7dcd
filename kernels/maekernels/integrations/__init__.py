"""The ops in existing masked autoencoders.

    patch(model), unpatch(model)     transformers' ViTMAEForPreTraining and VideoMAEForPreTraining; timm's ViT blocks
    random_masking, MaskedPatchEmbed, tube_mask     replace a fork's own code of MAE, AudioMAE or VideoMAE

Needs only torch: transformers or timm is accessed only when one of its models is given. See docs/integrations.md.
"""

from maekernels.integrations._patching import patch, unpatch
from maekernels.integrations.forks import MaskedPatchEmbed, masked_ids, random_masking, tube_mask

__all__ = ["MaskedPatchEmbed", "masked_ids", "patch", "random_masking", "tube_mask", "unpatch"]
