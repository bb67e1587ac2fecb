"""Machines that tests and benchmarks pretend to run on."""

from __future__ import annotations

AVX2_ALONE = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
"""Environment in which torch, oneDNN and MKL use no later instructions, as on a CPU without bf16."""

AVX512_WITHOUT_BF16 = {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
"""Environment in which oneDNN uses no later instructions than AVX512's first, as on Skylake's servers."""
