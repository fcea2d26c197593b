"""The plugin: importing this module registers what is ours in BasicSR's registries.

Everything that needs BasicSR imports it through here, so that it finds it adapted to today's stack.
"""

import dlgsanet.basicsr_compat  # noqa: F401, I001  # first: BasicSR does not import without it
import basicsr  # noqa: F401  # registers BasicSR's own
from basicsr.utils.registry import ARCH_REGISTRY

from dlgsanet.archs.dlgsanet import DLGSANet

ARCH_REGISTRY.register(DLGSANet)
