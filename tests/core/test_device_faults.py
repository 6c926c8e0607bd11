"""Memory that ran out is known in every dialect, and so is a GPU that is lost; other words are
neither."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from mvl.core import device_faults
from mvl.training import failures

OUT_OF_MEMORY = [
    "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity",
    "RuntimeError: CUDA error: out of memory",
    "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "RuntimeError: cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    (
        "RuntimeError: cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling"
        " `cusolverDnCreate(handle)`"
    ),
    "RuntimeError: cuFFT error: CUFFT_ALLOC_FAILED",
    "RuntimeError: GET was unable to find an engine to execute this computation",
    "RuntimeError: Unable to find an engine to execute this computation",
    "OutOfMemoryError: HIP out of memory. Tried to allocate 1.00 GiB",
    "RuntimeError: HIP error: out of memory",
    "RuntimeError: CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`",
    "RuntimeError: miopenStatusAllocFailed",
    "RuntimeError: MPS backend out of memory (MPS allocated: 9.05 GB)",
    "OutOfMemoryError: XPU out of memory. Tried to allocate 4.00 GiB",
    "RuntimeError: level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"
        " memory: you tried"
    ),
    (
        "RuntimeError: [enforce fail at alloc_cpu.cpp:73] DefaultCPUAllocator: not enough memory:"
        " you tried"
    ),
    "RuntimeError: std::bad_alloc",
    "MemoryError: ",
    "_ArrayMemoryError: Unable to allocate 7.28 TiB for an array",
]
OTHER = [
    "RuntimeError: shape '[2, 3]' is invalid for input of size 5",
    (
        "RuntimeError: DataLoader worker (pid 5) is killed by signal: Bus error. It is possible"
        " that dataloader's workers are out of shared memory. Please try to raise your shared"
        " memory limit."
    ),
    "TaskError: label is empty",
    "RuntimeError: CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
    "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED",
]


@pytest.mark.parametrize("text", OUT_OF_MEMORY)
def test_every_dialect_of_memory_that_ran_out_is_known(text: str) -> None:
    assert device_faults.says_out_of_memory(text)
    name, _, words = text.partition(": ")
    if name == "RuntimeError":
        assert failures.state_of(RuntimeError(words)) == "oom"


@pytest.mark.parametrize("text", OTHER)
def test_other_words_mean_something_else(text: str) -> None:
    assert not device_faults.says_out_of_memory(text)


def test_real_errors_are_known_by_their_kind() -> None:
    with pytest.raises(MemoryError) as caught:
        np.empty((2**20, 2**20))
    assert device_faults.is_out_of_memory(caught.value)
    with pytest.raises(RuntimeError) as told:
        torch.empty(2**50)
    assert device_faults.is_out_of_memory(told.value)
    assert device_faults.is_out_of_memory(torch.OutOfMemoryError(""))
    assert device_faults.is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not device_faults.is_out_of_memory(OSError(errno.ENOSPC, "out of memory"))
    assert not device_faults.is_out_of_memory(ValueError("a label that is called out of memory"))


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: unspecified launch failure",
        "CUDA error: misaligned address",
        "HIP error: an illegal memory access was encountered",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_errors_that_lose_the_gpu_are_known(words: str) -> None:
    assert device_faults.loses_device(RuntimeError(words))
    assert not device_faults.is_out_of_memory(RuntimeError(words))


def test_errors_that_leave_the_gpu_in_order_do_not_lose_it() -> None:
    assert not device_faults.loses_device(RuntimeError("CUDA error: out of memory"))
    assert not device_faults.loses_device(
        RuntimeError("CUDA error: operation not permitted when stream is capturing")
    )
    assert not device_faults.loses_device(ValueError("device-side assert"))
