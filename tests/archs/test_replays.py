"""Calls that repeat a shape, as emulated CUDA graphs: a replay gives what a usual call gives."""

import gc
import logging
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch

from dlgsanet.archs import replays
from dlgsanet.evaluation.scoring import to_images
from dlgsanet.inference.self_ensemble import self_ensemble
from dlgsanet.ops import dispatch, freeze, tf32
from dlgsanet.ops.backends import LayerFunctions
from dlgsanet.ops.backends.torch import BACKEND, planar
from dlgsanet.pictures.upscale_pixels import upscale_pixels
from tests.models.graph_emulator import Event, Tape, graphs_on_the_cpu
from tests.small_network import photo, small_network

__all__ = ["photo"]


LAYERS = ("dynamic_local_attention", "channel_attention", "gated_feed_forward")
AS_ON_GPUS = replace(BACKEND, **{name: LayerFunctions(getattr(planar, name), None) for name in LAYERS})


@pytest.fixture(autouse=True)
def graphs(monkeypatch):
    monkeypatch.setenv("DLGSANET_BACKEND", "torch")  # operators of PyTorch, which the emulator sees
    monkeypatch.setattr(dispatch, "load", lambda name: AS_ON_GPUS)
    monkeypatch.setattr(replays, "_on_nvidia_gpu", lambda x: True)
    with graphs_on_the_cpu() as tapes:
        yield tapes


def frozen():
    network = small_network()
    freeze(network)
    return network


def images(count: int, *size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)
    return [torch.rand(1, 3, *size, generator=generator) for _ in range(count)]


def pieces(photo: np.ndarray, height: int, width: int) -> list[np.ndarray]:
    return [photo[top : top + height, 40 : 40 + width] for top in range(0, 5 * 8, 8)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_third_call_with_a_shape_is_a_replay(graphs, mode):
    network, expected = frozen(), small_network()
    given = [*images(5, 20, 28), *images(4, 28, 20)]
    with mode():
        made = [network(image) for image in given]
        assert [graph.replays for graph in graphs] == [4, 3]  # one of them to compare
        for image, result in zip(given, made, strict=True):
            assert torch.equal(result, expected(image))
    with torch.no_grad():  # after calls in inference mode too
        assert torch.equal(network(given[0]), expected(given[0]))
    assert graphs[0].replays == 5


@pytest.mark.parametrize("ensemble", [False, True])
def test_pictures_of_one_size_are_upscaled_as_without(graphs, photo, ensemble):
    network, expected = frozen(), small_network()
    for pixels in pieces(photo, 24, 32):
        shares: list[float] = []
        result = upscale_pixels(network, pixels, self_ensemble=ensemble, progress=shares.append)
        assert np.array_equal(result, upscale_pixels(expected, pixels, self_ensemble=ensemble))
        assert shares == sorted(shares)
        assert shares[-1] == 1
    assert sum(graph.replays for graph in graphs) >= 4


def test_tiles_of_one_size_are_replayed(graphs, photo):
    result = upscale_pixels(frozen(), photo[:100, :120], tile=16)
    assert np.array_equal(result, upscale_pixels(small_network(), photo[:100, :120], tile=16))
    assert sum(graph.replays for graph in graphs) > 4


def test_the_networks_of_test_and_benchmark_are_replayed(graphs, photo):
    network = self_ensemble(frozen())
    expected = self_ensemble(small_network())
    for image in images(3, 16, 16):
        with torch.inference_mode():
            assert np.array_equal(to_images(network(image))[0], to_images(expected(image))[0])
    assert [graph.replays for graph in graphs] == [3 * 8 - 1]


def test_few_shapes_are_kept(graphs):
    network = frozen()
    with torch.inference_mode():
        for side in range(8, 8 + replays.SHAPES + 1):
            for image in images(3, side, 9):
                network(image)
        graphs.clear()
        network(images(1, 8, 9)[0])  # the first shape is forgotten: its next call runs as usual
        assert graphs == []
        network(images(1, 8, 9)[0])
        assert len(graphs) == 1


def test_changed_weights_are_noticed(graphs):
    network, expected = frozen(), small_network()
    with torch.inference_mode():
        for image in images(3, 12, 12):
            network(image)
    change = {name: value * 1.1 for name, value in expected.state_dict().items()}
    network.load_state_dict(change)
    expected.load_state_dict(change)
    with torch.inference_mode():
        for image in images(4, 12, 12):
            assert torch.equal(network(image), expected(image))
    assert [graph.replays for graph in graphs] == [2, 3]


def test_a_replay_has_the_precision_that_is_set(graphs, monkeypatch):
    """A captured product stays with or without TF32."""
    network = frozen()
    with torch.inference_mode():
        for allowed, captured in ((False, 1), (True, 2), (False, 2)):
            monkeypatch.setattr(tf32, "allowed_in_matrix_products", lambda allowed=allowed: allowed)
            for image in images(3, 12, 12):
                network(image)
            assert len(graphs) == captured


def test_graphs_are_made_again_after_all_were_dropped(graphs, caplog):
    """For want of room, or because the weights have changed: their memory cannot be shared any more."""
    network = frozen()
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "dlgsanet"):
        for size in [(12, 12)] * 3 + [(8, width) for width in range(5, 5 + replays.SHAPES)] + [(12, 12)] * 3:
            network(images(1, *size)[0])
        network.load_state_dict(small_network().state_dict())
        for image in images(3, 12, 12):
            network(image)
    assert [graph.replays for graph in graphs] == [2, 2, 2]
    assert caplog.messages == []


def test_a_capture_runs_on_a_stream_of_the_device_and_alone(graphs, monkeypatch):
    """Without a stream PyTorch takes that of the process's first capture, perhaps on another GPU."""
    capture, streams = torch.cuda.graph, []

    def watched(graph, **options):
        streams.append(options["stream"])
        assert not replays._captures.acquire(blocking=False)
        return capture(graph, **options)

    monkeypatch.setattr(torch.cuda, "graph", watched)
    replays._stream_of_captures.cache_clear()
    networks = frozen(), frozen()
    with torch.inference_mode():
        for network in networks:
            for image in images(2, 12, 12):
                network(image)
    assert [stream.device for stream in streams] == [torch.device("cpu")] * 2
    assert streams[0] is streams[1]  # each stream has a workspace of cuBLAS, for good


def test_replays_on_several_streams_run_in_turn(graphs, monkeypatch):
    """Graphs share memory, so a replay waits for the one before it, also of another network."""
    networks, given, streams = (frozen(), frozen()), images(3, 12, 12), [torch.cuda.Stream() for _ in range(3)]
    with torch.inference_mode():
        for network in networks:
            for image in given:
                network(image)
        monkeypatch.setattr(Event, "calls", [])
        replay = Tape.replay
        monkeypatch.setattr(Tape, "replay", lambda tape: Event.calls.append(("replay", tape)) or replay(tape))
        for stream in streams:
            monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None, stream=stream: stream)
            for network in networks:
                network(given[0])
    expected = [
        call
        for stream in streams
        for tape in graphs
        for call in (("wait", stream), ("replay", tape), ("record", stream))
    ]
    assert Event.calls == expected


def test_a_network_that_is_no_longer_used_frees_its_graphs(graphs):
    network = frozen()
    with torch.inference_mode():
        for image in images(3, 12, 12):
            network(image)
    (kept,) = (weakref.ref(value) for value in [replays._graphs[network]])
    del network
    gc.collect()
    assert kept() is None


def test_what_cannot_be_captured_runs_as_usual_with_a_warning(graphs, monkeypatch, caplog):
    network, expected = frozen(), small_network()
    embed = type(network).embed

    def reads_a_value(self, image):
        assert image.sum().item() > 0
        return embed(self, image)

    monkeypatch.setattr(type(network), "embed", reads_a_value)
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "dlgsanet"):
        for image in images(4, 12, 12):
            assert torch.equal(network(image), expected(image))
    assert [graph.replays for graph in graphs] == [0]
    assert len(caplog.messages) == 1
    assert "not permitted when stream is capturing" in caplog.text  # what failed first


def test_a_replay_that_differs_is_refused(graphs, monkeypatch, caplog):
    network, expected = frozen(), small_network()
    given = images(4, 12, 12)
    with torch.inference_mode(), caplog.at_level(logging.WARNING, "dlgsanet"):
        results = [network(given[0])]
        monkeypatch.setattr(replays._Graph, "__call__", lambda self, x: self._result + 1)
        results += [network(image) for image in given[1:]]
        for image, result in zip(given, results, strict=True):
            assert torch.equal(result, expected(image))
    assert len(caplog.messages) == 1
    assert "differs" in caplog.text


def unfrozen(monkeypatch):
    return small_network()


def made_in_inference_mode(monkeypatch):  # PyTorch does not see changes of such weights
    with torch.inference_mode():
        return frozen()


def watched(monkeypatch):
    network = frozen()
    network.conv.register_forward_hook(lambda *_: None)
    return network


def too_large(monkeypatch):
    monkeypatch.setattr(replays, "LARGEST", 12 * 12 - 1)
    return frozen()


@pytest.mark.parametrize("make", [unfrozen, made_in_inference_mode, watched, too_large])
def test_never_captured(graphs, monkeypatch, make):
    network = make(monkeypatch)
    with torch.inference_mode():
        for image in images(4, 12, 12):
            network(image)
    assert graphs == []


def test_with_gradients_nothing_is_captured(graphs):
    network = frozen()
    for image in images(4, 12, 12):
        assert network.conv(network.embed(image.requires_grad_())).requires_grad
        assert not replays.can_replay(network, image)
