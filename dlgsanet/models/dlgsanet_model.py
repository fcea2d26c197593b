"""The model that trains and tests a network: BasicSR's SRModel, with what long runs on shared hardware need."""

import logging
import math
import warnings
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from basicsr.losses import build_loss
from basicsr.models.sr_model import SRModel
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dlgsanet.archs.parts import copy_of
from dlgsanet.distributed import average_gradients, copy_from_first, mean_over_ranks
from dlgsanet.errors import faults_of, within
from dlgsanet.models.cuda_graph import CudaGraphs, Values, captures
from dlgsanet.models.linear_start import fit_filter, fit_last_convolution, start_linear
from dlgsanet.models.optimization import WarmUp, build_optimizer, build_scheduler
from dlgsanet.models.teacher import build_teacher
from dlgsanet.models.weights import load_weights, warn_of_other_options
from dlgsanet.options.table import LOSSES, TRAIN

logger = logging.getLogger("dlgsanet")

PRECISIONS = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class DivergedError(Exception):
    """The loss or its gradient was not finite too often in a row, or an output in validation is not finite."""


class DLGSANetModel(SRModel):
    """SRModel that loads any published checkpoint, with mixed precision, clipping, and skipped non-finite steps.

    docs/options.md lists the options of `train` that only this model reads. Weights and optimizer are in float32 in
    every `precision`. A skipped step changes neither weights nor averages, nor the statistics of batch normalisation.
    """

    net_g: Any
    teacher: Callable[[Tensor], Tensor] | None = None
    _graphed: CudaGraphs | None = None

    @property
    def train_options(self) -> dict[str, Any]:
        return TRAIN.completed(self.opt.get("train", {}))

    @property
    def _averages_apart(self) -> bool:
        """Whether ranks average their gradients after the backward pass: what they exchange is not captured."""
        return bool(self._graphed and self.opt["dist"])

    def model_to_device(self, net: nn.Module) -> nn.Module:
        train = self.train_options
        net = net.to(self.device)
        if train["channels_last"]:
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if mode := train["compile"]:
            net.compile(mode=None if mode is True else mode)
        return net

    def _share_gradients(self) -> None:
        """Have the backward pass average gradients over ranks."""
        # Backends lay gradients out as they like; DDP copies them, and warns that it might be faster.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        unused = self.opt.get("find_unused_parameters", False)
        ids = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        self.net_g = DistributedDataParallel(
            self.net_g, ids, find_unused_parameters=unused, gradient_as_bucket_view=True
        )

    def print_network(self, net: nn.Module) -> None:
        parameters = sum(p.numel() for p in net.parameters())
        logger.info("Network: %s, %s parameters", type(self.get_bare_model(net)).__name__, f"{parameters:,}")

    def load_network(self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = None) -> None:
        # SRModel fills in "params" where the option file is silent; the file's averaged weights are the better ones.
        key = "params" if self._is_resumed_by_basicsr() else self.opt["path"].get("param_key_g")
        with within("path.pretrain_network_g"):
            warn_of_other_options(load_path, key, self.opt["network_g"])
            load_weights(self.get_bare_model(net), load_path, key, strict)

    def _is_resumed_by_basicsr(self) -> bool:
        """Whether BasicSR's own training resumes: it names a checkpoint's weights in place of those to start from."""
        path = self.opt["path"]
        weights = path.get("pretrain_network_g")
        return bool(path.get("resume_state") and weights) and str(Path(weights).parent) == path.get("models")

    def init_training_settings(self) -> None:
        train = self.train_options
        self._take_weights_of_first_rank()
        self.net_g.train()
        self.ema_decay, self.ema_warmup = train["ema_decay"], train["ema_warmup"]
        if self.ema_decay > 0:
            self.net_g_ema = self._copy_for_averages()
        self.losses = {}
        for name in [option.name for option in LOSSES]:
            if train[name]:
                with faults_of(f"train.{name}"):
                    self.losses[name] = build_loss(train[name]).to(self.device)
        if train["teacher_opt"]:
            self.teacher_share = train["teacher_opt"]["share"]
            data, scale = self.opt["datasets"]["train"], self.opt["scale"]
            channels = 1 if data.get("color") == "y" else 3
            size = data.get("gt_size", 16 * scale) // scale
            with within("train.teacher_opt"):
                self.teacher = build_teacher(train["teacher_opt"], scale, self.device, channels, size)
        self.accumulate = train["accumulate"]
        self.grad_clip = train["grad_clip"] or math.inf
        self.max_bad_steps = train["max_bad_steps"]
        self.bad_steps = self.bad_steps_in_row = 0
        self.precision = PRECISIONS[train["precision"]]
        if train["precision"] == "tf32":  # of the whole process. The older switches: torch.compile reads them.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.setup_optimizers()
        self.setup_schedulers()
        if captures(self.opt, train, [self, self.net_g, *self.losses.values()]):
            required = train["cuda_graph"] is True
            self._graphed = CudaGraphs(self.optimizer_g, self._gradients, self._update, required)
        elif self.opt["dist"]:
            self._share_gradients()

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        super().resume_training(resume_state)
        if resume_state["iter"] < self.train_options["warmup_iter"]:
            for group in self.optimizer_g.param_groups:  # BasicSR saves the scaled rate alone
                group.setdefault("scheduled_lr", group["initial_lr"])
        if self._graphed:
            self._graphed.reset()

    def _copy_for_averages(self) -> nn.Module:
        bare = self.get_bare_model(self.net_g)
        compiled, bare._compiled_call_impl = bare._compiled_call_impl, None  # validation meets images of many sizes
        copy = copy_of(bare).eval().requires_grad_(False)
        bare._compiled_call_impl = compiled
        if self._is_resumed_by_basicsr():
            load_weights(copy, self.opt["path"]["pretrain_network_g"])
        return copy

    def compute_weights(self, samples: Iterable[dict[str, Any]]) -> None:
        """What `train.network_init` computes (`dlgsanet.models.linear_start`). All ranks call this before they train.

        Args:
            samples: of the training set; only those of the first rank count.
        """
        network = self.get_bare_model(self.net_g)
        if self.opt["rank"] == 0:
            pairs = ((sample["lq"], sample["gt"]) for sample in samples)
            if self.train_options["network_init"] == "linear":
                start_linear(network, fit_filter(pairs, self.opt["scale"], torch.tensor(network.mean)))
            else:
                fit_last_convolution(network, pairs)
        self._take_weights_of_first_rank()
        if self.ema_decay > 0:
            self.net_g_ema.load_state_dict(network.state_dict())

    def _take_weights_of_first_rank(self) -> None:
        copy_from_first(self.get_bare_model(self.net_g).state_dict().values())

    def setup_optimizers(self) -> None:
        self.parameters = [p for p in self.net_g.parameters() if p.requires_grad]
        norms = [module for module in self.net_g.modules() if hasattr(module, "track_running_stats")]
        self.statistics = [buffer for norm in norms for buffer in norm.buffers(recurse=False)]
        with faults_of("train.optim_g"):
            self.optimizer_g = build_optimizer(self.opt["train"]["optim_g"], self.get_bare_model(self.net_g))
        self.optimizers.append(self.optimizer_g)

    def setup_schedulers(self) -> None:
        train = self.train_options
        with faults_of("train.scheduler"):
            scheduler = build_scheduler(train["scheduler"], self.optimizer_g, train["total_iter"])
        self.schedulers.append(scheduler)
        self.warm_up = WarmUp(self.optimizer_g, scheduler, train["warmup_iter"])

    def update_learning_rate(self, current_iter: int, warmup_iter: int = -1) -> None:
        self.warm_up.set_rates(current_iter)

    def feed_data(self, data: dict[str, Any]) -> None:
        memory = torch.channels_last if self.train_options["channels_last"] else torch.preserve_format
        self.lq = data["lq"].to(self.device, non_blocking=True, memory_format=memory)
        if "gt" in data:
            self.gt = data["gt"].to(self.device, non_blocking=True)

    def optimize_parameters(self, current_iter: int) -> None:
        """One iteration on the batch that was fed: forward, backward, step, averages.

        Raises:
            DivergedError: this was one bad step too many in a row.
        """
        before = [statistic.clone() for statistic in self.statistics]
        names, tensor = (
            self._graphed.gradients(self.lq, self.gt) if self._graphed else self._gradients(self.lq, self.gt)
        )
        if self._averages_apart:
            average_gradients(self.parameters)
            names, tensor = [*names, "grad_norm"], torch.cat([tensor, self._clip_gradients().float()[None]])
        # Averaged over ranks, so that all of them take the same decision; the gradient already is.
        values = mean_over_ranks(tensor).tolist()
        finite = all(map(math.isfinite, values))
        if finite:
            update = self._graphed.update if self._graphed else self._update
            update(1 - self._decay_of_averages(current_iter))
        else:
            for statistic, value in zip(self.statistics, before, strict=True):
                statistic.copy_(value)
        if self.scaler.is_enabled():
            self.scaler.update()
        self._count(finite, values)
        self.log_dict = dict(zip(names, values, strict=True))
        self.mark("step")

    def mark(self, phase: str) -> None:
        """Called at the end of each phase of an iteration. Does nothing; a script that times the phases replaces it.

        All of a replayed iteration (`train.cuda_graph`) is the phase `step`.
        """

    def _gradients(self, lq: Tensor, gt: Tensor) -> Values:
        """Compute the gradient of all parts of a batch; the losses. If the gradient is that of all ranks, or there is
        one rank, it is clipped, and its norm is returned too."""
        self.optimizer_g.zero_grad()
        parts = list(zip(lq.chunk(self.accumulate), gt.chunk(self.accumulate), strict=True))
        terms: dict[str, Tensor] = {}
        for number, part in enumerate(parts, 1):
            share = len(part[0]) / len(lq)  # the last part of BasicSR's last batch in an epoch may be smaller
            for name, loss in self._forward_backward(*part, share, last=number == len(parts)).items():
                terms[name] = terms.get(name, 0) + loss
        if not self._averages_apart:
            terms["grad_norm"] = self._clip_gradients()
        return list(terms), torch.stack([*terms.values()]).float()

    def _clip_gradients(self) -> Tensor:
        """Their norm before."""
        self.scaler.unscale_(self.optimizer_g)
        return nn.utils.clip_grad_norm_(self.parameters, self.grad_clip)

    def _end_phase(self, phase: str) -> None:
        if not (self._graphed and self._graphed.capturing):  # timing waits for the GPU, which a capture does not allow
            self.mark(phase)

    def _forward_backward(self, lq: Tensor, gt: Tensor, share: float, last: bool) -> dict[str, Tensor]:
        wait_for_ranks = last or not isinstance(self.net_g, DistributedDataParallel)
        with nullcontext() if wait_for_ranks else self.net_g.no_sync():
            with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
                output = self.net_g(lq)
                teacher_output = self.teacher(lq) if self.teacher else None
            terms = self._loss_terms(output.float(), gt, teacher_output)
            total = torch.stack([*terms.values()]).sum() * share
            self._end_phase("forward")
            self.scaler.scale(total).backward()
            self._end_phase("backward")
        return {name: term.detach() * share for name, term in terms.items()}

    def _loss_terms(self, output: Tensor, gt: Tensor, teacher_output: Tensor | None) -> dict[str, Tensor]:
        terms: dict[str, Tensor] = {}
        for option, loss in self.losses.items():
            if option == "perceptual_opt":
                perceptual, style = loss(output, gt)
                terms |= {"l_percep": perceptual, "l_style": style}
            else:
                terms[f"l_{option.removesuffix('_opt').replace('pixel', 'pix')}"] = loss(output, gt)
        if teacher_output is not None:
            terms["l_pix"] = (1 - self.teacher_share) * terms["l_pix"]
            terms["l_teacher"] = self.teacher_share * self.losses["pixel_opt"](output, teacher_output)
        return {name: term for name, term in terms.items() if term is not None}

    def _update(self, share: float | Tensor) -> None:
        """Make the optimizer's step and update the averages, with this share of the new weights in them."""
        self.scaler.step(self.optimizer_g)
        if self.ema_decay > 0:
            self._average(share)

    def _decay_of_averages(self, iteration: int) -> float:
        """`ema_decay`. With `ema_warmup` it is less in the first steps, so that the averages forget their weights."""
        if not self.ema_warmup:
            return self.ema_decay
        taken = iteration - 1 - self.bad_steps
        return min(self.ema_decay, (1 + taken) / (10 + taken))

    def _count(self, finite: bool, values: list[float]) -> None:
        self.bad_steps += not finite
        self.bad_steps_in_row = 0 if finite else self.bad_steps_in_row + 1
        if self.bad_steps_in_row >= self.max_bad_steps:
            raise DivergedError(
                f"the loss or its gradient was not finite {self.bad_steps_in_row} times in a row (now {values}); set "
                "train.grad_clip or train.precision: fp32 before resuming, or start over with a lower train.optim_g.lr"
            )

    def model_ema(self, decay: float = 0.999) -> None:
        self._average(1 - decay)

    @torch.no_grad()
    def _average(self, share: float | Tensor) -> None:
        averages: list[Tensor] = list(self.net_g_ema.parameters())
        current: list[Tensor] = list(self.get_bare_model(self.net_g).parameters())
        if isinstance(share, Tensor):  # the same as below, which takes no weight from the GPU
            steps = torch._foreach_sub(current, averages)
            torch._foreach_mul_(steps, share)
            torch._foreach_add_(averages, steps)
        else:
            torch._foreach_lerp_(averages, current, share)
        # They are averages already: the statistics of batch normalisation.
        for kept, new in zip(self.net_g_ema.buffers(), self.get_bare_model(self.net_g).buffers(), strict=True):
            kept.copy_(new)
