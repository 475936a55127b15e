"""Tells whether an error means that a device's memory does not suffice."""

import torch

WITHOUT_MEMORY = (
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
"""What cuDNN and cuBLAS report as plain errors when there is no room for their workspace
(github.com/pytorch/pytorch/issues/108645)."""


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether less work at once may avoid the error."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError)
    return out_of_memory or any(text in str(error) for text in WITHOUT_MEMORY)
