"""What bfloat16 costs on a CPU: PSNR on Y in float32 and in bfloat16, and the time of each, over data roots.

  python scripts/benchmark_bf16.py weights/DLGSANet_Tiny_x2.safetensors datasets/Set5 datasets/Set14

A data root holds HR/NAME.png and LR_bicubic/X2/NAMEx2.png (docs/data.md). Each image is enlarged in one precision, then
in the other. Times are sums over the images; they are valid only if nothing else is running.
"""

import argparse
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

PRECISIONS = ("fp32", "bf16")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("roots", type=Path, nargs="+", help="data roots")
    arguments = parser.parse_args(argv)

    from dlgsanet.inference.loading import load_model

    networks = {precision: load_model(arguments.weights, device="cpu", precision=precision) for precision in PRECISIONS}
    print("| data set | PSNR fp32 [dB] | PSNR bf16 [dB] | loss [dB] | fp32 [s] | bf16 [s] |")
    print("|---|---:|---:|---:|---:|---:|")
    for root in arguments.roots:
        psnr, seconds = measure(networks, root)
        fp32, bf16 = (psnr[precision] for precision in PRECISIONS)
        times = " | ".join(f"{seconds[precision]:.2f}" for precision in PRECISIONS)
        print(f"| {root.name} | {fp32:.3f} | {bf16:.3f} | {fp32 - bf16:.3f} | {times} |", flush=True)
    return 0


def measure(networks: dict, root: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Mean PSNR [dB] and seconds of all images, for each precision."""
    import torch

    from dlgsanet.data.pairs import find_pairs_in
    from dlgsanet.evaluation.scoring import super_resolve
    from dlgsanet.metrics.psnr_ssim import psnr

    scale = networks["fp32"].upscale
    pairs = find_pairs_in(root, scale)
    scores, seconds = dict.fromkeys(networks, 0.0), dict.fromkeys(networks, 0.0)
    for pair in pairs:
        for precision, network in networks.items():
            dtype = next(network.parameters()).dtype

            def enlarge(x: torch.Tensor, network=network, dtype=dtype, precision=precision) -> torch.Tensor:
                start = time.perf_counter()
                out = network(x.to(dtype)).float()
                seconds[precision] += time.perf_counter() - start
                return out

            (picture,) = super_resolve(enlarge, [pair], scale, "cpu")
            scores[precision] += psnr(picture.output, picture.hr, crop_border=scale) / len(pairs)
    return scores, seconds


if __name__ == "__main__":
    from dlgsanet.cli import run

    sys.exit(run("__main__:main", sys.argv[1:]))
