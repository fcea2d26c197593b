"""`train.cuda_graph`: a training iteration is captured as CUDA graphs and replayed, which takes next to no host time.

A graph launches the same kernels on the same memory each time. So what changes between iterations is kept in tensors
on the GPU: the batch, the learning rates, the share of the weights in the averages, and Adam's step count.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from dlgsanet.errors import UserError, brief, first_failure
from dlgsanet.memory import is_out_of_memory
from dlgsanet.models.optimization import optimization_faults

logger = logging.getLogger("dlgsanet")

OPTIMIZERS = ("Adam", "AdamW", "Muon")  # these can take their rates and step counts from the GPU
_WITH_OWN_GRAPHS = ("reduce-overhead", "max-autotune")  # modes of torch.compile
EAGER_STEPS = 3  # before the capture; they compile and load the kernels and create the optimizer's state

# Names and values of an iteration's losses, and of its gradient norm where that is computed too.
Values = tuple[list[str], Tensor]


def faults_of_cuda_graph(train: Mapping[str, Any]) -> Iterator[str]:
    """What a complete `train` section has that cannot be captured, a line each."""
    if train["precision"] == "fp16":
        yield "train.cuda_graph: loss scaling of precision: fp16 cannot be captured; choose bf16, tf32 or fp32"
    if train["optim_g"]["type"] not in OPTIMIZERS:
        kind = train["optim_g"]["type"]
        yield f"train.cuda_graph: the optimizer {kind} cannot be captured; choose from {', '.join(OPTIMIZERS)}"
    if train["compile"] in _WITH_OWN_GRAPHS:
        yield f"train.cuda_graph: compile: {train['compile']} makes CUDA graphs itself; choose compile: true or false"


def captures(options: Mapping[str, Any], train: Mapping[str, Any], parts: Iterable[object]) -> bool:
    """Whether iterations are captured.

    A graph repeats what Python decided in the captured iteration, for example by a random number. So `auto` captures
    only what is known to do the same each time.

    Args:
        options: of the run, on an NVIDIA GPU or not.
        train: its complete `train` section.
        parts: the model, the network and the losses.
    """
    if train["cuda_graph"] != "auto":
        return train["cuda_graph"]
    if options["num_gpu"] == 0 or torch.version.hip or train["compile"] or train["teacher_opt"]:
        return False
    known = all(type(part).__module__.split(".")[0] in ("dlgsanet", "basicsr") for part in parts)
    return known and not any(faults_of_cuda_graph(train)) and not optimization_faults({**train, "cuda_graph": True})


class CudaGraphs:
    """The two parts of an iteration, run eagerly in the first steps, then captured, then replayed.

    Everything runs on a stream of its own: captures are not possible on the default stream, and gradients are summed
    on the stream on which the graph of autograd was made.

    Args:
        optimizer: Adam, AdamW or Muon.
        gradients: computes the gradients of a batch, in `.grad` of the parameters, and the values to report.
        update: makes the optimizer's step and updates the averages, with the share of the weights in them.
        required: what cannot be captured is an error. Else the iterations stay eager.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        gradients: Callable[[Tensor, Tensor], Values],
        update: Callable[[Any], None],
        required: bool,
    ):
        self._optimizer, self._gradients, self._update, self._required = optimizer, gradients, update, required
        self._stream = torch.cuda.Stream()
        self._device = optimizer.param_groups[0]["params"][0].device
        self._rates = [self._scalar() for _ in optimizer.param_groups]
        self._share = self._scalar()
        self._inputs: tuple[Tensor, Tensor]
        self._values: Values
        optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are meant to
        self.capturing = False
        self.reset()

    def reset(self) -> None:
        """Forget the graphs: the optimizer's state lies elsewhere now."""
        self._steps = 0
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def _scalar(self) -> Tensor:
        return torch.zeros((), device=self._device)

    def gradients(self, lq: Tensor, gt: Tensor) -> Values:
        """Compute the gradients of a batch; the values to report.

        Raises:
            UserError: graphs are required, and the batch has another shape than those before.
        """
        with self._aside():
            if self._graphs and (lq.shape, gt.shape) != tuple(kept.shape for kept in self._inputs):
                shapes = " and ".join("x".join(map(str, tensor.shape)) for tensor in (self._inputs[0], lq))
                self._refuse(f"all batches must have one shape, not {shapes}")
            if not self._graphs:
                self._inputs = lq, gt
                return self._gradients(lq, gt)
            for kept, new in zip(self._inputs, (lq, gt), strict=True):
                kept.copy_(new, non_blocking=True)
            self._graphs[0].replay()
            return self._values

    def update(self, share: float) -> None:
        """Make the optimizer's step and update the averages, with this share of the weights in them.

        Raises:
            UserError: graphs are required, and the iteration cannot be captured.
        """
        with self._aside():
            for rate, group in zip(self._rates, self._optimizer.param_groups, strict=True):
                rate.fill_(group["lr"])
            self._share.fill_(share)
            if self._graphs:
                self._graphs[1].replay()
            else:
                self._update_from_tensors()
                self._steps += 1
                if self._steps == EAGER_STEPS:  # at once: a validation could empty caches that the steps have filled
                    self._capture()

    @contextmanager
    def _aside(self) -> Iterator[None]:
        current = torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def _update_from_tensors(self) -> None:
        with _on_gpu(self._optimizer, self._rates):
            self._update(self._share)

    def _refuse(self, reason: str, error: Exception | None = None) -> None:
        """Go on without graphs, or raise a UserError if they are required."""
        if self._required:
            raise UserError(f"train.cuda_graph: {reason}; set it to false") from error
        logger.warning("%-11snot used from now on, which is slower: %s", "CUDA graph", reason)
        self._graphs = []
        self._optimizer.zero_grad()  # gradients may lie in memory of a graph

    def _capture(self) -> None:
        """Capture both parts. Nothing is computed: neither weights nor the optimizer's state change."""
        lq, gt = self._inputs
        self._inputs = lq.clone(), gt.clone()
        first, second = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # Other threads may go on to use the GPU: one of a data loader pins memory.
        capture = partial(torch.cuda.graph, stream=self._stream, capture_error_mode="thread_local")
        self.capturing = True
        try:
            with capture(first):
                self._values = self._gradients(*self._inputs)
            with capture(second, pool=first.pool()):
                self._update_from_tensors()
        except RuntimeError as error:
            first_error = first_failure(error)
            if self._required and is_out_of_memory(first_error):
                raise
            return self._refuse(f"this run cannot be captured ({brief(first_error)})", error)
        finally:
            self.capturing = False
        self._graphs = [first, second]
        logger.info("%-11san iteration is captured; it is replayed from now on", "CUDA graph")


@contextmanager
def _on_gpu(optimizer: Optimizer, rates: Iterable[Tensor]) -> Iterator[None]:
    """Within the block the optimizer takes rates and step counts from the GPU. Its groups are as before afterwards:
    schedules and checkpoints see floats."""
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        state = optimizer.state.get(p, {})
        if "step" in state:  # that of a checkpoint is on the CPU
            state["step"] = state["step"].to(p.device, torch.float32)
        if p.grad is not None and p.grad.stride() != p.stride():  # of axes of length 1; the fused kernel refuses that
            p.grad = torch.empty_like(p).copy_(p.grad)
    before = [dict(group) for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group |= {"lr": rate, "capturable": True, "fused": True}
    try:
        yield
    finally:
        for group, values in zip(optimizer.param_groups, before, strict=True):
            group.clear()
            group |= values
