"""The network reproduces outputs and gradients of the published network."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.archs.golden_network import golden_network

CASES = sorted((Path(__file__).parent / "golden").glob("*.json"))
TOLERANCE = 1e-9  # of each array's standard deviation


def close(actual: torch.Tensor, golden: np.ndarray) -> bool:
    return np.abs(actual.detach().numpy() - golden).max() <= TOLERANCE * golden.std()


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_outputs_and_gradients(path):
    case, golden = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
    network = golden_network(case)
    image = torch.from_numpy(golden["input"]).requires_grad_()

    with torch.no_grad():
        output = network.eval()(image)
    assert close(output.flatten()[::11], golden["output_eval_sample"])

    output = network.train()(image)
    assert close(output.flatten()[::11], golden["output_train_sample"])
    if "output_weight" in golden:
        (output * torch.from_numpy(golden["output_weight"])).sum().backward()
        assert close(image.grad, golden["grad_input"])
        for name, parameter in network.state_dict(keep_vars=True).items():
            assert parameter.grad.norm().item() == pytest.approx(case["grad_norms"][name], rel=TOLERANCE)


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_whole_arrays(path, shared_data):
    case, golden = json.loads(path.read_text()), np.load(shared_data / "golden" / f"{path.stem}.npz")
    network = golden_network(case)
    image = torch.from_numpy(golden["input"])
    with torch.no_grad():
        assert close(network.eval()(image), golden["output_eval"])
        assert close(network.train()(image), golden["output_train"])


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_names_and_shapes_are_the_published_ones(path):
    case = json.loads(path.read_text())
    network = golden_network(case)
    assert {name: list(p.shape) for name, p in network.state_dict().items()} == case["shapes"]
