"""Machines that tests and benchmarks pretend to run on."""

from __future__ import annotations

AVX2_ALONE = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
"""Environment in which torch and oneDNN use no later instructions, as on a CPU without bf16."""
