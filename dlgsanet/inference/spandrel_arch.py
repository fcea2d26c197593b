"""DLGSANet for spandrel, the model loader of many picture programs (chaiNNer, ComfyUI and others).

    from dlgsanet.inference.spandrel_arch import register
    register()
    model = spandrel.ModelLoader().load_from_file("DLGSANet_Tiny_x2.safetensors")

spandrel passes tensors only, so options that do not follow from shapes take the published values: ReLU in SparseGSA,
TLC with windows of 96, 72, 48 pixels for x2, x3, x4 (48 otherwise), `img_range` 1. See `dlgsanet.archs.detect`.
"""

from collections.abc import Mapping

from spandrel import MAIN_REGISTRY, Architecture, ArchSupport, ImageModelDescriptor, ModelTiling
from torch import Tensor

from dlgsanet.archs.detect import is_dlgsanet, published_options
from dlgsanet.archs.dlgsanet import DLGSANet


class DLGSANetArch(Architecture[DLGSANet]):
    """How spandrel recognises and loads a DLGSANet."""

    def __init__(self) -> None:
        super().__init__(id="DLGSANet", detect=is_dlgsanet)

    def load(self, state_dict: Mapping[str, Tensor]) -> ImageModelDescriptor[DLGSANet]:
        """The network of a state dict with the published names.

        Raises:
            ValueError: some of its tensors are missing or do not fit each other.
        """
        options = published_options(state_dict)
        scale = options["upscale"]
        return ImageModelDescriptor(
            DLGSANet(**options),
            state_dict,
            architecture=self,
            purpose="Restoration" if scale == 1 else "SR",
            tags=[f"{options['dim']}C{options['groups']}G{options['blocks']}B"],
            supports_half=True,
            supports_bfloat16=True,
            scale=scale,
            input_channels=options["in_chans"],
            output_channels=options["in_chans"],
            # Tiles have other TLC windows than the whole image: their borders can show.
            tiling=ModelTiling.DISCOURAGED,
        )


def register() -> None:
    """Register DLGSANet with spandrel's loaders; calling it again does nothing."""
    MAIN_REGISTRY.add(ArchSupport.from_architecture(DLGSANetArch()), ignore_duplicates=True)
