"""The public behaviour of the network: sizes, checkpoints, images of any size, batches, dtypes, wrong options."""

import copy
import functools

import pytest
import torch

from dlgsanet.archs.dlgsanet import DLGSANet
from dlgsanet.archs.norm import LayerNorm

SIZES = {"Tiny": (48, 3, 3), "Light": (48, 4, 3), "Large": (90, 6, 4)}
PUBLISHED_PARAMETERS = {
    ("Tiny", 2): 565_710, ("Tiny", 3): 572_205, ("Tiny", 4): 581_298,
    ("Light", 2): 745_188, ("Light", 3): 751_683, ("Light", 4): 760_776,
    ("Large", 2): 4_733_724, ("Large", 3): 4_745_889, ("Large", 4): 4_762_920,
}  # fmt: skip


def small(**options) -> DLGSANet:
    defaults = {"dim": 12, "groups": 1, "blocks": 1, "buildblock_type": "sparseedge"}
    defaults |= {"upsampler": "pixelshuffledirect", "upscale": 2, "tlc_kernel": 8}
    torch.manual_seed(0)
    return DLGSANet(**(defaults | options))


@pytest.mark.parametrize(("size", "upscale"), PUBLISHED_PARAMETERS)
def test_parameter_counts_are_the_published_ones(size, upscale):
    dim, groups, blocks = SIZES[size]
    with torch.device("meta"):
        network = small(dim=dim, groups=groups, blocks=blocks, upscale=upscale)
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED_PARAMETERS[size, upscale]


@pytest.mark.parametrize("size", [(1, 1), (1, 19), (7, 8), (8, 8), (9, 17), (33, 20)])
@pytest.mark.parametrize("training", [True, False])
def test_any_image_size(size, training):
    network = small().train(training)
    with torch.no_grad():
        assert network(torch.rand(1, 3, *size)).shape == (1, 3, 2 * size[0], 2 * size[1])


def test_a_batch_gives_the_same_as_its_images_one_by_one():
    network = small().double().eval()
    images = torch.rand(3, 3, 21, 13, dtype=torch.float64)
    with torch.no_grad():
        together = network(images)
        alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    network = small().eval()
    image = torch.rand(1, 3, 20, 24)
    with torch.no_grad():
        output, exact = network.to(dtype)(image.to(dtype)), network.double()(image.to(dtype).double())
    assert output.dtype == dtype
    torch.testing.assert_close(output.double(), exact, rtol=0, atol=64 * torch.finfo(dtype).eps)


def test_a_forward_pass_changes_no_state():
    """One image must not influence the next. The published TLC kept its window counts in `self`."""
    network = small().eval()
    first, other = torch.rand(1, 3, 20, 24), torch.rand(1, 3, 33, 9)
    before = set(vars(network))
    with torch.no_grad():
        fresh = network(first)
        network(other)
        assert torch.equal(network(first), fresh)
    assert set(vars(network)) == before


def test_images_within_one_window_are_the_same_with_and_without_tlc():
    image = torch.rand(1, 3, 8, 8)
    network = small().eval()
    with torch.no_grad():
        windowed, whole = network(image), network.train()(image)
    torch.testing.assert_close(windowed, whole)


@pytest.mark.parametrize("buildblock_type", ["sparseedge", "edge", "idynamic", "restormer"])
@pytest.mark.parametrize("body_norm", [True, False])
def test_checkpoints_are_written_and_read_back(tmp_path, buildblock_type, body_norm):
    options = {"buildblock_type": buildblock_type, "body_norm": body_norm, "blocks": 2, "groups": 2}
    network, other = small(**options), small(**options)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    torch.save({"params": network.state_dict()}, tmp_path / "net_g.pth")
    names = torch.load(tmp_path / "net_g.pth", weights_only=True)["params"]
    assert all(name.startswith(("overlap_embed.", "deep_feature_extraction.", "upsample.")) for name in names)
    other.load_state_dict(names, strict=True)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), other.parameters(), strict=True))


def test_names_are_the_same_inside_wrappers_and_copies():
    network = small()
    wrapped = torch.nn.Sequential(copy.deepcopy(network))
    state = {f"0.{name}": value for name, value in network.state_dict().items()}
    assert wrapped.state_dict().keys() == state.keys()
    wrapped.load_state_dict(state, strict=True)


def test_torch_compile_and_export_see_the_whole_graph():
    network, image = small().eval(), torch.rand(1, 3, 12, 20)
    with torch.no_grad():
        expected = network(image)
        compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(image), expected)
        torch.testing.assert_close(torch.export.export(network, (image,)).module()(image), expected)


class _Louder(torch.nn.Conv2d):
    """As LoRA and quantisation replace a module: the weights that it shows are not all that it does."""

    def forward(self, x):
        return super().forward(1.5 * x)


@pytest.mark.parametrize("training", [False, True])
def test_parts_with_hooks_and_replaced_parts_are_called(training):
    network, image = small().train(training), torch.rand(1, 3, 12, 20)
    for name, part in network.named_modules():
        if not isinstance(part, (torch.nn.Conv2d, LayerNorm)) or name == "shallow":  # whose mean is subtracted later
            continue
        scaled, hooked, replaced = (copy.deepcopy(network) for _ in range(3))
        with torch.no_grad():
            scaled.get_submodule(name).weight.mul_(1.5)
        if isinstance(part, LayerNorm):
            scale = lambda norm, _, out: 1.5 * out - 0.5 * norm.bias.view(-1, 1, 1)  # noqa: E731
            hooked.get_submodule(name).register_forward_hook(scale)
        else:
            hooked.get_submodule(name).register_forward_pre_hook(lambda _, inputs: (1.5 * inputs[0],))
        changed = [hooked]
        if type(part) is torch.nn.Conv2d:
            replaced.get_submodule(name).__class__ = _Louder
            changed.append(replaced)
        wanted = scaled(image)
        for other in changed:
            torch.testing.assert_close(other(image), wanted, msg=name)
            if not training:
                with torch.no_grad():
                    rows = torch.cat([part for _, part in other.by_rows(image)], 2)
                torch.testing.assert_close(rows, wanted, msg=name)


def _image_by_rows(network, image):
    return torch.cat([part for _, part in network.by_rows(image)], 2)


class _Halved(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) / 2


@pytest.mark.parametrize("name", ["groups.0", "groups.0.blocks", "groups.0.blocks.0", "groups.0.blocks.0.mhdlsa_ffn"])
def test_replaced_and_observed_modules_are_called_without_gradients_too(name):
    network, image, called = small(groups=2, blocks=2).eval(), torch.rand(1, 3, 12, 20), []
    network.get_submodule(name).register_forward_hook(lambda *_: called.append(name))
    with torch.no_grad():
        network(image)
    assert called == [name]
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, _Halved(network.get_submodule(name)))
    expected = network(image)
    assert expected.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(network(image), expected)
        torch.testing.assert_close(_image_by_rows(network, image), expected)


def _pad_around(block):
    block.mhdlsa.spatial.padding_mode = "circular"


def _dilate(block):
    hidden = block.mhdlsa_ffn.depthwise.in_channels
    block.mhdlsa_ffn.depthwise = torch.nn.Conv2d(hidden, hidden, 3, padding=2, dilation=2, groups=hidden, bias=False)


def _add_bias(block):
    block.sparse_gsa.proj_out = torch.nn.Conv2d(*block.sparse_gsa.proj_out.weight.shape[:2], 1)


def _remove_bias(block):
    block.mhdlsa.squeeze.bias = None


@pytest.mark.parametrize("change", [_pad_around, _dilate, _add_bias, _remove_bias])
def test_padding_dilation_and_biases_of_parts_count(change):
    network, image = small().eval(), torch.rand(1, 3, 12, 20)
    change(network.groups[0].blocks[0])
    called = copy.deepcopy(network)
    for part in called.modules():
        if type(part) is torch.nn.Conv2d:
            part.forward = functools.partial(torch.nn.Conv2d.forward, part)
    torch.testing.assert_close(network(image), called(image))
    with torch.no_grad():
        torch.testing.assert_close(network(image), called(image))


def test_a_network_that_pads_around_enlarges_tiles_of_a_pattern():
    # In one TLC window. The dynamic convolution, which has no padding mode, pads with zeros.
    network, image = small(buildblock_type="restormer", tlc_kernel=40).eval(), torch.rand(1, 3, 40, 20)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.padding_mode = "circular"
    shifted = image.roll((7, 5), (2, 3))
    for enlarge in (network, functools.partial(_image_by_rows, network)):
        with torch.no_grad():
            wanted = enlarge(image).roll((7 * network.upscale, 5 * network.upscale), (2, 3))
            torch.testing.assert_close(enlarge(shifted), wanted, rtol=1e-4, atol=1e-5)


def test_gray_images_and_no_enlargement():
    network = small(in_chans=1, upsampler="", upscale=1).eval()
    with torch.no_grad():
        assert network(torch.rand(2, 1, 10, 11)).shape == (2, 1, 10, 11)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"dim": 50}, "idynamic_num_heads"),
        ({"window_size": 6}, "window_size"),
        ({"activation": "swish"}, "activation"),
        ({"buildblock_type": "edge", "activation": "swish"}, "activation"),
        ({"topk_ratio": 0.5}, "topk_ratio"),
        ({"activation": "topk", "topk_ratio": 0.0}, "topk_ratio"),
        ({"activation": "topk", "topk_ratio": 1.5}, "topk_ratio"),
        ({"upsampler": "", "upscale": 2}, "upsampler"),
        ({"upsampler": "pixelshuffle", "upscale": 6}, "upscale"),
        ({"upsampler": "nearest"}, "upsampler"),
        ({"groups": 0}, "groups"),
        ({"blocks": 1.5}, "blocks"),
        ({"idynamic_ffn_type": "FFN"}, "idynamic_ffn_type"),
        ({"restormer_ffn_expansion_factor": -1}, "restormer_ffn_expansion_factor"),
        ({"tlc_flag": "yes"}, "tlc_flag"),
        ({"img_range": 0}, "img_range"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        small(**options)


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(ValueError, match=r"activation.*groups.*idynamic_ffn_expansion_factor"):
        small(activation="swish", groups=-1, idynamic_ffn_expansion_factor=0)


def test_misspelt_options_are_errors():
    with pytest.raises(TypeError, match="actvation"):
        DLGSANet(actvation="relu")


def test_published_defaults_without_an_upsampler_are_an_error():
    with pytest.raises(ValueError, match="upsampler"):
        DLGSANet()
