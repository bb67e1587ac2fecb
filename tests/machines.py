"""Machines that tests and benchmarks pretend to run on."""

from __future__ import annotations

AVX2_ALONE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Environment in which torch, oneDNN and MKL use no later instructions, as on a CPU without bf16."""
