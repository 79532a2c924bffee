"""Memory for weights: of any shape and dtype, its own, and given back."""

import gc
from pathlib import Path

import pytest
import torch

from latentgen.weights.allocation import LARGE_PAGE, allocate


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (7,), (LARGE_PAGE // 4,), (1031, 1033), (2**20 + 3,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.float64, torch.int8])
def test_any_shape_and_dtype(shape, dtype):
    tensor = allocate(shape, dtype)
    assert tensor.shape == shape
    assert tensor.dtype == dtype
    assert tensor.is_contiguous()
    assert tensor.data_ptr() % dtype.itemsize == 0
    values = torch.randint(0, 2, shape).to(dtype)
    assert torch.equal(tensor.copy_(values), values)


def test_each_has_memory_of_its_own():
    first, second = (allocate((2**20,), torch.float32) for _ in range(2))
    first.fill_(1)
    second.fill_(2)
    assert first.unique().tolist() == [1]
    assert first.untyped_storage().data_ptr() != second.untyped_storage().data_ptr()


def test_it_is_given_back():
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("resident memory is read from /proc")

    def resident():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) * 1024

    before = resident()
    for _ in range(20):
        allocate((2**24,), torch.float32).fill_(1)  # 64 MiB
    gc.collect()
    assert resident() - before < 100 * 2**20
