"""With how many digits a GPU multiplies float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch


@contextmanager
def float32_products(precision: Literal["ieee", "tf32"]) -> Iterator[None]:
    """Multiplies float32 with all of its digits (`ieee`) or those of TF32 for a while, whatever the training does.

    TF32 has the digits of float16, and a comparison of two ways to the same values would tell of nothing but that.
    """
    # The older `torch.get_float32_matmul_precision` refuses to answer where this has been set.
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
