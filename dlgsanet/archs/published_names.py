"""The mapping between the parameter names of this project and those of published checkpoints.

Checkpoints have the published names, so that the published code can read them and this project can read published ones.
The modules here are named after the paper. `DLGSANet.state_dict` returns the published names, and `load_state_dict`
expects them.
"""

import re

# Parts outside the groups, ours -> published.
_OUTER = {
    "shallow": "overlap_embed.0.proj",
    "reconstruct.before": "conv_before_upsample",
    "reconstruct.upsample": "upsample",
    "reconstruct.last": "conv_last",
}

# Parts of a block, ours -> published.
_LOCAL = {
    "mhdlsa.norm": "norm1.body",
    "mhdlsa.proj_in": "IDynamicDWConv.conv0",
    "mhdlsa.squeeze": "IDynamicDWConv.conv.conv1.0",
    "mhdlsa.spatial": "IDynamicDWConv.conv.conv1.1",
    "mhdlsa.filters": "IDynamicDWConv.conv.conv2.0",
    "mhdlsa.depthwise": "IDynamicDWConv.conv",  # idynamic: false
    "mhdlsa.proj_out": "IDynamicDWConv.conv1",
    "mhdlsa_ffn.norm": "norm2.body",
    "mhdlsa_ffn.proj_in": "IDynamic_ffn.project_in",
    "mhdlsa_ffn.depthwise": "IDynamic_ffn.dwconv",
    "mhdlsa_ffn.proj_out": "IDynamic_ffn.project_out",
    "mhdlsa_ffn.expand": "IDynamic_ffn.body.0",
    "mhdlsa_ffn.reduce": "IDynamic_ffn.body.2",
}
_GLOBAL = {
    "sparse_gsa.norm": "norm3.body",
    "sparse_gsa.temperature": "restormer_attn.temperature",
    "sparse_gsa.qkv": "restormer_attn.qkv",
    "sparse_gsa.depthwise": "restormer_attn.qkv_dwconv",
    "sparse_gsa.proj_out": "restormer_attn.project_out",
    "sparse_gsa_ffn.norm": "norm4.body",
    "sparse_gsa_ffn.proj_in": "restormer_ffn.project_in",
    "sparse_gsa_ffn.depthwise": "restormer_ffn.dwconv",
    "sparse_gsa_ffn.proj_out": "restormer_ffn.project_out",
    "sparse_gsa_ffn.expand": "restormer_ffn.body.0",
    "sparse_gsa_ffn.reduce": "restormer_ffn.body.2",
}
_PARTS = _LOCAL | _GLOBAL


def published_name(name: str, groups: int, blocks: int, layers_per_block: int, body_norm: bool) -> str:
    """The published name of the parameter `name` of a `DLGSANet` with these options."""
    deep = "deep_feature_extraction"
    first = int(body_norm)  # the published sequence: [norm], groups, [norm], convolution
    if match := re.fullmatch(r"groups\.(\d+)\.blocks\.(\d+)\.(\w+\.\w+)(.*)", name):
        group, block, part, rest = match.groups()
        layer = int(block) * layers_per_block + (layers_per_block == 2 and part in _GLOBAL)
        return f"{deep}.{int(group) + first}.body.{layer}.{_PARTS[part]}{rest}"
    if match := re.fullmatch(r"groups\.(\d+)\.conv\.(\w+)", name):
        group, leaf = match.groups()
        return f"{deep}.{int(group) + first}.body.{blocks * layers_per_block}.{leaf}"
    module, leaf = name.rsplit(".", 1)
    if module in ("norm_before", "norm_after"):
        return f"{deep}.{0 if module == 'norm_before' else groups + 1}.body.{leaf}"
    if module == "conv":
        return f"{deep}.{groups + 2 * first}.{leaf}"
    for ours, published in _OUTER.items():
        if f"{module}.".startswith(f"{ours}."):
            return f"{published}{module[len(ours) :]}.{leaf}"
    raise KeyError(name)
