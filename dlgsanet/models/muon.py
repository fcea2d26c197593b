"""Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) for convolutions, Adam for everything else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from dlgsanet.errors import is_whole

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # coefficients of the quintic iteration


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Move the singular values of each matrix close to 1 (0.7 to 1.2 after 5 steps) by Newton-Schulz iteration.

    Args:
        matrices: `[B, rows, columns]`, of any scale; a matrix of zeros stays as it is.
        steps: iterations.

    Returns:
        `[B, rows, columns]` in the dtype of `matrices`.
    """
    a, b, c = _NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices  # the smaller of the two Gram matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def split_parameters(network: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trainable parameters that Muon updates as matrices, and all others.

    Matrices are the weights of linear layers and of convolutions with more than one input channel per group. The first
    and the last convolution of the network are not among them: they map from and to pixels.
    """
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    inner = {id(module.weight) for module in convolutions[1:-1] if module.weight.shape[1] > 1}
    inner |= {id(module.weight) for module in network.modules() if isinstance(module, nn.Linear)}
    trainable = [p for p in network.parameters() if p.requires_grad]
    return [p for p in trainable if id(p) in inner], [p for p in trainable if id(p) not in inner]


class Muon(Optimizer):
    """Muon for matrices, Adam for all other parameters.

    The weight of a convolution is taken as a matrix `[out, in * kernel height * kernel width]`. It moves by
    ``lr * 0.2 * sqrt(max(rows, columns))`` times its orthogonalized Nesterov momentum. The root mean square of that
    update is about ``0.2 * lr``, as Adam's is (Liu et al., 2025, arXiv 2502.16982). All weights of one shape are
    orthogonalized together, in float32.

    Within a step, `lr` of a group may be a tensor on the parameters' device, with `fused`: a CUDA graph then reads it.

    Args:
        matrices: parameters with two or more axes, `[out, ...]`.
        others: the parameters that Adam updates. See `split_parameters`.
        lr: learning rate of the matrices.
        adam_lr: learning rate of the others. Default: `lr`.
        momentum: decay of the average of the matrices' gradient, in [0, 1).
        betas: of Adam, each in [0, 1).
        eps: of Adam.
        weight_decay: decoupled weight decay of the matrices.
        steps: Newton-Schulz iterations, 1 or more.
        fused: run Adam as one kernel, which is faster and rounds differently.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        matrices: Sequence[nn.Parameter],
        others: Sequence[nn.Parameter],
        lr: float = 1e-3,
        adam_lr: float | None = None,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        steps: int = 5,
        fused: bool = False,
    ):
        adam_lr = lr if adam_lr is None else adam_lr
        for name, value in {"lr": lr, "adam_lr": adam_lr, "eps": eps, "weight_decay": weight_decay}.items():
            if not value >= 0:
                raise ValueError(f"{name} is {value}; it must be at least 0")
        for name, value in {"momentum": momentum, "betas[0]": betas[0], "betas[1]": betas[1]}.items():
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        if not is_whole(steps, 1):
            raise ValueError(f"steps is {steps!r}; it must be a whole number from 1")
        groups = [
            {"params": list(matrices), "lr": lr, "matrices": True},
            {"params": list(others), "lr": adam_lr, "matrices": False},
        ]
        defaults = {"momentum": momentum, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults |= {"steps": steps, "fused": fused}
        super().__init__([group for group in groups if group["params"]], defaults)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("fused", False)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient; the loss of `closure`, if there is one."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                update = self._update_matrices if group["matrices"] else self._update_others
                update(parameters, group)
        return loss

    def _update_matrices(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for p in parameters:
            if not self.state[p]:
                self.state[p]["momentum"] = torch.zeros_like(p)
        gradients = [p.grad for p in parameters if p.grad is not None]
        momenta = [self.state[p]["momentum"] for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        ahead = torch._foreach_lerp(gradients, momenta, group["momentum"])
        if group["weight_decay"]:
            torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for number, p in enumerate(parameters):
            by_shape[p.shape].append(number)
        for shape, numbers in by_shape.items():
            # Few calls for all matrices of a shape: on a GPU the time is that of starting them.
            matrices = torch.stack([ahead[i] for i in numbers]).float().reshape(len(numbers), shape[0], -1)
            directions = orthogonalize(matrices, group["steps"]).contiguous()
            directions *= group["lr"] * (-0.2 * max(matrices.shape[1:]) ** 0.5)
            moves = directions.view(len(numbers), *shape).unbind()
            torch._foreach_add_([parameters[i] for i in numbers], moves)

    def _update_others(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        fused = group["fused"]
        for p in parameters:
            if not self.state[p]:
                # A step count on the CPU costs no synchronisation; the fused kernel wants it on the parameter's device.
                self.state[p]["step"] = torch.zeros((), device=p.device if fused else "cpu")
                self.state[p] |= {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        states = [self.state[p] for p in parameters]
        adam(
            parameters,
            [p.grad for p in parameters],  # type: ignore[misc]
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=not fused,
            fused=fused,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=False,
        )
