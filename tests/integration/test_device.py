"""Precision, memory format, choice of the device, and the allocator."""

import pytest
import torch

import models
from lib.errors import UserError
from lib.nn.embedder import Embedder
from lib.runtime import device
from lib.runtime.device import choose_device, choose_precision
from lib.runtime.memory import is_out_of_memory, physical_memory
from tests.helpers.runs import call

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [
        ("AuthenticAMD", {"avx2"}, None),
        ("AuthenticAMD", {"avx512f", "avx512_bf16"}, torch.bfloat16),
        ("GenuineIntel", {"avx512f", "avx512_bf16"}, None),
        ("GenuineIntel", {"avx512_bf16", "amx_bf16"}, torch.bfloat16),
        ("", set(), None),
    ],
)
def test_auto_takes_bf16_where_the_cpu_is_faster_in_it(monkeypatch, vendor, flags, expected):
    monkeypatch.setattr(device, "_cpu", lambda: (vendor, flags))
    monkeypatch.setattr(device, "TORCH_RELEASE", (2, 4))
    assert choose_precision("auto", CPU) == expected
    assert choose_precision("fp32", CPU) is None
    assert choose_precision("bf16", CPU) == torch.bfloat16


def test_the_cpu_is_read_from_proc_cpuinfo(monkeypatch, tmp_path):
    said = tmp_path / "cpuinfo"
    said.write_text("processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu amx_bf16\n\nprocessor\t: 1\n")
    monkeypatch.setattr(device, "Path", lambda _: said)
    assert device._cpu() == ("GenuineIntel", {"fpu", "amx_bf16"})
    said.unlink()
    assert device._cpu() == ("", set())


def test_auto_is_fp32_on_a_cpu_before_torch_2(monkeypatch):
    monkeypatch.setattr(device, "_cpu", lambda: ("GenuineIntel", {"amx_bf16"}))
    monkeypatch.setattr(device, "TORCH_RELEASE", (1, 10))
    assert choose_precision("auto", CPU) is None


def test_features_are_float32_and_unit_in_any_precision():
    torch.manual_seed(0)
    network = models.build("resnet18", 16, "small", 16)
    images = torch.randn(4, 3, 16, 16)
    plain, low = Embedder(network, CPU), Embedder(network, CPU, torch.bfloat16)
    for embedder in (plain, low):
        embedder.train(False)
        with torch.no_grad():
            features = embedder(images)
        assert features.dtype == torch.float32
        assert features.norm(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-5)
    with torch.no_grad():
        cosine = (plain(images) * low(images)).sum(dim=1)
    assert cosine.min() > 0.99  # rounded to 8 bits of mantissa, not another network
    assert (plain(images) != low(images)).any()


def test_the_memory_format_changes_no_result():
    torch.manual_seed(0)
    network = models.build("resnet18", 16, "small", 16).eval()
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        before = network(images)
        torch.testing.assert_close(Embedder(network, CPU)(images), before, atol=1e-5, rtol=1e-4)


def test_the_cpu_can_always_be_chosen():
    assert choose_device("cpu") == CPU


def test_a_missing_gpu_is_an_error_that_lists_what_there_is(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Card {index}")
    assert choose_device("auto") == torch.device("cuda", 0)
    assert choose_device("1") == torch.device("cuda", 1)
    with pytest.raises(UserError, match=r"--gpus 2: .*this machine has: cpu, 0 \(Card 0\), 1 \(Card 1\)"):
        choose_device("2")


def test_each_process_of_a_machine_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "Card")
    assert [choose_device("auto", rank, 2).index for rank in range(2)] == [0, 1]
    assert [choose_device("2,0", rank, 2).index for rank in range(2)] == [2, 0]
    assert choose_device("cpu", 1, 2) == CPU
    for gpus, processes in (("0,1", 1), ("0", 2), ("auto", 4)):
        with pytest.raises(UserError, match=f"--gpus {gpus}: {processes} process.* need"):
            choose_device(gpus, 0, processes)


FAULTS = """
import resource, sys, torch
from lib.runtime.memory import keep_freed_memory
if sys.argv[1] == "keep" and not keep_freed_memory():
    print(-1); sys.exit()
def work():
    for _ in range(20):
        torch.ones(16_000_000)  # beyond what malloc keeps by itself
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_freed_memory_is_reused_without_page_faults():
    def faults(way):
        return int(call(way, program=("-c", FAULTS))[1])

    kept = faults("keep")
    if kept == -1:
        pytest.skip("another C library than glibc")
    assert kept < 100 < faults("give back")


def test_out_of_memory_errors_are_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**50)
    assert is_out_of_memory(error.value)
    with pytest.raises(MemoryError) as error:
        bytearray(2**60)
    assert is_out_of_memory(error.value)
    assert is_out_of_memory(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB (GPU 0; 79.15 GiB in all)"))
    assert not is_out_of_memory(RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"))
    assert physical_memory() > 2**28
