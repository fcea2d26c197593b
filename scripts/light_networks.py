"""CPU time of Tiny x4 next to other light networks: alternating in one process, on one thread, in float32.

  python scripts/light_networks.py                         the table, in about two minutes
  python scripts/light_networks.py --output light.md       also writes it there, in place of an older file

The networks have random weights and the published numbers of parameters (CARN-M: those of x4 alone). PyTorch runs them
eagerly, in the faster of the layouts NCHW and channels last. Parameters and multiply-accumulates are counted. SAFMN and
SPAN are spandrel's, SMFANet is docs/examples/smfanet.py.
"""

import argparse
import datetime
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from dlgsanet import files  # noqa: E402
from dlgsanet.archs.dlgsanet import DLGSANet  # noqa: E402
from dlgsanet.archs.sizes import size_options  # noqa: E402
from dlgsanet.cli import run  # noqa: E402
from dlgsanet.commands.arguments import add_size, whole_number  # noqa: E402
from dlgsanet.evaluation.complexity import multiply_accumulates  # noqa: E402


def conv(
    inputs: int, outputs: int, side: int = 3, *, bias: bool = True, stride: int = 1, groups: int = 1, dilation: int = 1
) -> nn.Conv2d:
    padding = side // 2 * dilation if stride == 1 else 0
    return nn.Conv2d(inputs, outputs, side, stride, padding, dilation, groups, bias)


def separable(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """A 1x1 convolution, then a 3x3 depth-wise one (BSConv-U)."""
    return nn.Sequential(conv(inputs, outputs, 1, bias=False), conv(outputs, outputs, stride=stride, groups=outputs))


def to_image(channels: int) -> nn.Sequential:
    return nn.Sequential(conv(channels, 48), nn.PixelShuffle(4))


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class ContrastAttention(nn.Module):
    """Scales each channel by what follows from its mean and standard deviation."""

    def __init__(self, channels: int):
        super().__init__()
        few = channels // 16
        self.scale = nn.Sequential(conv(channels, few, 1), nn.ReLU(), conv(few, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        deviation, mean = torch.std_mean(x, (2, 3), keepdim=True, correction=0)
        return x * self.scale(deviation + mean)


class SpatialAttention(nn.Module):
    """Enhanced spatial attention: scales each value by what follows from a coarse map of its surroundings."""

    def __init__(self, channels: int, few: int, shrink: nn.Module, coarse: nn.Module):
        super().__init__()
        self.squeeze, self.shrink, self.coarse = conv(channels, few, 1), shrink, coarse
        self.skip, self.expand = conv(few, few, 1), conv(few, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = self.squeeze(x)
        coarse = self.coarse(F.max_pool2d(self.shrink(z), 7, 3))
        coarse = F.interpolate(coarse, z.shape[2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.expand(coarse + self.skip(z)))


class Distillation(nn.Module):
    """Residual feature distillation (RFDN and BSRN): part of each step's input goes to the end of the block."""

    def __init__(
        self, channels: int, convolution: Callable[[int, int], nn.Module], activation: nn.Module, end: nn.Module
    ):
        super().__init__()
        half = channels // 2
        self.kept = nn.ModuleList(conv(channels, half, 1) for _ in range(3))
        self.steps = nn.ModuleList(convolution(channels, channels) for _ in range(3))
        self.last, self.fuse = convolution(channels, half), conv(4 * half, channels, 1)
        self.activation, self.end = activation, end

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for kept, step in zip(self.kept, self.steps, strict=True):
            parts.append(self.activation(kept(x)))
            x = self.activation(step(x) + x)
        return self.end(self.fuse(torch.cat([*parts, self.activation(self.last(x))], 1)))


class MultiDistillation(nn.Module):
    """IMDN's block: each step passes a quarter of its channels to the end of the block."""

    def __init__(self, channels: int):
        super().__init__()
        self.sizes = [channels // 4, channels - channels // 4]
        inputs = [channels, *[self.sizes[1]] * 3]
        self.steps = nn.ModuleList(conv(i, o) for i, o in zip(inputs, [*[channels] * 3, self.sizes[0]], strict=True))
        self.end = nn.Sequential(ContrastAttention(channels), conv(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        parts, rest = [], x
        for step in self.steps[:-1]:
            part, rest = F.leaky_relu(step(rest), 0.05).split(self.sizes, 1)
            parts.append(part)
        return x + self.end(torch.cat([*parts, self.steps[-1](rest)], 1))


class Collecting(nn.Module):
    """The results of all blocks are joined, projected and added to the first features (IMDN, RFDN, BSRN)."""

    def __init__(
        self,
        channels: int,
        blocks: list[nn.Module],
        convolution: Callable[[int, int], nn.Module],
        activation: nn.Module,
        copies: int = 1,
    ):
        super().__init__()
        self.copies, self.first, self.blocks = copies, convolution(3 * copies, channels), nn.ModuleList(blocks)
        joined = conv(len(blocks) * channels, channels, 1)
        self.join, self.end = nn.Sequential(joined, activation, convolution(channels, channels)), to_image(channels)

    def forward(self, image: Tensor) -> Tensor:
        x = first = self.first(torch.cat([image] * self.copies, 1))
        results = []
        for block in self.blocks:
            x = block(x)
            results.append(x)
        return self.end(first + self.join(torch.cat(results, 1)))


def imdn(channels: int = 64, blocks: int = 6) -> nn.Module:
    return Collecting(channels, [MultiDistillation(channels) for _ in range(blocks)], conv, nn.LeakyReLU(0.05))


def rfdn(channels: int = 50, blocks: int = 4) -> nn.Module:
    few = channels // 4

    def block() -> nn.Module:
        coarse = nn.Sequential(conv(few, few), nn.ReLU(), conv(few, few), nn.ReLU(), conv(few, few))
        attention = SpatialAttention(channels, few, conv(few, few, stride=2), coarse)
        return Distillation(channels, conv, nn.LeakyReLU(0.05), attention)

    return Collecting(channels, [block() for _ in range(blocks)], conv, nn.LeakyReLU(0.05))


def bsrn(channels: int = 64, blocks: int = 8) -> nn.Module:
    few = channels // 4

    def block() -> nn.Module:
        coarse = nn.Sequential(separable(few, few), nn.GELU(), separable(few, few), nn.GELU(), separable(few, few))
        attention = SpatialAttention(channels, few, separable(few, few, stride=2), coarse)
        end = nn.Sequential(attention, ContrastAttention(channels))
        return Residual(Distillation(channels, separable, nn.GELU(), end))

    return Collecting(channels, [block() for _ in range(blocks)], separable, nn.GELU(), copies=4)


def rlfn(channels: int = 52, blocks: int = 6, few: int = 16) -> nn.Module:
    def block() -> nn.Module:
        steps = [m for _ in range(3) for m in (conv(channels, channels), nn.LeakyReLU(0.05))]
        attention = SpatialAttention(channels, few, conv(few, few, stride=2), conv(few, few))
        return nn.Sequential(Residual(*steps), conv(channels, channels, 1), attention)

    body = Residual(*(block() for _ in range(blocks)), conv(channels, channels))
    return nn.Sequential(conv(3, channels), body, to_image(channels))


class LargeKernelAttention(nn.Module):
    """VapSR's block: features scaled by a 5x5 and a dilated 5x5 depth-wise convolution of themselves."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.expand, self.project = conv(channels, hidden, 1), conv(hidden, channels, 1)
        self.scale = nn.Sequential(
            conv(hidden, hidden, 1),
            conv(hidden, hidden, 5, groups=hidden),
            conv(hidden, hidden, 5, groups=hidden, dilation=3),
        )
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        z = F.gelu(self.expand(x))
        x = x + self.project(z * self.scale(z))
        return self.norm(x.movedim(1, -1)).movedim(-1, 1).contiguous()


def vapsr(channels: int = 48, blocks: int = 21, hidden: int = 64) -> nn.Module:
    attentions = (LargeKernelAttention(channels, hidden) for _ in range(blocks))
    body = Residual(*attentions, conv(channels, channels))
    end = conv(channels, 64), nn.PixelShuffle(2), nn.LeakyReLU(0.1), conv(16, 12), nn.PixelShuffle(2)
    return nn.Sequential(conv(3, channels), body, *end)


class PixelAttention(nn.Sequential):
    def __init__(self, channels: int):
        super().__init__(conv(channels, channels, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


class AttentiveConvolution(nn.Module):
    """PAN's 3x3 convolution, scaled by attention from the same input, with another convolution after it."""

    def __init__(self, channels: int):
        super().__init__()
        self.scale = nn.Sequential(conv(channels, channels, 1), nn.Sigmoid())
        self.values, self.last = conv(channels, channels, bias=False), conv(channels, channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.values(x) * self.scale(x))


class SelfCalibrated(nn.Module):
    """PAN's block: two branches, one of them with attention."""

    def __init__(self, channels: int):
        super().__init__()
        half = channels // 2
        self.first = nn.Sequential(conv(channels, half, 1, bias=False), nn.LeakyReLU(0.2), conv(half, half, bias=False))
        self.second = nn.Sequential(conv(channels, half, 1, bias=False), nn.LeakyReLU(0.2), AttentiveConvolution(half))
        self.project = conv(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.leaky_relu(torch.cat([self.first(x), self.second(x)], 1), 0.2))


class PAN(nn.Module):
    def __init__(self, channels: int = 40, large: int = 24, blocks: int = 16):
        super().__init__()
        self.first = conv(3, channels)
        self.body = Residual(*(SelfCalibrated(channels) for _ in range(blocks)), conv(channels, channels))
        steps: list[nn.Module] = []
        for inputs in (channels, large):
            steps += [nn.Upsample(scale_factor=2), conv(inputs, large), PixelAttention(large), nn.LeakyReLU(0.2)]
            steps += [conv(large, large), nn.LeakyReLU(0.2)]
        self.end = nn.Sequential(*steps, conv(large, 3))

    def forward(self, image: Tensor) -> Tensor:
        larger = F.interpolate(image, scale_factor=4, mode="bilinear", align_corners=False)
        return larger + self.end(self.body(self.first(image)))


class Cascade(nn.Module):
    """CARN's cascade: each step is followed by a projection of all features so far."""

    def __init__(self, channels: int, steps: list[nn.Module]):
        super().__init__()
        self.steps = nn.ModuleList(steps)
        self.join = nn.ModuleList(conv((n + 2) * channels, channels, 1) for n in range(len(steps)))

    def forward(self, x: Tensor) -> Tensor:
        features = x
        for step, join in zip(self.steps, self.join, strict=True):
            features = torch.cat([features, step(x)], 1)
            x = F.relu(join(features))
        return x


def carn_m(channels: int = 64, groups: int = 4) -> nn.Module:
    """CARN-M with the path of x4 alone: 294 K of its 412 K parameters."""

    def block() -> nn.Module:
        grouped = [m for _ in range(2) for m in (conv(channels, channels, groups=groups), nn.ReLU())]
        step = nn.Sequential(Residual(*grouped, conv(channels, channels, 1)), nn.ReLU())
        return Cascade(channels, [step] * 3)  # one, three times

    def double() -> nn.Module:
        return nn.Sequential(conv(channels, 4 * channels, groups=groups), nn.ReLU(), nn.PixelShuffle(2))

    body = Cascade(channels, [block() for _ in range(3)])
    return nn.Sequential(conv(3, channels), body, double(), double(), conv(channels, 3))


def safmn() -> nn.Module:
    import dlgsanet.basicsr_compat  # noqa: F401, I001  # before spandrel, which imports torchvision
    from spandrel.architectures.SAFMN import SAFMN

    return SAFMN(dim=36, upscaling_factor=4)


def span(channels: int = 28) -> nn.Module:
    """As it is used: each convolution in place of the branches from which training forms it."""
    import dlgsanet.basicsr_compat  # noqa: F401, I001  # before spandrel, which imports torchvision
    from spandrel.architectures.SPAN import SPAN

    network = SPAN(num_in_ch=3, num_out_ch=3, feature_channels=channels, upscale=4)
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(convolution := getattr(child, "eval_conv", None), nn.Conv2d):
                setattr(parent, name, convolution)
    return network


def smfanet(dim: int, blocks: int) -> nn.Module:
    from dlgsanet.evaluation.networks import registered_network
    from dlgsanet.extensions import import_all

    import_all([str(REPOSITORY / "docs/examples/smfanet.py")])
    return registered_network({"type": "SMFANet", "dim": dim, "n_blocks": blocks, "upscaling_factor": 4})


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "DLGSANet Tiny": lambda: DLGSANet(**size_options("Tiny", 4)),
    "SPAN, 28 channels": span,
    "RLFN": rlfn,
    "SAFMN": safmn,
    "RFDN, AIM 2020": rfdn,
    "BSRN": bsrn,
    "SMFANet": lambda: smfanet(36, 8),
    "IMDN": imdn,
    "PAN": PAN,
    "CARN-M": carn_m,
    "SMFANet+": lambda: smfanet(48, 12),
    "VapSR": vapsr,
}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=whole_number(), default=3, help="timed rounds; default 3")
    add_size(parser, "--image", (320, 180), "of the LR image")
    parser.add_argument("--output", type=Path, metavar="FILE", help="also write the table to this Markdown file")
    arguments = parser.parse_args(argv)
    if arguments.output:
        files.check_can_write(arguments.output)
    width, height = arguments.image
    torch.set_num_threads(1)
    torch.manual_seed(0)
    networks = {name: make().eval() for name, make in NETWORKS.items()}
    text = "\n".join(table(networks, height, width, arguments.rounds))
    print(text)
    if arguments.output:
        files.write_whole(arguments.output, f"{text}\n".encode())
    return 0


def table(networks: dict[str, nn.Module], height: int, width: int, rounds: int) -> list[str]:
    from benchmark_cpu import processor

    capability, today = torch.backends.cpu.get_cpu_capability(), datetime.date.today()
    lines = [
        "# CPU time of light networks, x4",
        "",
        f"{today}: {processor()}, {capability}, one thread, torch {torch.__version__}, float32, {width}x{height} "
        f"input; medians of {rounds} alternating rounds; `python scripts/light_networks.py`.",
        "",
        "| | parameters [K] | GMAC | CPU time [s] | ours = 1 |",
        "|---|---:|---:|---:|---:|",
    ]
    seconds = cpu_seconds(networks, torch.rand(1, 3, height, width), rounds)
    ours = next(iter(seconds.values()))
    for name, time_of_network in sorted(seconds.items(), key=lambda row: row[1]):
        network = networks[name]
        parameters = sum(p.numel() for p in network.parameters()) / 1e3
        macs = multiply_accumulates(network, height, width) / 1e9
        lines.append(
            f"| {name} | {parameters:.0f} | {macs:.1f} | {time_of_network:.2f} | {time_of_network / ours:.2f} |"
        )
    return lines


@torch.inference_mode()
def cpu_seconds(networks: dict[str, nn.Module], image: Tensor, rounds: int) -> dict[str, float]:
    """The median processor time of each network in its faster layout, run in turn, one round ahead to warm up."""
    layouts = torch.contiguous_format, torch.channels_last
    seconds: dict[tuple[str, torch.memory_format], list[float]] = {}
    for _ in range(1 + rounds):
        for name, network in networks.items():
            for layout in layouts[:1] if isinstance(network, DLGSANet) else layouts:
                network.to(memory_format=layout)  # type: ignore[call-overload]
                start = time.process_time()
                network(image)
                seconds.setdefault((name, layout), []).append(time.process_time() - start)
    medians = {row: statistics.median(times[1:]) for row, times in seconds.items()}
    return {name: min(time for row, time in medians.items() if row[0] == name) for name in networks}


if __name__ == "__main__":
    sys.exit(run("__main__:main", sys.argv[1:]))
