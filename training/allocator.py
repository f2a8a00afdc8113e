"""Memory that one training step frees is kept for the next one, where TensorFlow would have it given back."""

from __future__ import annotations

import ctypes
import sys

# Names and values of glibc's malloc.h. Larger blocks than 32 MiB are always mapped from the system.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_MMAP_THRESHOLD = 32 * 2**20
_KEPT = 512 * 2**20


def keep_freed_memory() -> None:
    """Let the C library keep up to 512 MiB of freed memory, for blocks of up to 32 MiB; call it after the first step.

    `fit` over a `PyDataset` goes through TensorFlow's generator dataset. The first one in a process (TensorFlow 2.21,
    generator_dataset_op.cc) has the C library give all but 128 KiB of freed memory back to the system and ends its
    adaption to the sizes that a program uses, so that the tensors of each step come anew from the system, page by
    page. docs/performance.md has what that costs. Only glibc knows these settings; elsewhere nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
