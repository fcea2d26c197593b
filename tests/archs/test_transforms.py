"""Calls of the network that PyTorch follows: traces, `torch.func`, forward mode, second derivatives; other defaults."""

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from dlgsanet.ops import dispatch
from tests.small_network import small_network

IMAGE = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
DIRECTION = torch.rand(IMAGE.shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=["native", "torch"])
def network(request) -> Iterator[torch.nn.Module]:
    names = list(dispatch.BACKENDS)
    with dispatch.using(*names[names.index(request.param) :]):
        yield small_network()


def along_direction(network: torch.nn.Module) -> Tensor:
    """The derivative of the result as the image moves in `DIRECTION`, by central differences in float64."""
    step, exact = 1e-5 * DIRECTION.double(), small_network().double()
    return ((exact(IMAGE + step) - exact(IMAGE - step)) / 2e-5).float()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_computes_what_the_network_computes():
    network = small_network()
    traced = torch.jit.trace(network, torch.zeros_like(IMAGE))
    torch.testing.assert_close(traced(IMAGE), network(IMAGE))


def test_vmap_grad_and_jvp(network):
    expected = network(IMAGE)
    torch.testing.assert_close(torch.func.vmap(lambda x: network(x[None])[0])(IMAGE), expected)
    image = IMAGE.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(image).square().sum(), image)
    torch.testing.assert_close(torch.func.grad(lambda x: network(x).square().sum())(IMAGE), gradient)
    value, derivative = torch.func.jvp(network, (IMAGE,), (DIRECTION,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(derivative, along_direction(network))
    torch.testing.assert_close(network(IMAGE), expected)  # nothing of the transforms is kept


def test_forward_mode_loses_no_derivative(network):
    with torch.no_grad(), forward_ad.dual_level():
        out = forward_ad.unpack_dual(network(forward_ad.make_dual(IMAGE, DIRECTION)))
    torch.testing.assert_close(out.tangent, along_direction(network))


def second_derivative(network: torch.nn.Module, image: Tensor) -> Tensor:
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(image).square().sum(), image, create_graph=True)
    gradient.square().sum().backward()
    return image.grad


def test_second_derivatives_are_right_or_refused():
    image, network = IMAGE[:1, :, :5, :4].double(), small_network().double()
    with dispatch.using("reference"):
        expected = second_derivative(network, image)
    for_func = torch.func.grad(lambda x: torch.func.grad(lambda x: network(x).square().sum())(x).square().sum())(image)
    torch.testing.assert_close(expected, for_func)
    with dispatch.using("torch", "reference"):
        torch.testing.assert_close(second_derivative(network, image), expected)
    with dispatch.using("native", "reference"), pytest.raises(RuntimeError, match="once_differentiable"):
        second_derivative(small_network(), IMAGE)


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("changed", [partial(default_dtype, torch.float64), partial(torch.device, "meta")])
def test_pytorchs_defaults_of_dtype_and_device_change_nothing(network, changed):
    trained, image = small_network().requires_grad_(True).train(), torch.rand(1, 3, 30, 27)  # several windows
    trained(image).sum().backward()
    expected, gradients = network(image), [p.grad for p in trained.parameters()]
    trained.zero_grad()
    with changed():
        torch.testing.assert_close(network(image), expected, rtol=0, atol=0)
        trained(image).sum().backward()
    torch.testing.assert_close([p.grad for p in trained.parameters()], gradients, rtol=0, atol=0)


def test_an_empty_batch_gives_an_empty_batch(network):
    assert network(IMAGE[:0]).shape == (0, 3, 18, 22)
