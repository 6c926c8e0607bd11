"""What an error says of the device: its memory ran out, or it is lost to this process. Read from
its words, torch is not loaded."""

from __future__ import annotations

import errno
import re

MEMORY = re.compile(
    r"\b(?:OutOf|_Array)?MemoryError\b|\bOutOfMemory\b"  # Python's, torch's, numpy's and our own
    r"|out of memory"  # CUDA, HIP, XPU, MPS, and drivers
    r"|OUT_OF_(?:DEVICE|HOST)_MEMORY"  # Level Zero and Vulkan
    # a CPU's allocators, fork and mmap
    r"|can(?:'t| ?not) allocate memory|not enough memory|std::bad_alloc"
    r"|ALLOC(?:ATION)?_FAILED|StatusAllocFailed"  # cuBLAS, cuDNN, cuSOLVER, cuFFT, hipBLAS, MIOpen
    # cuDNN, where every way needs more workspace than there is
    r"|[Uu]nable to find an engine to execute",
    re.ASCII,
)
"What an error says when memory ran out. For shared memory see `failures.WorkerLost`."

LOST = re.compile(
    r"device-side assert|illegal (?:memory access|instruction|address)|misaligned address|launch"
    r" failure|invalid program counter"
    r"|hardware stack error|invalid address space|uncorrectable ECC error|launch timed out"
)
"What CUDA and HIP say of errors after which every later call of the process fails."


def says_out_of_memory(text: str) -> bool:
    """Whether an error's words, its type's name among them, mean that memory ran out."""
    return MEMORY.search(text) is not None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a CPU or a GPU.

    Errors of other kinds, of a wrong value say, may quote any words.
    """
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if not isinstance(error, MemoryError | RuntimeError):
        return False
    return isinstance(error, MemoryError) or says_out_of_memory(f"{type(error).__name__}: {error}")


def loses_device(error: BaseException) -> bool:
    """Whether the GPU answers this process no more after an error: only a new process can go on."""
    return isinstance(error, RuntimeError) and LOST.search(str(error)) is not None
