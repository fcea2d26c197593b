"""Read damaged checkpoints until the time is up: `python -m tests.archs.fuzz_checkpoints FIRST_SEED SECONDS`."""

import io
import sys
import tempfile
from pathlib import Path

import torch

from dlgsanet.archs.checkpoint import build_network, read_checkpoint, write_checkpoint
from tests import fuzz
from tests.small_network import SMALL, small_network


def checkpoints(folder: Path) -> list[bytes]:
    """The weights of a small network in every file format."""
    state = small_network().state_dict()
    write_checkpoint(folder / "a.safetensors", state, SMALL, {"scale": "2"})
    contents = [(folder / "a.safetensors").read_bytes()]
    for content, options in (
        ({"params_ema": state, "params": state}, {}),
        ({"state_dict": {f"generator.{name}": value for name, value in state.items()}, "meta": {"epoch": 1}}, {}),
        (state, {"_use_new_zipfile_serialization": False}),
    ):
        buffer = io.BytesIO()
        torch.save(content, buffer, **options)
        contents.append(buffer.getvalue())
    return contents


def main(seed: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as place:
        whole, path = checkpoints(Path(place)), Path(place, "damaged.pth")

        def read(seed: int) -> None:
            path.write_bytes(fuzz.damaged(whole[seed % len(whole)], seed))
            assert not build_network(read_checkpoint(path)).training

        for content in whole:
            path.write_bytes(content)
            build_network(read_checkpoint(path))
        fuzz.run(read, seed, seconds)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
