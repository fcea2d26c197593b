"""`make demo`: the whole job on real photographs that scikit-image brings along, with nothing to download.

Makes HR and LR images, tests the shipped weights beside bicubic, trains on from them for a minute, makes a results page
and draws a side-by-side figure. Run it in the repository; it writes to datasets/, experiments/ and results/.
"""

import subprocess
import sys
import time
from pathlib import Path

import imageio.v3 as iio
import skimage

NAME = "Tiny_48C3G3B_DLGSANet_SRx2"
TRAIN = f"options/train/train_SISR_Demo_{NAME}_finetune_img_size_32_lr1e_4.yml"
TEST = f"options/test/test_SISR_Demo_{NAME}_finetune_img_size_32_lr1e_4.yml"
WEIGHTS = "weights/DLGSANet_Tiny_x2.safetensors"
# scikit-image's photographs (public domain and CC0). None of them is among the images the weights were trained on.
PHOTOGRAPHS = {
    "DemoTrain": ["astronaut.png", "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg"],
    "DemoTest": ["chelsea.png", "coffee.png"],
}


def main() -> None:
    started = time.time()
    for name, files in PHOTOGRAPHS.items():
        folder = Path("datasets/photographs", name)
        folder.mkdir(parents=True, exist_ok=True)
        for file in files:
            iio.imwrite(folder / Path(file).with_suffix(".png"), iio.imread(Path(skimage.data_dir, file)))
        dlgsanet("data", "folder", str(folder), "--name", name, "--scales", "2")
    dlgsanet("test", "-opt", TEST)
    dlgsanet("train", "-opt", TRAIN)
    dlgsanet("benchmark", WEIGHTS, "--data", "datasets/DemoTest", "-o", "results/demo")
    pictures = [f"DemoTest/{Path(file).stem}" for file in PHOTOGRAPHS["DemoTest"]]
    dlgsanet("figure", *pictures, "--scale", "2", "--results", "results/demo", "-o", "results/demo/comparison")
    print(f"\nThe demo took {time.time() - started:.0f} s.")


def dlgsanet(*arguments: str) -> None:
    print(f"\n$ dlgsanet {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "dlgsanet", *arguments])
    if done.returncode:
        sys.exit(f"make demo stopped: `dlgsanet {arguments[0]}` ended with exit code {done.returncode}")


if __name__ == "__main__":
    main()
