"""The processes ("ranks") of a run: how they start, and the few values that they exchange.

One process trains on one GPU (NCCL), or on CPU cores (gloo). Every function works in a single process too.
"""

import errno
import hashlib
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from dlgsanet.errors import UserError, first_line
from dlgsanet.options.table import DIST
from dlgsanet.signals import INTERRUPTED

SAYING = 2  # seconds for which a rank stays after its message; others do not repeat it meanwhile


@contextmanager
def as_rank(launcher: str) -> Iterator[None]:
    """Within the block an error ends this process at once, without leaving the process group, which would wait for
    ranks forever. What the ranks of a host say alike, such as a UserError, one of them says. Launcher `none`: no rank.
    """
    try:
        yield
    except BaseException as error:
        if launcher == "none":
            raise
        _leave_at_once(error)


@contextmanager
def ranks(launcher: str, options: dict[str, Any]) -> Iterator[None]:
    """Within the block this process is a rank of the run.

    Sets the options `dist`, `rank`, `world_size` and the `manual_seed` that all share. The section
    `dist_params` may set `backend`, `port` and `timeout` (seconds until a rank that does not answer counts as lost).

    Args:
        launcher: `none`, `pytorch` (torchrun has set the environment) or `slurm` (srun has).

    Raises:
        UserError: the launcher has not set its environment variables, or the ranks do not find each other.
    """
    if launcher == "none":
        yield
        return
    with as_rank(launcher):
        params = DIST.completed(options.get("dist_params", {}))
        if launcher == "slurm":
            _environment_from_slurm(params.get("port"))
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
            if name not in os.environ:
                raise UserError(f"--launcher {launcher}: {name} is not in the environment; start with torchrun or srun")
        on_gpu = options["num_gpu"] > 0
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
        backend = params.get("backend", "nccl") if on_gpu else "gloo"  # BasicSR's files name nccl
        try:
            dist.init_process_group(backend, timeout=timedelta(seconds=params["timeout"]))
        except (RuntimeError, ValueError) as error:
            raise UserError(f"the ranks do not find each other: {first_line(error)}") from error
        options |= {"dist": True, "rank": dist.get_rank(), "world_size": dist.get_world_size()}
        options["manual_seed"] = from_first(options["manual_seed"])
        yield
    dist.destroy_process_group()


def _leave_at_once(error: BaseException) -> NoReturn:
    code = 2 if isinstance(error, UserError) else INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1
    line = f"dlgsanet: error: {error.for_command()}" if isinstance(error, UserError) else "dlgsanet: stopped"
    try:
        if code == 1:
            traceback.print_exception(error)
        elif _is_first_to_say(line):
            print(line, file=sys.stderr, flush=True)
            time.sleep(SAYING)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:  # stderr may be a file on a full disk
        os._exit(code)


def _is_first_to_say(line: str) -> bool:
    """Whether no running child of the same launcher on this host has called this with the line.

    On Linux; elsewhere always true.
    """
    digest = hashlib.sha256(line.encode(errors="surrogateescape")).hexdigest()
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0dlgsanet-{os.getppid()}-{digest}")
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    name.detach()  # it is this process's until it ends
    return True


def _environment_from_slurm(port: int | None) -> None:
    """Set what torchrun sets, from what srun sets for each task."""
    try:
        os.environ["RANK"] = os.environ["SLURM_PROCID"]
        os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
        os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
        nodes = os.environ["SLURM_STEP_NODELIST"]
        ranks_of_node = -(-int(os.environ["SLURM_NTASKS"]) // int(os.environ.get("SLURM_STEP_NUM_NODES", 1)))
    except KeyError as error:
        raise UserError(f"--launcher slurm: {error.args[0]} is not in the environment; start with srun") from None
    os.environ["LOCAL_WORLD_SIZE"] = str(ranks_of_node)
    if "MASTER_ADDR" not in os.environ:
        shown = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        os.environ["MASTER_ADDR"] = shown.stdout.split()[0]
    # Jobs that share a node must not share a port.
    job = int(os.environ.get("SLURM_JOB_ID", 0))
    os.environ.setdefault("MASTER_PORT", str(port or 20000 + job % 10000))


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def raised_on_all() -> Iterator[None]:
    """A UserError that any rank has within the block is raised on all. They must not exchange anything in it."""
    fault = None
    try:
        yield
    except UserError as error:
        fault = str(error)
    for message in filter(None, gather(fault)):
        raise UserError(message)


def refuse_other_ranks(values: Mapping[str, Any]) -> None:
    """Raise a UserError, on all ranks, if one of them has other values than the first."""
    first, *others = gather(dict(values))
    for rank, found in enumerate(others, 1):
        for name in {**first, **found}:
            if found.get(name) != first.get(name):
                raise UserError(
                    f"rank {rank} has another value of {name} than rank 0 ({found.get(name)}, {first.get(name)}); all "
                    "hosts need the same option file and images, and must share the folder experiments"
                )


def from_first(value: Any) -> Any:
    """The value of the first rank."""
    if not dist.is_initialized():
        return value
    values = [value]
    dist.broadcast_object_list(values)
    return values[0]


def copy_from_first(tensors: Iterable[torch.Tensor]) -> None:
    """Copy the values of the first rank into the tensors of all others."""
    for tensor in tensors if dist.is_initialized() else ():
        dist.broadcast(tensor, 0)


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all ranks."""
    if dist.is_initialized():
        dist.all_reduce(values)
        values /= dist.get_world_size()
    return values


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace gradients by their means over all ranks. The same parameters must have gradients on all of them."""
    grads = [p.grad for p in parameters if p.grad is not None]
    means = mean_over_ranks(torch.cat([grad.flatten() for grad in grads])).split([grad.numel() for grad in grads])
    torch._foreach_copy_(grads, [mean.view(grad.shape) for mean, grad in zip(means, grads, strict=True)])


def largest(*numbers: int) -> list[int]:
    """The largest value of each number over all ranks. With it they agree on what to do next."""
    if not dist.is_initialized():
        return list(numbers)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    tensor = torch.tensor(numbers, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor.tolist()
