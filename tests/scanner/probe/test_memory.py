"""What an error of the framework means, and batches that are made smaller where memory runs out."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from scanner.errors import LorascopeError, ProbeFailedError, UnsupportedError

torch = pytest.importorskip("torch", reason="the behaviour stage needs the probe extra")

OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nGPU 0 has")
HALVES = [8_192, 4_096, 2_048, 1_024, 512, 256]


@pytest.mark.parametrize(
    ("error", "sizes", "code"),
    [
        (OOM, HALVES, "oom"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), HALVES, "oom"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"), HALVES, "oom"),
        (MemoryError(), HALVES, "oom"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied\nat some line"), HALVES[:1], "probe_failed"),
        (NotImplementedError(), HALVES[:1], "probe_failed"),
        (ValueError("-inf + inf in fsum"), HALVES[:1], "probe_failed"),
        (AttributeError("'LinearAttentionLayer' object has no attribute"), HALVES[:1], "probe_failed"),
        (RuntimeError("CUDA error: device-side assert triggered\nCompile with"), HALVES[:1], "probe_crashed"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling"), HALVES[:1], "probe_crashed"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), HALVES[:1], "probe_crashed"),
    ],
)
def test_what_an_error_of_the_framework_means(error: Exception, sizes: list[int], code: str) -> None:
    from scanner.probe.memory import FLOOR_TOKENS, BatchSize

    tried: list[int] = []

    def work(tokens_per_batch: int) -> None:
        tried.append(tokens_per_batch)
        raise error

    size = BatchSize(8_192)
    with pytest.raises(LorascopeError) as caught:
        size.fit(work)
    assert caught.value.code == code
    assert type(error).__name__ in caught.value.message
    assert "\n" not in caught.value.message
    assert tried == sizes
    assert size.tokens == 8_192  # nothing was small enough, so smaller batches would not help the next one
    if code == "oom":
        assert sizes[-1] == FLOOR_TOKENS == 256
        assert "256 tokens" in caught.value.message


def test_a_size_that_was_too_large_once_is_not_tried_again() -> None:
    from scanner.probe.memory import BatchSize

    tried: list[int] = []

    def work(tokens_per_batch: int) -> str:
        tried.append(tokens_per_batch)
        if tokens_per_batch > 3_000:
            raise OOM
        return "done"

    size = BatchSize(8_192)
    assert [size.fit(work), size.fit(work)] == ["done", "done"]
    assert tried == [8_192, 4_096, 2_048, 2_048]


@pytest.mark.parametrize(
    ("first", "wanted"), [(300, [300, 256]), (256, [256]), (100, [100]), (1_000, [1_000, 500, 256])]
)
def test_no_size_is_below_the_floor_and_none_is_raised_to_it(first: int, wanted: list[int]) -> None:
    from scanner.probe.memory import BatchSize

    tried: list[int] = []

    def work(tokens_per_batch: int) -> None:
        tried.append(tokens_per_batch)
        raise MemoryError

    with pytest.raises(ProbeFailedError):
        BatchSize(first).fit(work)
    assert tried == wanted


@pytest.mark.parametrize("error", [UnsupportedError("x", "base_mismatch"), ProbeFailedError("x", "nan_logits")])
def test_our_own_errors_pass_through(error: LorascopeError) -> None:
    from scanner.probe.memory import BatchSize

    def work(_: int) -> None:
        raise error

    with pytest.raises(LorascopeError) as caught:
        BatchSize(8_192).fit(work)
    assert caught.value is error


def test_what_did_not_fit_is_let_go_before_the_next_try() -> None:
    """An error's frames hold the tensors of the try that failed."""
    from scanner.probe.memory import BatchSize

    held: list[Any] = []
    gc.collect()
    gc.disable()
    try:

        def work(tokens_per_batch: int) -> str:
            assert all(reference() is None for reference in held)
            tensor = torch.zeros(10)
            held.append(weakref.ref(tensor))
            if tokens_per_batch > 256:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return "done"

        assert BatchSize(1_024).fit(work) == "done"
    finally:
        gc.enable()
    assert len(held) == 3


def test_first_batches_follow_the_device() -> None:
    from scanner.probe.memory import first_batch

    assert first_batch("cpu") < first_batch("cuda:0") == first_batch("cuda")
