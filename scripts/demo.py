"""`make demo`: the whole job on real photographs that come with scikit-image, with nothing to download.

Makes HR and LR images, tests the included weights, fine-tunes them for a minute, puts both into a table and a results
page, and draws a figure. Run it in the repository; it writes to datasets/, experiments/ and results/.
``--quick`` trains for two iterations only, to see that an installation works.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import skimage

from dlgsanet.signals import stop_with_the_parent

NAME = "Tiny_48C3G3B_DLGSANet_SRx2"
TRAIN = f"options/train/train_SISR_Demo_{NAME}_finetune_img_size_32_lr1e_5.yml"
TEST = f"options/test/test_SISR_Demo_{NAME}_finetune_img_size_32_lr1e_5.yml"
WEIGHTS = "weights/DLGSANet_Tiny_x2.safetensors"
# scikit-image's photographs (public domain and CC0). None of them is among the images the weights were trained on.
PHOTOGRAPHS = {
    "DemoTrain": ["astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"],
    "DemoTest": ["chelsea.png", "coffee.png"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="train for two iterations only")
    shorter = ["--force_yml", "train:total_iter=2", "val:val_freq=2"] if parser.parse_args().quick else []
    started = time.time()
    for name, files in PHOTOGRAPHS.items():
        folder = Path("datasets/photographs", name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            iio.imwrite(folder / Path(file).with_suffix(".png"), iio.imread(Path(skimage.data_dir, file)))
        dlgsanet("data", "folder", str(folder), "--name", name, "--scales", "2")
    dlgsanet("test", "-opt", TEST)
    dlgsanet("train", "-opt", TRAIN, *shorter)
    networks = [WEIGHTS, f"finetuned=experiments/{Path(TRAIN).stem}/models/net_g_latest.pth"]
    dlgsanet("benchmark", *networks, "--data", "datasets/DemoTest", "--runs", "1", "-o", "results/demo")
    pictures = [f"DemoTest/{Path(file).stem}" for file in PHOTOGRAPHS["DemoTest"]]
    drawn = ["--scale", "2", "--methods", "bicubic", Path(WEIGHTS).stem]
    dlgsanet("figure", *pictures, *drawn, "--results", "results/demo", "-o", "results/demo/comparison")
    print(f"\nThe demo took {time.time() - started:.0f} s.")


def dlgsanet(*arguments: str) -> None:
    print(f"\n$ dlgsanet {' '.join(arguments)}", flush=True)
    command = [sys.executable, "-m", "dlgsanet", *arguments]
    done = subprocess.run(command, preexec_fn=stop_with_the_parent)
    if done.returncode:
        sys.exit(f"make demo stopped: `dlgsanet {arguments[0]}` ended with exit code {done.returncode}")


if __name__ == "__main__":
    main()
