import warnings

import pytest
import torch

from latentgen.runtime import device as module
from latentgen.runtime.device import cpu_has_native_bfloat16, one_dtype, resolve_device, resolve_dtype

CPU = torch.device("cpu")
CUDA = torch.device("cuda", 0)


@pytest.fixture
def no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def two_cuda_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)


def test_none_is_cpu_without_cuda(no_cuda):
    assert resolve_device(None) == CPU


def test_cuda_gets_its_index(two_cuda_devices):
    assert resolve_device(None) == torch.device("cuda", 1)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device(torch.device("cuda:0")) == torch.device("cuda", 0)


def test_cuda_device_beyond_the_last(two_cuda_devices):
    with pytest.raises(ValueError, match="there are 2 CUDA devices: use 0 to 1"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("built_for", "reason"), [(None, "built without CUDA.*CUDA build"), ("13.0", "no usable NVIDIA GPU.*nvidia-smi")]
)
def test_cuda_asked_for_and_absent(no_cuda, monkeypatch, built_for, reason):
    monkeypatch.setattr(torch.version, "cuda", built_for)
    with pytest.raises(ValueError, match=reason):
        resolve_device("cuda")


@pytest.mark.parametrize("device", ["gpu", "", "cuda:x", 0, 1.5, "meta"])
def test_what_is_not_a_device(device):
    with pytest.raises(ValueError, match=r"device=.*(give|no numbers)"):
        resolve_device(device)


@pytest.mark.parametrize("device", ["xpu", "hpu", torch.device("mtia")])
def test_a_device_that_this_build_has_not(device):
    with pytest.raises(
        ValueError, match=rf'device="{device}" was asked for, but this PyTorch cannot use it: use "cpu"'
    ):
        resolve_device(device)


def test_the_cpu_has_no_index():
    assert resolve_device("cpu:3") == resolve_device("cpu") == torch.empty(0).device


def test_mps_asked_for_and_absent(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no Apple GPU"):
        resolve_device("mps")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float16", torch.float16),
        ("fp16", torch.float16),
        ("half", torch.float16),
        ("bfloat16", torch.bfloat16),
        ("bf16", torch.bfloat16),
        ("float32", torch.float32),
        ("fp32", torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ],
)
def test_dtype_names(given, expected):
    assert resolve_dtype(given, CUDA) == expected


@pytest.mark.parametrize("given", ["float64", "FP16", "auto", torch.float64, torch.int8, 16])
def test_what_is_not_a_dtype(given):
    with pytest.raises(ValueError, match=r"dtype=.*Allowed: float16, fp16, half"):
        resolve_dtype(given, CPU)


def test_chosen_dtype(monkeypatch):
    assert resolve_dtype(None, CUDA) == torch.float16
    assert resolve_dtype(None, torch.device("mps")) == torch.float32
    monkeypatch.setattr(module, "cpu_has_native_bfloat16", lambda: True)
    assert resolve_dtype(None, CPU) == torch.bfloat16
    monkeypatch.setattr(module, "cpu_has_native_bfloat16", lambda: False)
    assert resolve_dtype(None, CPU) == torch.float32


def test_float16_on_a_cpu_warns():
    with pytest.warns(UserWarning, match="thousand times slower.*bfloat16 or float32"):
        assert resolve_dtype("fp16", CPU) == torch.float16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resolve_dtype("fp16", CUDA)
        resolve_dtype("bf16", CPU)
        resolve_dtype(None, CPU)


def test_two_names_for_one_dtype():
    assert one_dtype(None, None) is None
    assert one_dtype("fp16", None) == one_dtype(None, "fp16") == "fp16"
    with pytest.raises(ValueError, match="dtype and torch_dtype were both given"):
        one_dtype("fp16", "fp16")


@pytest.mark.parametrize(
    ("flags", "native"),
    [({"avx2", "avx512_f"}, False), ({"avx512_bf16"}, True), ({"neon", "bf16"}, True), (set(), False)],
)
@pytest.mark.parametrize("source", ["torch", "linux"])
def test_native_bfloat16_from_flags(monkeypatch, flags, native, source):
    monkeypatch.setattr(module, "_flags_from_torch", lambda: flags if source == "torch" else None)
    monkeypatch.setattr(module, "_flags_from_linux", lambda: flags)
    cpu_has_native_bfloat16.cache_clear()
    try:
        assert cpu_has_native_bfloat16() is native
    finally:
        cpu_has_native_bfloat16.cache_clear()


def test_flags_of_linux(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: bf16 in a name does not count\nflags\t\t: fpu avx512_bf16 amx_tile\n")
    assert "avx512_bf16" in module._flags_from_linux(cpuinfo)
    assert "bf16" not in module._flags_from_linux(cpuinfo)
    assert module._flags_from_linux(tmp_path / "absent") == set()


def test_both_sources_agree_on_this_machine():
    from_torch, from_linux = module._flags_from_torch(), module._flags_from_linux()
    if from_torch is None or not from_linux:
        pytest.skip("this machine or this PyTorch has only one of the two sources")
    known = module.NATIVE_BFLOAT16_FLAGS
    assert known.isdisjoint(from_torch) == known.isdisjoint(from_linux)
