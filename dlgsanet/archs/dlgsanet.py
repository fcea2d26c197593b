"""DLGSANet (Li et al., ICCV 2023, arXiv 2301.02031), in the order of its Figure 2."""

import inspect
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dlgsanet import ops
from dlgsanet.archs.convolution import Conv3x3
from dlgsanet.archs.feed_forward import FEED_FORWARDS
from dlgsanet.archs.groups import HDTB, RHDTG
from dlgsanet.archs.low_memory import LowMemory
from dlgsanet.archs.mhdlsa import MHDLSA, StaticLocalLayer
from dlgsanet.archs.norm import LayerNorm
from dlgsanet.archs.options import check_network_options
from dlgsanet.archs.parts import record_of
from dlgsanet.archs.published_names import published_name
from dlgsanet.archs.reconstruction import reconstruction
from dlgsanet.archs.replays import replay
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.ops.cached_tensors import cached_tensors
from dlgsanet.ops.transforms import is_plain

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of the DIV2K training images


class DLGSANet(LowMemory):
    """Lightweight dynamic local and global self-attention network for image super-resolution.

    The arguments are the `network_g` options of published files, with the published defaults.

    Args:
        in_chans: channels of the image. With 3 (RGB) the network subtracts the mean of DIV2K.
        dim: feature channels C, a multiple of `idynamic_num_heads` and `restormer_num_heads`.
        groups: residual groups (RHDTG).
        blocks: blocks (HDTB) in a group.
        buildblock_type: `sparseedge`: MHDLSA then SparseGSA; `edge`: MHDLSA then the same attention with softmax
            (MDTA); `idynamic`: only MHDLSA; `restormer`: only MDTA. The default is the published code's; the
            paper's network is `sparseedge`.
        window_size: side of MHDLSA's filters, odd.
        idynamic_num_heads: channels that share a filter. Despite its published name, it is not a number of heads.
        idynamic_ffn_type: `GDFN` or `BaseFFN`, after MHDLSA.
        idynamic_ffn_expansion_factor: ratio of the hidden channels of that network to `dim`.
        idynamic: False replaces MHDLSA with a static depth-wise convolution.
        restormer_num_heads: heads of SparseGSA.
        restormer_ffn_type: `GDFN` or `BaseFFN`, after SparseGSA.
        restormer_ffn_expansion_factor: ratio of the hidden channels of that network to `dim`.
        tlc_flag: use test-time local conversion (TLC) in evaluation.
        tlc_kernel: side of TLC's windows in pixels of the input (published: 96, 72, 48 for x2, x3, x4).
        activation: SparseGSA's selection: `relu` (the paper's), `gelu`, `sigmoid`, `softmax` or `topk`.
        topk_ratio: share of similarities that `topk` keeps, in (0, 1]; None is 0.5. An error with other activations.
        body_norm: normalise before and after the groups.
        img_range: the image less its mean is multiplied by this before the first layer; the result is divided by it.
        upsampler: `pixelshuffledirect`, `pixelshuffle`, or `''` for `upscale: 1`.
        upscale: factor of enlargement.
        input_resolution: no effect; published option files contain it.

    Shape: [B, in_chans, H, W] in [0, 1] -> [B, in_chans, upscale * H, upscale * W], not clipped.

    Raises:
        ValueError: options are unknown, out of range or do not fit each other. The message lists all of them.
    """

    def __init__(
        self,
        in_chans: int = 3,
        dim: int = 60,
        groups: int = 4,
        blocks: int = 3,
        buildblock_type: str = "edge",
        window_size: int = 7,
        idynamic_num_heads: int = 6,
        idynamic_ffn_type: str = "GDFN",
        idynamic_ffn_expansion_factor: float = 2.0,
        idynamic: bool = True,
        restormer_num_heads: int = 6,
        restormer_ffn_type: str = "GDFN",
        restormer_ffn_expansion_factor: float = 2.0,
        tlc_flag: bool = True,
        tlc_kernel: int = 48,
        activation: str = "relu",
        topk_ratio: float | None = None,
        body_norm: bool = False,
        img_range: float = 1.0,
        upsampler: str = "",
        upscale: int = 4,
        input_resolution: Any = None,
    ):
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if problems := check_network_options(options):
            raise ValueError("; ".join(problems))
        super().__init__()
        self.upscale = upscale
        self.img_range = img_range
        self.mean = RGB_MEAN if in_chans == 3 else (0.0,) * in_chans

        def local_layer() -> tuple[nn.Module, nn.Module]:
            attention = MHDLSA(dim, window_size, idynamic_num_heads) if idynamic else StaticLocalLayer(dim, window_size)
            return attention, FEED_FORWARDS[idynamic_ffn_type](dim, idynamic_ffn_expansion_factor)

        def global_layer() -> tuple[nn.Module, nn.Module]:
            selection = activation if buildblock_type == "sparseedge" else "softmax"
            attention = SparseGSA(
                dim,
                restormer_num_heads,
                selection,
                0.5 if topk_ratio is None else topk_ratio,
                tlc_kernel if tlc_flag else None,
            )
            return attention, FEED_FORWARDS[restormer_ffn_type](dim, restormer_ffn_expansion_factor)

        def block() -> HDTB:
            return HDTB(
                local_layer() if buildblock_type != "restormer" else None,
                global_layer() if buildblock_type != "idynamic" else None,
            )

        self.shallow = Conv3x3(in_chans, dim, bias=False)
        self.norm_before = LayerNorm(dim) if body_norm else nn.Identity()
        self.groups = nn.Sequential(*(RHDTG(dim, [block() for _ in range(blocks)]) for _ in range(groups)))
        self.norm_after = LayerNorm(dim) if body_norm else nn.Identity()
        self.conv = Conv3x3(dim, dim)
        self.reconstruct = reconstruction(upsampler, dim, in_chans, upscale)

        layers_per_block = 2 if buildblock_type in ("sparseedge", "edge") else 1
        self._published_names = {
            name: published_name(name, groups, blocks, layers_per_block, body_norm)
            for name, _ in self.named_parameters()
        }
        self._register_state_dict_hook(_to_published_names)
        self._register_load_state_dict_pre_hook(_from_published_names, with_module=True)

    def embed(self, image: Tensor) -> Tensor:
        """Shallow features: [B, in_chans, H, W] -> [B, dim, H, W]."""
        mean = self._mean_like(image)
        if self.img_range == 1:
            return self.shallow(image, mean=mean)
        return self.shallow((image - mean) * self.img_range)

    def restore(self, features: Tensor) -> Tensor:
        """Reconstruction: [B, dim, H, W] -> [B, in_chans, upscale * H, upscale * W]."""
        if self.img_range == 1:
            return self.reconstruct(features, to=self._mean_like(features))
        image = self.reconstruct(features) / self.img_range
        return image + self._mean_like(image)

    def forward(self, x: Tensor) -> Tensor:
        if self.can_reuse_memory(x):
            return self.in_reused_memory(x)
        if self.can_replay(x):
            return replay(DLGSANet._layer_by_layer, self, x)
        return self._layer_by_layer(x)

    def _layer_by_layer(self, x: Tensor) -> Tensor:
        shallow = self.embed(x)
        # A traced graph plans no memory, and not every release of PyTorch can trace the context.
        with ops.layers_of_network(len(self.layers()), self._keep_x_alone(shallow)) if is_plain() else nullcontext():
            features = self.conv(self.norm_after(self.groups(self.norm_before(shallow))), to=shallow)
        return self.restore(features)

    def _keep_x_alone(self, x: Tensor) -> int:
        """How many layers keep only their input for the backward pass, if there is one."""
        if not torch.is_grad_enabled():
            return 0
        records = {type(layer): record_of(layer) for layer in self.layers()}
        alone = {kind for kind, record in records.items() if record and ops.keeps_x_alone(record(), x)}
        return sum(type(layer) in alone for layer in self.layers())

    def _mean_like(self, image: Tensor) -> Tensor:
        if type(image) is not Tensor or not is_plain():  # graphs and transforms make their own constants
            return _constant(self.mean, image.dtype, image.device)
        return _kept_constant(self.mean, image.dtype, image.device)


def default_options() -> dict[str, Any]:
    """Every `network_g` option of a `DLGSANet` (no ``type``) with its default."""
    return {name: parameter.default for name, parameter in inspect.signature(DLGSANet).parameters.items()}


def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """[1, values, 1, 1], exact in every dtype."""
    # Filled, not copied from the host, because a CUDA graph may be captured.
    return torch.cat([torch.full((1, 1, 1, 1), value, dtype=dtype, device=device) for value in values], 1)


_kept_constant = cached_tensors(maxsize=16)(_constant)


def _to_published_names(network: DLGSANet, state_dict: dict[str, Tensor], prefix: str, _metadata: object) -> None:
    for name, published in network._published_names.items():
        state_dict[prefix + published] = state_dict.pop(prefix + name)


def _from_published_names(network: DLGSANet, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    for name, published in network._published_names.items():
        if prefix + published in state_dict:
            state_dict[prefix + name] = state_dict.pop(prefix + published)
