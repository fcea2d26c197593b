"""The table of options: name, kind, default and meaning of every option of training and test files.

Checks, `docs/options.md`, the JSON schemas in `options/schema` and the defaults at the points of use come from here.
After a change run `python -m dlgsanet.options.reference`. A point of use takes its section with `Section.completed`.

What a registered class takes (networks, losses, metrics, optimisers, schedulers, other data sets) is read from its
signature, so a class needs no entry.
"""

from dataclasses import replace

from dlgsanet.options.kinds import (
    REQUIRED,
    Anything,
    ByType,
    DataSets,
    Either,
    FileName,
    Flag,
    Kind,
    ListOf,
    Maybe,
    Named,
    Number,
    OneOf,
    Option,
    PathName,
    Registered,
    Section,
    Several,
    Template,
    Text,
    Unset,
    Whole,
)

OURS = "DLGSANetModel"
MODELS = (OURS, "SRModel", "SwinIRModel")  # a `model_type` of one's own reads options and calls networks as it likes

# Data sets. --------------------------------------------------------------------------------------------------------

_IO_BACKEND = Section(
    (Option("type", OneOf(("disk", "lmdb")), "disk", "`disk`: folders of images; `lmdb`: LMDB databases."),)
)
_LQ = (
    Option("name", FileName(), REQUIRED, "What logs, tables and folders call the data set."),
    Option("type", Text(), REQUIRED, "Class of the data set, ours, BasicSR's or another plugin's."),
    Option(
        "dataroot_lq",
        PathName(),
        REQUIRED,
        "Folder (or LMDB) of the low-quality images. Path, or list of paths in training sets of type "
        "CachedPairedImageDataset.",
    ),
    Option("io_backend", _IO_BACKEND, {}, "How the images are stored."),
    Option(
        "mean",
        Maybe(ListOf(Number(0, 1))),
        None,
        "Mean of each channel, on the scale of [0, 1]: samples are (x - mean) / std. Needs `std`.",
    ),
    Option(
        "std",
        Maybe(ListOf(Number(0, 1, without=(0,)))),
        None,
        "Standard deviation of each channel, on the scale of [0, 1]. Needs `mean`.",
    ),
    Option(
        "color",
        Maybe(OneOf(("y",))),
        None,
        "`y`: convert images to luma (one channel), for networks with `in_chans: 1`. Empty: RGB.",
    ),
)
_PAIRS = (
    Option(
        "dataroot_gt",
        PathName(),
        REQUIRED,
        "Folder (or LMDB) of the originals (ground truth). Path, or list of paths in training sets of type "
        "CachedPairedImageDataset.",
    ),
    Option(
        "filename_tmpl",
        Template(),
        "{}",
        "Name of the low-quality image, without extension; `{}` is the name of the original. Example: `{}x4`.",
    ),
    Option("meta_info_file", Maybe(PathName()), None, "File that names the originals to use, one per line."),
)
_CROP = (
    Option("gt_size", Whole(1), REQUIRED, "Height and width of the crops of originals, a multiple of `scale`."),
    Option("use_hflip", Flag(), False, "Flip half of the crops left to right."),
    Option("use_rot", Flag(), False, "Flip half of the crops upside down and transpose half of them."),
)
_LOADER = (
    Option("batch_size_per_gpu", Whole(1, 10**5), REQUIRED, "Crops per batch of each rank."),
    Option("num_worker_per_gpu", Whole(0, 512), REQUIRED, "Processes that load data, per rank; 0 loads in the rank."),
    Option("use_shuffle", Flag(), True, "Draw a new order in each epoch."),
    Option(
        "dataset_enlarge_ratio",
        Whole(1, 10**7),
        1,
        "Repeats the data set within an epoch. In CachedPairedImageDataset `patches_per_image` takes its place.",
    ),
    Option("pin_memory", Flag(), False, "Load into page-locked memory, which a GPU copies faster."),
    Option("num_prefetch_queue", Whole(1, 1024), 2, "Batches that each worker loads ahead."),
    Option("prefetch_mode", Maybe(OneOf(("cpu", "cuda"))), None, "Accepted from published files, without effect."),
    Option("persistent_workers", Flag(), True, "Accepted from published files, without effect: workers live on."),
)
_CACHED = (
    Option("cache_dir", Maybe(PathName()), None, "Folder for a file of decoded images, shared by workers and runs."),
)
_ROOTS = Either((ListOf(PathName()), PathName()))
_CACHED_TRAINING = (
    Option(
        "shares",
        Maybe(ListOf(Number(0, 1))),
        None,
        "If `dataroot_gt` and `dataroot_lq` are lists: fraction of the samples of an epoch from each root, in order; "
        "sum 1. Empty: every image is used equally often.",
    ),
    Option("patches_per_image", Whole(1, 10**7), 1, "Number of different random crops of each image in an epoch."),
    Option(
        "crop_candidates",
        Whole(1, 64),
        1,
        "Number of random positions per crop; the crop with the largest mean gradient is used. 1: no selection.",
    ),
)

# Options by type of data set. Other types, of other plugins, have options that we cannot know, next to the loader's.
CACHED_SET = Section(_LQ + _PAIRS + _CACHED)
CACHED_TRAINING_SET = Section(
    tuple(replace(o, kind=_ROOTS) if o.name.startswith("dataroot") else o for o in _LQ + _PAIRS)
    + (_CACHED + _CROP + _CACHED_TRAINING + _LOADER)
)
_SHARE = Number(0, 1)
_DEGRADATIONS = Section(
    (
        Option("clean_share", _SHARE, 0.1, "Fraction of the crops that keep the low-quality image of `dataroot_lq`."),
        Option("blur_share", _SHARE, 0.5, "Fraction of the other crops that are blurred."),
        Option(
            "blur_sigma",
            ListOf(Number(0.05, 10), 2),
            [0.2, 0.8],
            "Least and largest standard deviation of the blur, in pixels of the low-quality image.",
        ),
        Option(
            "resize_share",
            _SHARE,
            1.0,
            "Fraction of the other crops that are resized twice; the rest is shrunk at once, by bicubic interpolation.",
        ),
        Option(
            "resize_factor",
            ListOf(Number(0.1, 4), 2),
            [0.7, 1.3],
            "Least and largest f: the image is first resized to f times the low-quality size, then to that size.",
        ),
        Option("noise_share", _SHARE, 0.5, "Fraction of the other crops that get noise, half of them Poisson noise."),
        Option(
            "noise_sigma",
            ListOf(Number(0.1, 255), 2),
            [0.5, 5.0],
            "Least and largest standard deviation of the noise, in levels of 8 bits; of Poisson noise, at white.",
        ),
        Option("jpeg_share", _SHARE, 0.9, "Fraction of the other crops that are compressed."),
        Option("jpeg_quality", ListOf(Whole(1, 100), 2), [30, 95], "Lowest and highest quality of the compression."),
    )
)
DEGRADED_TRAINING_SET = Section(
    (
        *CACHED_TRAINING_SET.options,
        Option(
            "degradations", _DEGRADATIONS, {}, "How low-quality crops are made from originals (docs/photographs.md)."
        ),
    )
)
_WHOLE_IMAGES = ByType(
    "DATASET",
    (
        ("CachedPairedImageDataset", CACHED_SET),
        ("PairedImageDataset", Section(_LQ + _PAIRS)),
        ("SingleImageDataset", Section(_LQ)),
    ),
    common=_LQ[:1],
)
_CROPS = ByType(
    "DATASET",
    (
        ("CachedPairedImageDataset", CACHED_TRAINING_SET),
        ("DegradedPairedImageDataset", DEGRADED_TRAINING_SET),
        ("PairedImageDataset", Section(_LQ + _PAIRS + _CROP + _LOADER)),
    ),
    common=(*_LQ[:1], *_LOADER),
)

# Training. ---------------------------------------------------------------------------------------------------------

_LOSS: Kind = Maybe(Registered("LOSS", examples=("L1Loss", "CharbonnierLoss", "MSELoss", "FFTLoss")))
_COMPILE = OneOf((False, True, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"))
_OPTIMIZER = Registered(
    "OPTIMIZER", given=("params", "matrices", "others", "maximize"), examples=("Adam", "AdamW", "Muon")
)
_SCHEDULER = Registered(
    "SCHEDULER",
    given=("optimizer", "total_iter"),
    examples=("MultiStepLR", "CosineAnnealingLR", "CosineAnnealingRestartLR", "WSD"),
    # PyTorch's and BasicSR's classes accept others, and train with a rate that never changes or is negative.
    checked=(
        *((name, ListOf(Whole(1))) for name in ("milestones", "periods")),
        ("restarts", ListOf(Whole(0))),
        ("restart_weights", ListOf(Number(0))),
        *((name, Whole(1)) for name in ("T_0", "T_max", "T_mult", "step_size", "total_iters")),
        ("total_steps", Maybe(Whole(1))),
        ("decay_iter", Whole(0)),
        ("gamma", Number(0, without=(0,))),
        ("last_epoch", OneOf((-1,))),
    ),
)

NETWORK = Registered("ARCH", examples=("DLGSANet",))
_TEACHER = Section(
    (
        Option("path", PathName(), REQUIRED, "File of the teacher's weights: .pth or .safetensors."),
        Option(
            "network",
            Maybe(NETWORK),
            Unset("detected from the weights, for DLGSANet and what spandrel knows"),
            "Class and arguments of the teacher, as in `network_g`.",
        ),
        Option(
            "share",
            Number(0, 1, without=(0,)),
            0.5,
            "Weight w: `pixel_opt` becomes (1 - w) loss(output, original) + w loss(output, teacher).",
        ),
    )
)
LOSSES = (
    Option("pixel_opt", _LOSS, None, "Loss between output and original."),
    Option(
        "fft_opt",
        _LOSS,
        None,
        "Loss between the Fourier transforms, e.g. `{type: FFTLoss, loss_weight: 0.1}`.",
        only=OURS,
    ),
    Option("perceptual_opt", _LOSS, None, "Loss on features of a VGG network; its weights are downloaded."),
)
TRAIN = Section(
    (
        Option("total_iter", Whole(1), REQUIRED, "Number of iterations (optimizer steps)."),
        Option(
            "optim_g",
            _OPTIMIZER,
            REQUIRED,
            "Optimizer and its arguments: a class of `torch.optim`, or `Muon` (docs/training.md).",
        ),
        Option(
            "scheduler",
            _SCHEDULER,
            REQUIRED,
            "Learning-rate schedule and its arguments, in iterations: a class of PyTorch or BasicSR, or `WSD` "
            "(constant, then decay).",
        ),
        Option("warmup_iter", Whole(-1), -1, "Iterations of linear warm-up of the learning rate; -1: no warm-up."),
        Option(
            "ema_decay",
            Number(0, 1, without=(1,)),
            0,
            "Decay d of the moving average of the weights (EMA): d * average + (1 - d) * weights; 0: no average.",
        ),
        Option(
            "ema_warmup",
            Flag(),
            False,
            "After n steps the decay is min(`ema_decay`, (1 + n) / (10 + n)): the first weights are forgotten sooner.",
            only=OURS,
        ),
        Option(
            "network_init",
            OneOf(("random", "linear", "last")),
            "random",
            "`random`: the initialization of the class. `linear`: the network starts as the 5x5 linear filter "
            "with the least squared error on the first samples. `last`: all but the last convolution come from "
            "`path.pretrain_network_g`, of this scale, or of another one with `path.strict_load_g: false`; the last "
            "convolution is that with the least squared error on the first samples.",
            only=OURS,
        ),
        *LOSSES,
        Option(
            "teacher_opt",
            Maybe(_TEACHER),
            None,
            "Distillation: the output of a trained network is a second target.",
            only=OURS,
        ),
        Option(
            "precision",
            OneOf(("fp32", "tf32", "bf16", "fp16")),
            "fp32",
            "`bf16`, `fp16`: mixed precision with autocast; fp16 uses loss scaling. `tf32`: float32, with TF32 in "
            "convolutions and matrix products (NVIDIA GPU). `fp32`: as PyTorch's settings say.",
            only=OURS,
        ),
        Option("compile", _COMPILE, False, "Compile the training step; true or a mode of `torch.compile`.", only=OURS),
        Option(
            "cuda_graph",
            OneOf(("auto", True, False)),
            "auto",
            "Capture an iteration as CUDA graphs after the first ones and replay it, which takes next to no host time. "
            "Needs NVIDIA GPUs, and Adam, AdamW or Muon. `auto`: for DLGSANet, if these are met.",
            only=OURS,
        ),
        Option("channels_last", Flag(), False, "Use the channels-last memory format.", only=OURS),
        Option("accumulate", Whole(1, 10**5), 1, "Gradient accumulation: batches per iteration.", only=OURS),
        Option(
            "grad_clip",
            Maybe(Number(0)),
            None,
            "Clip the gradient to this norm. Empty or 0: no clipping.",
            only=OURS,
        ),
        Option("max_bad_steps", Whole(1), 20, "Stop after this many skipped (non-finite) steps in a row.", only=OURS),
        Option("deterministic", Flag(), False, "Use deterministic kernels only; slower on GPUs."),
    )
)

# Validation and logging. -------------------------------------------------------------------------------------------

_METRIC = Registered(
    "METRIC",
    given=("img", "img2"),
    extra=(Option("better", OneOf(("higher", "lower")), "higher", "Which values are better."),),
    examples=("calculate_psnr", "calculate_ssim", "calculate_niqe"),
    checked=(("crop_border", Whole(0)),),
)
_BEST = Section(
    (
        Option("dataset", Text(), Unset("the first"), "Name of the validation set that chooses the best weights."),
        Option("metric", Text(), Unset("the first"), "Name of the metric that chooses the best weights."),
    )
)
_VAL = (
    Option(
        "metrics",
        Maybe(Several(_METRIC)),
        None,
        "Metrics by names of your choice: a `type`, its arguments, and `better`, `higher` (the default) or `lower`.",
    ),
    Option("save_img", Flag(), False, "Write the pictures to `visualization/`."),
    Option("suffix", Maybe(FileName()), None, "End of the names of a test's pictures; empty: the run's name."),
    Option("pbar", Flag(), False, "Accepted from published files, without effect: progress is always shown."),
)
VAL = Section(
    (
        Option("val_freq", Whole(1), REQUIRED, "Iterations between validations."),
        *_VAL,
        Option("best", _BEST, {}, "By which data set and metric the best weights are chosen."),
    )
)
TEST_VAL = Section(_VAL)

_WANDB = Section(
    (
        Option("project", Maybe(Text()), None, "Project on wandb; needs `use_tb_logger`. Empty: wandb is not used."),
        Option("resume_id", Maybe(Text()), None, "Run on wandb to continue."),
    )
)
LOGGER = Section(
    (
        Option("print_freq", Whole(1), REQUIRED, "Iterations between lines in the log."),
        Option("save_checkpoint_freq", Whole(1), REQUIRED, "Iterations between checkpoints."),
        Option("save_checkpoint_minutes", Number(0), 10, "Save also after this many minutes without a checkpoint."),
        Option("keep_last", Whole(2), 3, "Number of newest checkpoints to keep, besides those that BasicSR wrote."),
        Option(
            "save_safetensors",
            Flag(),
            False,
            "Write the weights also as .safetensors files, which `dlgsanet upscale --weights` takes as they are.",
        ),
        Option("use_tb_logger", Flag(), REQUIRED, "Write TensorBoard files to `tb_logger/NAME`."),
        Option("wandb", Maybe(_WANDB), None, "Send what TensorBoard gets to wandb as well."),
    )
)

# The whole file. ---------------------------------------------------------------------------------------------------

PATH = Section(
    (
        Option("pretrain_network_g", Maybe(PathName()), None, "Weights to start from or to test: .pth, .safetensors."),
        Option(
            "param_key_g",
            Maybe(OneOf(("params", "params_ema"))),
            Unset("the averages where there are any"),
            "Which weights of a .pth file.",
        ),
        Option("strict_load_g", Flag(), True, "Refuse weights that do not fit the network exactly."),
        Option("resume_state", Maybe(PathName()), None, "Training state (`N.state`) to continue from."),
        Option("ignore_resume_networks", Maybe(ListOf(Text())), None, "Accepted from published files, without effect."),
    )
)
DIST = Section(
    (
        Option("backend", OneOf(("nccl", "gloo")), Unset("nccl"), "How ranks communicate on GPUs; on CPUs by gloo."),
        Option("port", Whole(1, 65535), Unset("from the job's number"), "Port of the first rank, under slurm."),
        Option("timeout", Number(1, 10**6), 600, "Seconds after which a rank that does not answer is given up."),
    )
)
_GPUS = Either((OneOf(("auto",)), Whole(0)))

_COMMON = (
    Option("name", FileName(), REQUIRED, "Name of the run and of its folder in `experiments/` or `results/`."),
    Option("model_type", Named("MODEL"), REQUIRED, "Model that trains and tests the network."),
    Option("scale", Whole(1, 64), REQUIRED, "Factor of enlargement, of the data and of the network."),
    Option("num_gpu", _GPUS, "auto", "Number of GPUs to use, at most those of the machine; 0 computes on the CPU."),
    Option("manual_seed", Whole(0, 2**32 - 1), Unset("drawn"), "Seed of weights, crops and their order."),
    Option("network_g", NETWORK, REQUIRED, "The network: a registered class and its arguments."),
    Option("path", PATH, REQUIRED, "Weights and states that are read."),
    Option("dist_params", DIST, {}, "How several ranks find each other."),
    Option(
        "import",
        Maybe(Either((ListOf(Text()), Text()))),
        Unset("nothing"),
        "Python files or modules to import first; they register classes of your own. Files are looked for in the "
        "working folder, then next to the option file.",
    ),
    Option(
        "find_unused_parameters",
        Flag(),
        False,
        "Passed to DistributedDataParallel: for networks that do not use all parameters in each pass.",
    ),
)
_TRAINING_DATA = DataSets((("train", _CROPS), ("val", _WHOLE_IMAGES)), required="train")
_TEST_DATA = DataSets((("test", _WHOLE_IMAGES), ("val", _WHOLE_IMAGES)))
TRAINING_FILE = Section(
    (
        *_COMMON,
        Option("datasets", _TRAINING_DATA, REQUIRED, "The data sets: `train`, and `val`, `val_2`, ... to validate on."),
        Option("train", TRAIN, REQUIRED, "The training."),
        Option("val", VAL, Unset("no validation"), "Validation."),
        Option("logger", LOGGER, REQUIRED, "Logging and checkpoints."),
    )
)
TEST_FILE = Section(
    (
        *_COMMON,
        Option("datasets", _TEST_DATA, REQUIRED, "The data sets: `test`, `test_1`, `test_2`, ..."),
        Option("val", TEST_VAL, REQUIRED, "What is measured and written."),
        Option("logger", Anything(), Unset("none"), "Accepted from published files, without effect."),
    )
)


def for_own_model(file: Section) -> Section:
    """The table of a file whose `model_type` is of one's own: other options at the top, in `path` and `train` too."""
    opened = {o.name: replace(o.kind, open=True) for o in file.options if isinstance(o.kind, Section)}
    options = [replace(o, kind=opened[o.name]) if o.name in ("path", "train") else o for o in file.options]
    return Section(tuple(options), open=True)
