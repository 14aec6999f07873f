"""Tensors of a checkpoint, mapped into memory; only what is touched is read. And tensors as bytes."""

from __future__ import annotations

import mmap

import torch
from torch import Tensor

from tokensurgeon.checkpoint.index import TensorRef

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


def map_tensor(ref: TensorRef) -> Tensor:
    """Map a floating-point tensor into memory without reading it.

    Args:
        ref: A tensor with a dtype of ``DTYPES``.

    Returns:
        A tensor of the stored dtype and shape over private, copy-on-write pages.
    """
    with ref.path.open("rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    count = ref.nbytes // DTYPES[ref.dtype].itemsize
    flat = torch.frombuffer(pages, dtype=DTYPES[ref.dtype], count=count, offset=ref.start)
    return flat.reshape(ref.shape)


def raw_bytes(tensor: Tensor) -> memoryview:
    """A tensor's bytes in row order, as a file holds them.

    Args:
        tensor: On the CPU.

    Returns:
        A view of its memory, or of a copy where it is not contiguous.
    """
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
