"""bf16 where the CPU gains by it, float32 everywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from retroln.nnunet import arithmetic
from retroln.nnunet.arithmetic import Machine, ThisCpu, Timing, autocast, choose, of_network
from retroln.settings import AskedArithmetic
from tests.machines import AVX2_ALONE, AVX512_WITHOUT_BF16

FASTER, SLOWER = Timing(float32_s=0.010, bf16_s=0.004), Timing(float32_s=0.010, bf16_s=1.0)


@dataclass
class Cpu:
    """A CPU that is asked as `ThisCpu` is, and counts how often it is timed."""

    says_bf16: bool
    timing: Timing
    name: str = "a CPU"
    timed: list[str] = field(default_factory=list)

    def has_bf16(self) -> bool:
        return self.says_bf16

    def identity(self) -> dict[str, Any]:
        return {"cpu": self.name}

    def measure(self) -> Timing:
        self.timed.append(self.name)
        return self.timing


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_cpu_without_bf16_takes_float32_and_is_not_even_timed() -> None:
    cpu = Cpu(says_bf16=False, timing=FASTER)
    assert choose("auto", cpu).arithmetic == "float32"
    assert cpu.timed == []


def test_cpu_whose_flags_lie_takes_float32() -> None:
    choice = choose("auto", Cpu(says_bf16=True, timing=SLOWER))
    assert choice.arithmetic == "float32"
    assert choice.why == "a convolution takes 1000.0 ms in bf16, 10.0 ms in float32"


def test_bf16_that_gains_nothing_worth_it_is_not_taken() -> None:
    even = Timing(float32_s=0.010, bf16_s=0.0095)
    assert choose("auto", Cpu(says_bf16=True, timing=even)).arithmetic == "float32"


def test_bf16_is_taken_where_it_is_faster() -> None:
    assert choose("auto", Cpu(says_bf16=True, timing=FASTER)).arithmetic == "bf16"


@pytest.mark.parametrize("asked", ["float32", "bf16"])
def test_a_persons_wish_holds_whatever_the_cpu_can(asked: AskedArithmetic) -> None:
    for cpu in (Cpu(says_bf16=False, timing=SLOWER), Cpu(says_bf16=True, timing=FASTER)):
        assert choose(asked, cpu).arithmetic == asked
        assert cpu.timed == []


def test_bf16_that_is_asked_of_a_cpu_without_it_is_told_to_be_emulated() -> None:
    assert choose("bf16", Cpu(says_bf16=False, timing=SLOWER)).emulated
    assert not choose("bf16", Cpu(says_bf16=True, timing=FASTER)).emulated
    assert not choose("float32", Cpu(says_bf16=False, timing=SLOWER)).emulated


def test_a_machine_is_timed_once_and_another_for_itself() -> None:
    one, other = Cpu(True, FASTER), Cpu(True, SLOWER, name="another CPU")
    assert [choose("auto", one).arithmetic for _ in range(3)] == ["bf16"] * 3
    assert choose("auto", other).arithmetic == "float32"
    assert one.timed + other.timed == ["a CPU", "another CPU"]


def test_a_cache_that_cannot_be_written_or_read_costs_a_timing_and_no_more(cache: Path) -> None:
    (cache / "retroln").write_text("a file where a folder should be")
    cpu = Cpu(True, FASTER)
    assert [choose("auto", cpu).arithmetic for _ in range(2)] == ["bf16"] * 2
    assert len(cpu.timed) == 2


@pytest.mark.parametrize(
    "text",
    [
        '{"float32_s": 1',
        "[]",
        '{"float32_s": null, "bf16_s": null}',
        '{"float32_s": "1", "bf16_s": "1"}',
        '{"float32_s": NaN, "bf16_s": 1}',
        '{"float32_s": 1, "bf16_s": 0}',
    ],
)
def test_a_damaged_cache_is_measured_again(cache: Path, text: str) -> None:
    cpu = Cpu(True, FASTER)
    choose("auto", cpu)
    (kept,) = cache.rglob("*.json")
    kept.write_text(text)
    assert choose("auto", cpu).arithmetic == "bf16"
    assert len(cpu.timed) == 2


def test_this_cpu_is_timed_in_both() -> None:
    timing = ThisCpu().measure()
    assert timing.float32_s > 0 and timing.bf16_s > 0


@pytest.mark.parametrize("call", ["choose().arithmetic", "of_network('demo', 'cpu')"])
@pytest.mark.parametrize("limits", [AVX2_ALONE, AVX512_WITHOUT_BF16], ids=["AVX2", "AVX512"])
def test_a_machine_without_bf16_never_takes_it(limits: dict[str, str], call: str) -> None:
    program = f"from retroln.nnunet.arithmetic import *; print({call})"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env={**os.environ, **limits}, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "float32"


@pytest.mark.parametrize("flags", ["fpu avx2", "avx512f avx512_vnni avx512bw"])
def test_a_cpu_whose_flags_name_no_bf16_has_none(flags: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "_described", lambda wanted=(): [f"flags\t\t: {flags}"])
    assert not ThisCpu().has_bf16()


def test_what_is_timed_is_what_training_computes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    taken, convolve = set(), torch.nn.Conv3d.forward

    def watched(layer: torch.nn.Conv3d, data: torch.Tensor) -> torch.Tensor:
        ones, zeros = [1, 1, 1], [0, 0, 0]
        select: Any = torch._C._select_conv_backend  # type: ignore[attr-defined]
        taken.add(str(select(data, layer.weight, layer.bias, ones, ones, ones, False, zeros, 1)))
        return convolve(layer, data)

    monkeypatch.setattr(torch.nn.Conv3d, "forward", watched)
    ThisCpu().measure()
    assert taken == {str(torch._C._ConvBackend.Mkldnn)}  # type: ignore[attr-defined]


def test_published_networks_stay_in_float32_and_gpus_keep_nnunets_own() -> None:
    assert of_network("reference", "cpu") == "float32"
    assert of_network("reference", "cpu", "bf16") == "bf16"
    assert of_network("demo", "cuda", "bf16") == "float16"


@pytest.mark.parametrize(("arithmetic", "dtype"), [("bf16", "torch.bfloat16"), ("float32", "torch.float32")])
def test_a_network_computes_in_what_was_chosen(arithmetic: str, dtype: str) -> None:
    import torch

    with autocast(arithmetic):
        assert str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype) == dtype


def test_the_machine_is_named_beside_a_time() -> None:
    here = Machine.here("float32")
    assert here.cpu and here.cores >= 1 and here.float32_gflops > 0
    machine = Machine("A CPU", 2, 81.4, "float32")
    assert str(machine) == "A CPU, 2 cores, 81 GFLOP/s in float32, float32"
