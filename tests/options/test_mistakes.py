"""Mistakes that people make in option files: each is one line that names the file and the option."""

import pytest
import torch
import yaml

import dlgsanet.plugin  # noqa: F401  # before BasicSR
from dlgsanet.errors import UserError
from tests.options.conftest import FILES, change, fault, read

ADAM, PSNR = {"type": "Adam", "lr": 1e-3}, {"type": "calculate_psnr", "crop_border": 2}


@pytest.mark.parametrize(
    ("where", "value"),
    [
        ("train.optim_g", ADAM | {"weight_decay": "1e-4"}),  # as YAML reads 1e-4
        ("train.optim_g", ADAM | {"lr": True}),
        ("train.optim_g", ADAM | {"lr": None}),
        ("train.optim_g", ADAM | {"betas": 0.9}),
        ("train.optim_g", ADAM | {"betas": [0.9, "0.99"]}),
        ("train.optim_g", ADAM | {"amsgrad": "false"}),
        ("train.optim_g", ADAM | {"fused": "no"}),
        ("train.optim_g", ADAM | {"betas": [0.9]}),
        ("train.optim_g", {"type": "Muon", "adam_lr": "1e-3"}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": "8, 10"}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": None}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [400, 250]}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [8, 9.5]}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [-5]}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [8], "gamma": -0.5}),
        ("train.scheduler", {"type": "MultiStepLR", "milestones": [8], "last_epoch": 5}),
        ("train.scheduler", {"type": "CosineAnnealingLR", "T_max": -5}),
        ("train.scheduler", {"type": "CosineAnnealingRestartLR", "restart_weights": [1, 1], "periods": [-3, 10**6]}),
        ("train.scheduler", {"type": "CosineAnnealingRestartLR", "periods": [10**6], "eta_min": "1e-7"}),
        ("train.scheduler", {"type": "StepLR", "step_size": 2.5}),
        ("train.scheduler", {"type": "LinearLR", "total_iters": 0}),
        ("train.scheduler", {"type": "OneCycleLR", "total_steps": 10**6, "max_lr": "1e-3"}),
        ("train.scheduler", {"type": "WSD", "decay_iter": 2.5}),
        ("train.pixel_opt", {"type": "L1Loss", "loss_weight": True}),
        ("train.pixel_opt", {"type": "L1Loss", "loss_weight": 0}),
        ("train.ema_decay", 1),
        ("train.teacher_opt", {"path": "a", "share": 0}),
        ("train.teacher_opt.network", {"type": "MSRResNet", "num_feat": "64"}),
        ("train.accumulate", 10**9),
        ("datasets.train.batch_size_per_gpu", 10**9),
        ("datasets.train_2", {"name": "Other"}),
        ("val.suffix", "x2"),
        ("val.metrics.psnr", PSNR | {"test_y_channel": "false"}),
        ("val.metrics.psnr", PSNR | {"crop_border": "2"}),
        ("val.metrics.psnr", PSNR | {"input_order": "CHW"}),
        ("val.metrics.psnr", PSNR | {"crop_border": True}),
        ("val.metrics.psnr", PSNR | {"better": "lower"}),
        ("val.metrics", {"below_bicubic": PSNR}),
        ("logger.wandb.resume_id", "x"),
        ("network_g", {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2, "num_feat": "64"}),
        ("network_g", {"type": "EDSR", "num_in_ch": 3, "num_out_ch": 3, "upscale": 2, "num_feat": -1}),
        ("network_g", {"type": "MSRResNet", "upscale": 2, "num_block": "16"}),
        ("network_g", {"type": "SwinIR", "upscale": 2, "upsampler": "pixelshuffledirect", "depths": 6}),
        ("network_g.activation", "Relu"),
        ("name", "a\u202eb"),
        ("name", "\u200b"),
    ],
)
def test_a_wrong_value_or_type(options, where, value):
    """In a section with a type the last argument is the wrong one."""
    change(options, {"train.teacher_opt": {"path": "a"}} if where.startswith("train.teacher_opt.") else {})
    change(options, {where: value})
    section, _, name = where.rpartition(".")
    named = [f"{where}.{[*value][-1]}"] if isinstance(value, dict) and "type" in value else [section, name]
    message = fault(options)
    assert all(part in message for part in named)


ANOTHER_UPSAMPLER = {"network_g.upsampler": "pixelshuffle"}
COSINE = "CosineAnnealingRestartLR"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "ESRGANModel"}, "model_type: unknown model_type 'ESRGANModel'"),
        ({"model_type": "EDVRModel"}, "model_type: unknown model_type 'EDVRModel'"),
        ({"network_g.restormer_num_heads": 5}, "multiple of restormer_num_heads, which is 5"),
        ({"network_g.upscale": 3}, "network_g.upscale: is 3, but scale is 2"),
        ({"network_g.type": "DLGSANett"}, "did you mean DLGSANet?"),
        ({"train.ema_decay": 1.5}, "train.ema_decay: 1.5 is out of range"),
        ({"train.ema_decay": 0, "train.ema_warmup": True}, "train.ema_warmup"),
        ({"train.total_iter": 0}, "train.total_iter: 0 is out of range"),
        ({"train.total_iter": 10**18}, f"train.total_iter: {10**18} is out of range, it must be at most"),
        ({"train.optim_g": {"type": "Muon", "lr": 1e-3, "momentum": 1}}, "train.optim_g: momentum is 1"),
        ({"train.optim_g": {"type": "Muon", "nesterov": True}}, "train.optim_g: unknown option 'nesterov'"),
        ({"train.optim_g": ADAM | {"fused": True, "foreach": True}}, "train.optim_g: "),
        ({"train.optim_g": ADAM | {"lr": 1e30}}, "train.optim_g.lr: is a number that is too large"),
        ({"train.optim_g": {"type": "Muon"}, "model_type": "SRModel"}, "train.optim_g: SRModel has no Muon"),
        ({"train.scheduler": {"type": "WSD"}, "model_type": "SRModel"}, "train.scheduler: SRModel has no WSD"),
        ({"train.scheduler": {"type": "WSD", "decay_iter": 10**6}}, "train.scheduler: decay_iter is 1000000"),
        ({"train.scheduler": {"type": "OneCycleLR", "max_lr": 1e-3}}, "train.scheduler: "),
        ({"train.scheduler": {"type": COSINE, "periods": [6, 6]}}, "train.scheduler: periods"),
        ({"train.scheduler": {"type": COSINE, "periods": [4]}}, "ends at iteration 4, before"),
        ({"train.scheduler": {"type": COSINE, "periods": 5}}, "train.scheduler.periods"),
        ({"train.scheduler": {"type": "MultiStepLR", "milestones": ["a"]}}, "train.scheduler.milestones"),
        ({"train.scheduler": {"type": "StepLR", "step_size": 0}}, "train.scheduler.step_size"),
        ({"train.pixel_opt": None}, "train: names no loss"),
        ({"train.pixel_opt": {"type": "L1Loss", "reduction": "none"}}, "train.pixel_opt"),
        ({"train.pixel_opt": {"type": "L1Loss", "loss_weight": "heavy"}}, "train.pixel_opt"),
        ({"train.pixel_opt": {"type": "GANLoss", "gan_type": "vanilla"}}, "train.pixel_opt"),
        ({"train.pixel_opt": {"type": "PerceptualLoss", "layer_weights": {"conv5_4": 1}}}, "train.pixel_opt"),
        ({"train.perceptual_opt": {"type": "L1Loss"}}, "train.perceptual_opt"),
        ({"train.network_init": "zero"}, "train.network_init: unknown network_init 'zero'"),
        ({"train.network_init": "linear", "path.pretrain_network_g": "file.yml"}, "path.pretrain_network_g"),
        ({"train.network_init": "linear", "path.resume_state": "file.yml"}, "path.resume_state"),
        ({"train.network_init": "linear"} | ANOTHER_UPSAMPLER, "pixelshuffledirect"),
        (
            {"train.network_init": "linear", "network_g.dim": 6, "network_g.restormer_num_heads": 1},
            "network_g.dim of at least 9",
        ),
        ({"train.network_init": "last"}, "path.pretrain_network_g, for all but the last convolution"),
        ({"train.teacher_opt": {"path": "none.pth"}}, "train.teacher_opt.path: there is no file none.pth"),
        ({"train.teacher_opt": {"share": 0.5}}, "train.teacher_opt.path: is missing"),
        (
            {"train.teacher_opt": {"path": "a", "network": {"type": "SMFANett"}}},
            "train.teacher_opt.network.type: unknown",
        ),
        (
            {"train.teacher_opt": {"path": "a"}, "train.pixel_opt": None, "train.fft_opt": {"type": "FFTLoss"}},
            "train.teacher_opt: ",
        ),
        ({"val.val_freq": 2.5}, "val.val_freq: 2.5 is not a whole number"),
        ({"val.metrics.psnr": {"type": "calculate_psnr", "crop_border": 104}}, "val.metrics.psnr"),
        ({"val.metrics.psnr": PSNR | {"input_order": "HC"}}, "val.metrics.psnr"),
        ({"logger.use_tb_logger": "yes"}, "logger.use_tb_logger: 'yes' is neither true nor false"),
        ({"logger.use_tb_logger": False, "logger.wandb.project": "p"}, "logger.wandb.project"),
        ({"logger.use_tb_logger": True, "logger.wandb.project": "p"}, "logger.wandb"),  # it is not installed
        ({"datasets.train.mean": [0.1, 0.2, 0.3]}, "datasets.train"),
        ({"datasets.train.mean": [0.5] * 3, "datasets.train.std": [0.5, 0, 0.5]}, "datasets.train.std[1]"),
    ],
)
def test_options_that_do_not_fit(options, changes, named):
    change(options, changes)
    assert named in fault(options)


def test_the_scale_of_means_is_that_of_the_images(options):
    for name in ("train", "val"):
        change(options, {f"datasets.{name}.mean": [0.5] * 3, f"datasets.{name}.std": [0.5] * 3})
    read(options)
    change(options, {"train.teacher_opt": {"path": "weights.pth"}})
    assert "train.teacher_opt: a teacher takes images in [0, 1]" in fault(options)
    change(options, {"train.teacher_opt": None})
    for other in ([0.4] * 3, None):
        change(options, {"datasets.val.mean": other, "datasets.val.std": other})
        assert "mean" in fault(options)
    change(options, {"datasets.val.std": [0.5] * 3})
    for name in ("train", "val"):
        change(options, {f"datasets.{name}.mean": [123.7, 116.3, 103.5]})
    with pytest.raises(UserError, match=r"datasets\.train\.mean\[0\]"):
        read(options)


@pytest.mark.parametrize("options", ["test"], indirect=True)
@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"path.resume_state": "1.state"}, "path.resume_state"),
        ({"datasets.test_2.name": "Set5", "datasets.test_1.name": "Set5"}, "datasets: test_1, test_2"),
        ({"network_g": {"type": "MSRResNet", "upscale": 2, "num_feat": "64"}}, "network_g.num_feat"),
    ],
)
def test_mistakes_in_test_files(options, changes, named):
    change(options, changes)
    assert named in fault(options, is_train=False)


@pytest.mark.parametrize("options", ["train", "test"], indirect=True)
def test_a_file_for_the_other_command(options):
    is_train = "train" not in options
    assert f"dlgsanet {'test' if is_train else 'train'}" in fault(options, is_train)


@pytest.mark.parametrize(
    ("found", "written", "named"),
    [
        ("total_iter: 500000", "total_iter: 1e6", "train.total_iter: '1e6'.*!!float"),
        ("total_iter: 500000", "total_iter: 1:30", "train.total_iter: '1:30'"),
        ("manual_seed: 10", "manual_seed: 010", "manual_seed: '010'"),
        ("    gamma: ", "    milestones: [1]\n    gamma: ", "'milestones' appears twice"),
        ("import: ~", "import: none.py", "import: there is no file none.py"),
        ("import: ~", "import: no_such_module", "import no_such_module: "),
    ],
)
def test_text_that_yaml_reads_in_its_own_way(options, found, written, named):
    text = FILES["train"].read_text() + "import: ~\n"
    assert found in text
    with pytest.raises(UserError, match=named) as error:
        read(text.replace(found, written, 1))
    assert str(error.value).startswith("file.yml: ")


def test_sections_that_others_share(options):
    """Merge keys are YAML; and a change of an alias is not one of what it stands for."""
    text = yaml.safe_dump(options, sort_keys=False)
    text = text.replace("  val:\n", "  val: &val\n")
    more = "  val_2:\n    <<: *val\n    name: Other\n  val_3: *val\nnetwork_g:"
    sets = read(text.replace("network_g:", more, 1), changes=["datasets:val_3:name=Third"])["datasets"]
    assert [sets[key]["name"] for key in ("val", "val_2", "val_3")] == [
        options["datasets"]["val"]["name"],
        "Other",
        "Third",
    ]
    assert sets["val"]["dataroot_gt"] == sets["val_2"]["dataroot_gt"] == sets["val_3"]["dataroot_gt"]
    twice = more.replace("    name:", "    <<: *val\n    name:")
    assert "'<<' appears twice" in fault(text.replace("network_g:", twice, 1))


def test_values_that_only_look_like_mistakes(options):
    options["train"] |= {"optim_g": {"type": "Adam", "lr": 1, "weight_decay": 0.01, "fused": None}, "grad_clip": 0}
    options["val"]["metrics"]["ssim"] |= {"better": "higher", "test_y_channel": True}
    options["network_g"] = {"type": "SwinIR", "upscale": 2, "img_size": [8, 8], "window_size": 8, "depths": [1]}
    options["network_g"] |= {"num_heads": [1], "embed_dim": 12, "upsampler": "pixelshuffledirect", "qk_scale": 0.5}
    assert read(options)["network_g"] == options["network_g"]


def test_losses_and_metrics_of_ones_own_are_tried_with_equal_pictures(options):
    """Each with its sense the wrong way round, and then right."""

    from basicsr.utils.registry import LOSS_REGISTRY, METRIC_REGISTRY

    def closeness(pred, target, sign):
        return sign * torch.exp(-torch.abs(pred - target).mean())

    class Closeness(torch.nn.Module):
        def __init__(self, sign=1):
            super().__init__()
            self.sign = sign

        def forward(self, pred, target):
            return closeness(pred, target, self.sign)

    def calculate_error(img, img2):
        return abs(img.astype(float) - img2).mean()

    for registry, name, entry in ((LOSS_REGISTRY, "Closeness", Closeness), (METRIC_REGISTRY, "error", calculate_error)):
        registry._obj_map[name] = entry
    try:
        options["train"]["pixel_opt"] = {"type": "Closeness"}
        assert "train.pixel_opt" in fault(options)
        options["train"]["pixel_opt"]["sign"] = -1
        options["val"]["metrics"] = {"error": {"type": "error"}}
        assert "val.metrics.error.better" in fault(options)
        options["val"]["metrics"]["error"]["better"] = "lower"
        read(options)
        options["val"]["metrics"]["niqe"] = {"type": "calculate_niqe", "crop_border": 2}
        assert "val.metrics.niqe: does not compare with originals; set better: lower" in fault(options)
    finally:
        del LOSS_REGISTRY._obj_map["Closeness"], METRIC_REGISTRY._obj_map["error"]


def test_a_data_root_that_stands_for_nothing(options):
    for data_set in options["datasets"].values():
        for key in ("dataroot_gt", "dataroot_lq"):
            data_set[key] = f"./../{data_set[key]}"
    with pytest.raises(UserError, match=r"data_root: file\.yml"):
        read(options, data_root="elsewhere")
