"""Whether PyTorch may use TF32 for products in float32, by its newer settings or the older ones.

PyTorch raises an error in a program that uses both, so each function reads one of them.
"""

import torch


def allowed_in_convolutions() -> bool:
    conv = getattr(torch.backends.cudnn, "conv", None)  # since PyTorch 2.9
    return torch.backends.cudnn.allow_tf32 if conv is None else conv.fp32_precision == "tf32"


def allowed_in_matrix_products() -> bool:
    matmul = torch.backends.cuda.matmul
    setting = getattr(matmul, "fp32_precision", None)  # since PyTorch 2.9
    return matmul.allow_tf32 if setting is None else setting == "tf32"
