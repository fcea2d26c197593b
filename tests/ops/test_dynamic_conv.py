"""The dynamic depth-wise convolution as PyTorch operators: gradients, autocast, torch.compile, export."""

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

from dlgsanet import ops
from dlgsanet.ops import autocast


def arguments(dtype: torch.dtype = torch.float64, height: int = 6, width: int = 5, window: int = 3):
    """x, z, weight, bias and window of two groups of two channels."""
    outputs = 2 * window**2
    shapes = [(2, 4, height, width), (2, 3, height, width), (outputs, 3), (outputs,)]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for s in shapes]
    return *(t.requires_grad_() for t in tensors), window


def plain_arguments(dtype: torch.dtype = torch.float64, height: int = 6, width: int = 5, window: int = 3):
    x = arguments(dtype, height, width, window)[0]
    filters = torch.randn(2, 2, window, window, height, width, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x, filters.requires_grad_()


def by_hand(x: Tensor, filters: Tensor) -> Tensor:
    """The definition, a pixel at a time."""
    window, reach = filters.shape[2], filters.shape[2] // 2
    in_group = x.shape[1] // filters.shape[1]
    padded = nn.functional.pad(x, (reach,) * 4)
    out = torch.empty_like(x)
    for b, c, y, col in torch.cartesian_prod(*(torch.arange(n) for n in x.shape)).tolist():
        out[b, c, y, col] = (
            filters[b, c // in_group, :, :, y, col] * padded[b, c, y : y + window, col : col + window]
        ).sum()
    return out


@torch.no_grad()
def test_plain_and_fused_are_the_definition():
    x, filters = plain_arguments()
    torch.testing.assert_close(ops.dynamic_depthwise_conv(x, filters), by_hand(x, filters))
    x, z, weight, bias, window = arguments()
    filters = nn.functional.conv2d(z, weight[:, :, None, None], bias).unflatten(1, (2, window, window))
    torch.testing.assert_close(ops.fused_dynamic_depthwise_conv(x, z, weight, bias, window), by_hand(x, filters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_operators_are_registered_right(dtype):
    opcheck(torch.ops.dlgsanet.dynamic_depthwise_conv, plain_arguments(dtype))
    opcheck(torch.ops.dlgsanet.fused_dynamic_depthwise_conv, arguments(dtype))


def test_channels_last_and_views():
    x, z, weight, bias, window = arguments()
    expected = ops.fused_dynamic_depthwise_conv(x, z, weight, bias, window)
    strided = [t.detach().to(memory_format=torch.channels_last).requires_grad_() for t in (x, z)]
    opcheck(torch.ops.dlgsanet.fused_dynamic_depthwise_conv, (*strided, weight, bias, window))
    torch.testing.assert_close(ops.fused_dynamic_depthwise_conv(*strided, weight, bias, window), expected)
    wider = [nn.functional.pad(t, (1, 2, 3, 4))[..., 3:-4, 1:-2] for t in (x, z)]
    torch.testing.assert_close(ops.fused_dynamic_depthwise_conv(*wider, weight, bias, window), expected)


def test_gradients():
    assert torch.autograd.gradcheck(ops.dynamic_depthwise_conv, plain_arguments(height=4, width=3))
    x, z, weight, bias, window = arguments(height=4, width=3)
    assert torch.autograd.gradcheck(ops.fused_dynamic_depthwise_conv, (x, z, weight, bias, window))
    assert torch.autograd.gradcheck(ops.fused_dynamic_depthwise_conv, (x, z, weight, None, window))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_autocast_keeps_master_weights_and_their_gradients_in_float32(dtype, compiled):
    x, z, weight, bias, window = arguments(torch.float32)
    operation = ops.fused_dynamic_depthwise_conv
    if compiled:
        operation = torch.compile(operation, backend="aot_eager", fullgraph=True)
    with torch.autocast("cpu", dtype):
        out = operation(x, z, weight, bias, window)
    assert out.dtype == dtype
    grads = torch.autograd.grad(out.float().square().sum(), (x, z, weight, bias))
    assert [g.dtype for g in grads] == [torch.float32] * 4
    exact = ops.fused_dynamic_depthwise_conv(x, z, weight, bias, window)
    assert (out.float() - exact).norm() < 0.02 * exact.norm()


def test_compiles_without_a_graph_break_for_every_size():
    compiled = torch.compile(
        lambda *a: torch.relu(ops.fused_dynamic_depthwise_conv(*a)), backend="aot_eager", fullgraph=True, dynamic=True
    )
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    for size in [(6, 5), (9, 8), (7, 11), (3, 4)]:
        *tensors, window = arguments(torch.float32, *size)
        out = compiled(*tensors, window)
        expected = torch.relu(ops.fused_dynamic_depthwise_conv(*tensors, window))
        torch.testing.assert_close(out, expected)
        grads = torch.autograd.grad(out.square().sum(), tensors)
        torch.testing.assert_close(grads, torch.autograd.grad(expected.square().sum(), tensors))
    assert counters["stats"]["unique_graphs"] == 1


def test_exports_with_free_sizes():
    class Layer(nn.Module):
        def forward(self, x, z, weight, bias):
            return ops.fused_dynamic_depthwise_conv(x, z, weight, bias, 3)

    height, width = torch.export.Dim("height", min=2), torch.export.Dim("width", min=2)
    free = {2: height, 3: width}
    *tensors, _ = (a.detach() if isinstance(a, Tensor) else a for a in arguments(torch.float32))
    program = torch.export.export(Layer(), tuple(tensors), dynamic_shapes=(free, free, None, None))
    targets = [str(node.target) for node in program.graph.nodes]
    assert targets.count("dlgsanet.fused_dynamic_depthwise_conv.default") == 1
    *others, window = arguments(torch.float32, 9, 13)
    torch.testing.assert_close(program.module()(*others), ops.fused_dynamic_depthwise_conv(*others, window))


def test_arguments_that_do_not_fit_are_named():
    x, z, weight, bias, window = arguments()
    with pytest.raises(ValueError, match="z must be"):
        ops.fused_dynamic_depthwise_conv(x, z[..., :-1], weight, bias, window)
    with pytest.raises(ValueError, match="window size must be odd"):
        ops.fused_dynamic_depthwise_conv(x, z, weight, bias, 4)
    with pytest.raises(ValueError, match="weight must be"):
        ops.fused_dynamic_depthwise_conv(x, z, weight[:-1], bias[:-1], window)
    with pytest.raises(ValueError, match="3 channels"):
        ops.fused_dynamic_depthwise_conv(x[:, :3], z, weight, bias, window)
    with pytest.raises(ValueError, match="one float dtype"):
        ops.fused_dynamic_depthwise_conv(x, z.float(), weight, bias, window)


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps", "hpu", "mtia"])
def test_autocast_of_every_device_is_seen(device):
    """Of those in no list of the package, too."""
    assert not autocast.is_on(device)
    torch.set_autocast_enabled(device, True)
    try:
        assert autocast.is_on(device)
        with autocast.off(device):
            assert not autocast.is_on(device)
    finally:
        torch.set_autocast_enabled(device, False)
    assert not autocast.is_on("meta")  # which has none
    assert not autocast.is_on("vulkan")


@pytest.mark.parametrize("operator", ["dynamic_depthwise_conv_backward", "fused_dynamic_depthwise_conv_backward"])
def test_gradients_that_do_not_fit_are_errors(operator):
    backward = getattr(torch.ops.dlgsanet, operator)
    x, *rest = arguments() if operator.startswith("fused") else plain_arguments()
    for grad in (x[..., :-1], x[:1], x.float()):
        with pytest.raises(ValueError, match="gradient must have"):
            backward(grad.detach(), x, *rest)
    with pytest.raises(ValueError, match="must be"):
        backward(x.detach(), x, rest[0][..., :-1], *rest[1:])
