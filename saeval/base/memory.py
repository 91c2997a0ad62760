"""Memory: how much is available, and which errors say that it ran out."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import psutil

from saeval.base.lazy_torch import torch

try:
    import resource
except ImportError:  # Windows has none
    resource = None  # type: ignore[assignment]

# Only CUDA has an error class for it; other allocators raise a RuntimeError with one of these messages.
_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
_CGROUP = Path("/sys/fs/cgroup")


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's `mallopt`."""
_KEPT = 2**30


class TooLargeError(BaseException):
    """A batch that does not fit in memory. It is not an `Exception`, so that it is never recorded as a failed cell."""


def out_of_memory(error: BaseException) -> bool:
    """Return True if an error says that memory ran out: torch's on any device or numpy's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(saying in str(error) for saying in _SAYINGS)


def refuse_too_large(error: BaseException) -> None:
    """Raise `TooLargeError` if an error says that memory ran out."""
    if out_of_memory(error):
        raise TooLargeError(str(error).strip().split("\n")[0]) from None


def memory_budget(device: str) -> int:
    """Return the bytes that all SAE weights together may take: half of the device's memory."""
    if device.startswith("cuda"):
        _, total = torch.cuda.mem_get_info(device)
        return total // 2
    return int(psutil.virtual_memory().total) // 2


def available(device: str) -> int:
    """Return the bytes that are free now: on the device, or on this machine and within its container's limit."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(device)[0])
    return min([memory_budget(device), int(psutil.virtual_memory().available), *_free_of_container()])


def keep_freed_memory() -> None:
    """Make this process keep up to 1 GiB of freed memory, if its C library is glibc.

    By default, glibc returns each large block to the system, which then fills the pages of the next one with zeros.
    This takes a sixth of the time of the logits of a large vocabulary.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return
    mallopt(_MMAP_THRESHOLD, _KEPT)
    mallopt(_TRIM_THRESHOLD, _KEPT)


def peak_mib() -> int:
    """Return the peak memory of this process, in MiB."""
    if resource is None:
        return int(psutil.Process().memory_info().peak_wset) // 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)  # bytes on macOS, KiB on Linux


def _free_of_container() -> list[int]:
    try:
        limit, used = (int((_CGROUP / f"memory.{name}").read_text(encoding="utf-8")) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or no limit
        return []
    return [max(0, limit - used + _numbers(_CGROUP / "memory.stat").get("inactive_file", 0))]


def _numbers(file: Path) -> dict[str, int]:
    try:
        words = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError:
        return {}
    return {word[0]: int(word[1]) for word in words if len(word) > 1 and word[1].isdigit()}
