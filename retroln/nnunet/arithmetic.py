"""Which arithmetic a network runs in on this machine's CPU: float32, or bf16 where that is faster.

A CPU without bf16 instructions emulates them: one convolution then takes a hundred times as long. What the
CPU says of itself is not enough, since flags can lie under emulation, so both are timed, once per machine.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from retroln.files import cache_folder, sha256_json, write_json
from retroln.machine import cores
from retroln.settings import AskedArithmetic

Arithmetic = Literal["float32", "bf16"]

_PAYS = 0.9  # bf16 is taken if it needs at most this share of float32's time
_REPEATS = 5
_HOPELESS = 10.0  # times float32's time; no further run is needed then
# Torch gives float32 to oneDNN from a batch of two on, as in training, and a single patch to a convolution of
# its own, five times slower. Emulated bf16 takes half a second for this, float32 some milliseconds.
_BATCH, _CHANNELS, _PATCH = 2, 16, (16, 32, 32)
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}  # as Linux names them for x86 and ARM
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


@dataclass(frozen=True)
class Timing:
    """Seconds of one small convolution, forwards and backwards."""

    float32_s: float
    bf16_s: float

    @property
    def bf16_pays(self) -> bool:
        """Whether bf16 is faster by more than the noise of such a timing."""
        return self.bf16_s <= _PAYS * self.float32_s


@dataclass(frozen=True)
class Choice:
    """An arithmetic, and in words why it was taken."""

    arithmetic: Arithmetic
    why: str
    emulated: bool = False
    """bf16 was asked for on a CPU without it; it takes many times as long."""


class Probe(Protocol):
    """What has to be known of a CPU."""

    def has_bf16(self) -> bool:
        """Whether the CPU says that it has instructions for bf16."""
        ...

    def identity(self) -> dict[str, Any]:
        """Plain values that change when a timing would: the CPU, what of it may be used, the software."""
        ...

    def measure(self) -> Timing:
        """Time both, in a few seconds whatever the CPU."""
        ...


def choose(asked: AskedArithmetic = "auto", probe: Probe | None = None) -> Choice:
    """The arithmetic for networks on this CPU.

    Args:
        asked: a person's wish, which holds whatever the CPU can; `auto` takes bf16 if the CPU has
            instructions for it and is faster with them.
        probe: what to ask; this machine's CPU by default.
    """
    cpu = probe or ThisCpu()
    if asked == "bf16" and not cpu.has_bf16():
        return Choice(
            "bf16", "RETROLN_ARITHMETIC asks for it; the CPU has none and emulates it", emulated=True
        )
    if asked != "auto":
        return Choice(asked, "RETROLN_ARITHMETIC asks for it")
    if not cpu.has_bf16():
        return Choice("float32", "the CPU has no instructions for bf16")
    timing = _timing(cpu)
    bf16_ms, float32_ms = 1e3 * timing.bf16_s, 1e3 * timing.float32_s
    why = f"a convolution takes {bf16_ms:.1f} ms in bf16, {float32_ms:.1f} ms in float32"
    return Choice("bf16" if timing.bf16_pays else "float32", why)


def of_network(profile: str, device: str, asked: AskedArithmetic = "auto") -> str:
    """What a network computes in.

    Args:
        profile: of its plans. Unless a person asks otherwise, `demo` takes what the CPU is good at and every
            other profile float32, as it was published.
        device: torch's type of device; on a GPU it is nnU-Net's own mix of float16 and float32.
        asked: a person's wish for networks on a CPU.
    """
    if device != "cpu":
        return "float16"
    return choose(asked if asked != "auto" or profile == "demo" else "float32").arithmetic


class ThisCpu:
    """The CPU that this process runs on, as torch and oneDNN may use it."""

    def has_bf16(self) -> bool:
        """By the CPU's flags and oneDNN, which heeds `ONEDNN_MAX_CPU_ISA` but counts every AVX512 as bf16."""
        import torch

        flags = {word for line in _described(("flags", "Features")) for word in line.split()}
        if not flags & _BF16_FLAGS or not torch.backends.mkldnn.is_available():
            return False
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # torch has no public name for it

    def identity(self) -> dict[str, Any]:
        """Model and flags of the CPU, torch, and what limits both."""
        import torch

        return {
            "cpu": _described(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "limits": [os.environ.get(name) for name in _LIMITS],
            "timed": [_BATCH, _CHANNELS, *_PATCH],
        }

    def measure(self) -> Timing:
        """The shortest of some runs each, on one thread by its own clock: other programs do not count."""
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return _timed()
        finally:
            torch.set_num_threads(threads)


@dataclass(frozen=True)
class Machine:
    """What a time was measured on.

    Attributes:
        cores: that this process may use.
        float32_gflops: of torch's product of two matrices of 2048 x 2048, at its best of three.
        arithmetic: of the demo's network.
    """

    cpu: str
    cores: int
    float32_gflops: float
    arithmetic: str

    @classmethod
    def here(cls, asked: AskedArithmetic = "auto") -> Machine:
        """This machine now; whatever else runs on it slows it."""
        return cls(_name(), cores(), round(_gflops(), 1), choose(asked).arithmetic)

    def __str__(self) -> str:
        return (
            f"{self.cpu}, {self.cores} cores, {self.float32_gflops:.0f} GFLOP/s in float32, {self.arithmetic}"
        )


def _gflops() -> float:
    import torch

    matrix, fastest = torch.ones(2048, 2048), math.inf
    for _ in range(4):  # the first sets threads up
        started = time.perf_counter()
        torch.mm(matrix, matrix)
        fastest = min(fastest, time.perf_counter() - started)
    return 2 * 2048**3 / fastest / 1e9


def _timed() -> Timing:
    import torch

    convolution: Any = torch.nn.Conv3d(_CHANNELS, _CHANNELS, 3, padding=1)
    convolution.to(memory_format=torch.channels_last_3d)
    data = torch.ones(_BATCH, _CHANNELS, *_PATCH).to(memory_format=torch.channels_last_3d)
    shortest = {"float32": math.inf, "bf16": math.inf}
    for _ in range(_REPEATS):
        for arithmetic in shortest:
            started = time.thread_time()
            with autocast(arithmetic):
                convolution(data).float().sum().backward()
            shortest[arithmetic] = min(shortest[arithmetic], time.thread_time() - started)
        if shortest["bf16"] > _HOPELESS * shortest["float32"]:
            break
    return Timing(shortest["float32"], shortest["bf16"])


def autocast(arithmetic: str) -> Any:
    """Torch's context in which a network computes on the CPU in `arithmetic`."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=arithmetic == "bf16")


def _timing(cpu: Probe) -> Timing:
    """From the cache, or measured and kept there; a cache that cannot be written only costs time."""
    file = cache_folder() / "arithmetic" / f"{sha256_json(cpu.identity())[:16]}.json"
    with suppress(OSError, ValueError, TypeError):
        kept = Timing(**json.loads(file.read_bytes()))
        if all(math.isfinite(seconds) and seconds > 0 for seconds in (kept.float32_s, kept.bf16_s)):
            return kept
    timing = cpu.measure()
    with suppress(OSError):
        write_json(file, asdict(timing))
    return timing


def _described(wanted: tuple[str, ...] = ("model name", "flags", "CPU part", "Features")) -> list[str]:
    """The CPU's model and flags as Linux tells them, or what Python knows."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        if found := sorted({line for line in lines if line.startswith(wanted)}):
            return found
    return [f"machine: {platform.machine()} {platform.processor()}".rstrip()]


def _name() -> str:
    return _described(("model name",))[0].split(":", 1)[1].strip()
