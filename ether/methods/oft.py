"""The constraint of COFT with the radius of the official code, in PEFT's OFT.

COFT keeps the trained skew-symmetric blocks near zero. Official OFT (`oft-db/oft_utils/attention_processor.py` in its
repository) multiplies ``eps`` by the square of the block size b before it projects, so that a block's Frobenius norm is at most
eps b² / √r for r blocks. PEFT copies the projection without this factor: with the official ``eps`` of 6e-5 the rotation would be
thousands of times closer to the identity.
"""

from __future__ import annotations

from torch import nn


def official_radius(model: nn.Module) -> nn.Module:
    """Gives the OFT layers of an adapted model that are constrained (`coft`) the official radius; other layers are unchanged."""
    from peft.tuners.oft.layer import OFTRotationModule

    for module in model.modules():
        if isinstance(module, OFTRotationModule) and module.coft:
            module.eps *= module.block_size**2
    return model
