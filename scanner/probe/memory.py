"""What an error of the framework means, and smaller batches where memory runs out.

Imported only inside the probe worker (it needs torch).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

from scanner.errors import ProbeCrashedError, ProbeFailedError
from scanner.probe.base import CONFIG_FAULTS, first_line

__all__ = ["FLOOR_TOKENS", "BatchSize", "first_batch"]

T = TypeVar("T")

TOKENS_PER_BATCH = {"cpu": 8_192, "cuda": 65_536}
FLOOR_TOKENS = 256
"""The smallest batch that is tried. A longer text is a batch of its own."""
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")
_DEVICE_LOST = ("cuda error", "cublas_status", "cudnn_status", "cudnn error")
"""Parts of messages after which nothing on this device can be trusted until the process ends."""


def first_batch(device: str) -> int:
    """Tokens in the first try's batches."""
    return TOKENS_PER_BATCH["cpu" if device == "cpu" else "cuda"]


class BatchSize:
    """Tokens per batch on one resident base. What was too large once is not tried again with the next adapter."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def fit(self, work: Callable[[int], T]) -> T:
        """Do work that takes a batch's size; out of memory is tried again with half of it, down to the floor.

        Raises:
            ProbeFailedError: `oom` at the floor, `probe_failed` when the framework gave up on this adapter alone.
            ProbeCrashedError: the device is lost, this process must end.
        """
        first = self.tokens
        while True:
            try:
                return work(self.tokens)
            except (RuntimeError, MemoryError, *CONFIG_FAULTS) as error:
                message = f"{type(error).__name__}: {first_line(error)}"
                if not _out_of_memory(error):
                    if _device_lost(error):
                        raise ProbeCrashedError(message) from error
                    raise ProbeFailedError(message, "probe_failed") from error
            # Only here, with the error gone, do its frames let go of their tensors.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self.tokens <= FLOOR_TOKENS:
                least, self.tokens = self.tokens, first  # it is this adapter, and its neighbours are not slowed
                raise ProbeFailedError(f"{message}, with {least} tokens a batch, too", "oom")
            self.tokens = max(FLOOR_TOKENS, self.tokens // 2)


def _out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(part in str(error).lower() for part in _OUT_OF_MEMORY)


def _device_lost(error: BaseException) -> bool:
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # torch 2.8 and newer
        return True
    return any(part in str(error).lower() for part in _DEVICE_LOST)
