"""Networks without gradients work in a few blocks of memory: same results, no page faults, nothing overwritten."""

import gc
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dlgsanet import ops
from dlgsanet.archs.sparse_gsa import SparseGSA
from dlgsanet.ops import kept_memory
from dlgsanet.ops.backends.native import library
from tests.conftest import python
from tests.small_network import in_turn, small_network

needs_native = pytest.mark.skipif(not library.library_path().exists(), reason="the native libraries are not built")
MAP = 512 * 1024  # floats of a tensor that is large enough


@pytest.fixture(autouse=True)
def _no_spare_blocks(monkeypatch):
    monkeypatch.setattr(kept_memory, "_spare", [])


def image(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed))


@needs_native
@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, (1, 3, 1, 1)),
        ({"groups": 3, "blocks": 2}, (2, 3, 60, 84)),
        ({"upscale": 4, "groups": 2}, (1, 3, 210, 170)),  # several strips
        ({"upsampler": "pixelshuffle", "upscale": 3, "img_range": 255.0}, (1, 3, 300, 61)),
        ({"buildblock_type": "edge", "tlc_flag": False, "activation": "softmax"}, (1, 3, 130, 180)),
        ({"dim": 8, "upscale": 4}, (1, 3, 210, 170)),
        ({"body_norm": True}, (1, 3, 500, 50)),
        ({"idynamic": False}, (1, 3, 150, 150)),
    ],
)
def test_results_are_those_of_the_modules_in_turn_to_the_last_bit(options, size):
    network, x = small_network(**{"dim": 16} | options), image(*size)
    for inference in (True, False):  # its weights need no gradients
        with torch.inference_mode(inference):
            assert torch.equal(network(x), in_turn(network, x))


@needs_native
def test_gradients_are_as_before():
    network = small_network(dim=16).requires_grad_()
    x = image(1, 3, 20, 30).requires_grad_()
    network(x).square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None for p in network.parameters())
    with torch.no_grad():
        torch.testing.assert_close(network(x), in_turn(network, x), rtol=0, atol=0)


@needs_native
def test_a_call_takes_three_feature_maps(monkeypatch):
    made = []
    new_block = kept_memory._new_block
    monkeypatch.setattr(kept_memory, "_new_block", lambda size: made.append(size) or new_block(size))
    network, x = small_network(dim=16, groups=2, blocks=3), image(1, 3, 256, 200)
    with torch.inference_mode():
        network(x)
    feature_map = 4 * 16 * 256 * 200
    assert len(made) == 3  # what the group starts from, and the input and output of a layer
    assert max(made) <= feature_map + kept_memory.HUGE_PAGE


@needs_native
def test_a_second_call_takes_no_new_memory(monkeypatch):
    network, x = small_network(dim=16, groups=2), image(1, 3, 256, 200)
    with torch.inference_mode():
        before = network(x)
        monkeypatch.setattr(kept_memory, "_new_block", lambda size: pytest.fail("a new block"))
        assert torch.equal(network(x), before)


def spare_blocks_after(contexts: list[int], each: int) -> list[int]:
    """Bytes of the blocks that stay after contexts, one after the other, with so many tensors of so many floats."""
    for count in contexts:
        with ops.KeptMemory():
            tensors = [ops.empty(count) for _ in range(each)]
        del tensors
    return [len(block) for block, _ in kept_memory._spare]


def test_a_process_keeps_few_blocks_between_calls(monkeypatch):
    monkeypatch.setattr(kept_memory, "SPARE", 3 * kept_memory.HUGE_PAGE)
    assert spare_blocks_after([MAP, 4 * MAP], each=2) == [2**21 + kept_memory.HUGE_PAGE]


def test_blocks_of_a_new_size_replace_those_of_an_old_one(monkeypatch):
    monkeypatch.setattr(kept_memory, "SPARE", 6 * kept_memory.HUGE_PAGE)
    assert spare_blocks_after([MAP, 4 * MAP], each=3) == [4 * 2**21 + kept_memory.HUGE_PAGE]


@needs_native
def test_layers_that_use_results_of_others_run_in_turn():
    class Halved(SparseGSA):
        def forward(self, x):
            return super().forward(x) / 2

    network, x = small_network(dim=16, groups=2), image(1, 3, 60, 50)
    network.groups[0].blocks[0].sparse_gsa.__class__ = Halved
    network.groups[1].blocks[0].mhdlsa.forward = lambda x: x * 2
    with torch.inference_mode():
        assert torch.equal(network(x), in_turn(network, x))


@needs_native
def test_parts_that_use_results_of_others_run_in_turn():
    network, x = small_network(dim=16, groups=2), image(1, 3, 60, 50)
    part = network.groups[0].blocks[0].mhdlsa_ffn.proj_in  # not of the last layer of its kind
    part.forward = lambda x: torch.nn.Conv2d.forward(part, x) * 2
    with torch.inference_mode():
        assert torch.equal(network(x), in_turn(network, x))


@needs_native
def test_a_weight_that_is_no_parameter_may_require_gradients():
    network, x = small_network(dim=16), image(1, 3, 20, 30)
    part, delta = network.groups[0].blocks[0].mhdlsa.proj_in, torch.zeros(16, 16, 1, 1, requires_grad=True)
    weight = part.weight
    del part.weight
    part.weight = weight + delta
    network(x).sum().backward()
    assert delta.grad is not None


def test_deferred_calls_run_in_order_and_keep_what_they_use():
    with ops.KeptMemory() as memory:
        result, block = torch.zeros(1), ops.empty(MAP)
        with memory.deferring():
            for n in (2.0, 3.0):
                small = torch.zeros(1)
                address = weakref.ref(small)
                kept_memory.run(lambda n=n: result.mul_(10).add_(n), [small, block])
                del small
                assert address() is not None
            assert not result.any()
            del block  # the next tensor may take its place, because calls run in order
            assert ops.empty(MAP).data_ptr()
            assert memory.taken < 2 * (4 * MAP + kept_memory.HUGE_PAGE)
        assert result.item() == 23


@needs_native
def test_a_forward_pass_has_few_page_faults():
    """In a fresh process, with the allocator as it is. The modules called in turn have some 3,000 per feature map."""
    code = """
import resource, torch
from tests.small_network import small_network
network, x = small_network(dim=48, groups=2, idynamic_num_heads=6, restormer_num_heads=6), torch.rand(1, 3, 256, 256)
with torch.inference_mode():
    network(x)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    network(x)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3000


@needs_native
def test_threads_may_call_one_network():
    network = small_network(dim=16, groups=2)
    images = [image(1, 3, 128, 129 + n, seed=n) for n in range(6)]
    expected = [network(x) for x in images]
    with ThreadPoolExecutor(3) as threads:
        for results in [threads.map(network, images) for _ in range(3)]:
            assert all(map(torch.equal, results, expected))


def test_a_block_is_used_again_when_its_tensor_is_gone():
    with ops.KeptMemory() as memory:
        first = ops.empty(MAP)
        address = first.data_ptr()
        view = first.fill_(1).view(2, -1)[1]
        del first
        other = ops.empty(MAP).fill_(2)  # the view still needs the first block
        assert other.data_ptr() != address
        assert view.eq(1).all()
        taken = memory.taken
        del view
        assert ops.empty(MAP).data_ptr() == address
        assert memory.taken == taken


def test_no_callback_runs_when_a_tensor_is_freed():
    """Python ignores exceptions in callbacks, and so Ctrl-C."""
    calls = []
    with ops.KeptMemory():
        tensor = ops.empty(MAP)
        sys.setprofile(lambda frame, event, argument: event == "call" and calls.append(frame))
        del tensor
        sys.setprofile(None)
    assert not calls


def test_a_tensor_outlives_the_memory():
    with ops.KeptMemory():
        kept = ops.empty(2, MAP).fill_(3)
    gc.collect()
    assert kept.eq(3).all()


def test_the_memory_belongs_to_the_context_and_the_thread():
    with ops.KeptMemory() as memory:
        with ops.KeptMemory() as inner:
            ops.empty(MAP)
        assert inner.taken
        assert not memory.taken
        with ThreadPoolExecutor(1) as thread:
            thread.submit(ops.empty, MAP).result()
        assert not memory.taken
        ops.empty(8)  # small tensors are left to PyTorch
        assert not memory.taken
        ops.empty(MAP)
        assert memory.taken
    before = memory.taken
    ops.empty(MAP)
    assert memory.taken == before


def test_too_little_memory_is_a_memory_error():
    with ops.KeptMemory(), pytest.raises(MemoryError, match="feature map"):
        ops.empty(2**50)
