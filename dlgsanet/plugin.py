"""The plugin: importing this module registers what is ours in BasicSR's registries.

Modules that need BasicSR import it through this one, so that it works with current versions of PyTorch.
"""

import dlgsanet.basicsr_compat  # noqa: F401, I001  # first: BasicSR does not import without it
import basicsr  # noqa: F401  # registers BasicSR's own
from basicsr.utils.registry import ARCH_REGISTRY, DATASET_REGISTRY, LOSS_REGISTRY, MODEL_REGISTRY

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.data.cached_paired_dataset import CachedPairedImageDataset
from dlgsanet.data.degraded_paired_dataset import DegradedPairedImageDataset
from dlgsanet.losses.fft_loss import FFTLoss
from dlgsanet.models.dlgsanet_model import DLGSANetModel

ARCH_REGISTRY.register(DLGSANet)
DATASET_REGISTRY.register(CachedPairedImageDataset)
DATASET_REGISTRY.register(DegradedPairedImageDataset)
LOSS_REGISTRY.register(FFTLoss)
MODEL_REGISTRY.register(DLGSANetModel)
