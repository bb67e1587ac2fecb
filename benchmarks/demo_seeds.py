"""The demo's training over several seeds, in every arithmetic of this CPU, on the demo's own cohort.

    python -m benchmarks.demo_seeds [--seeds 600 601 602] [--output results.json]

`make demo` draws and prepares the cohort; here its settings and budget are trained again for each seed (which
splits what is not locked for testing, and starts the network otherwise), and each model is scored on the
same locked phantom patients. float32 runs as on a CPU with AVX2 alone, whose instructions are all that torch
and oneDNN may use then. bf16 is left out where the CPU is no faster in it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.machines import AVX2_ALONE

_SHOWN = ("sensitivity_ge10mm", "fp_per_volume", "dice_mean")


def measure(seeds: list[int]) -> dict[str, Any]:
    """Figures of every seed in every arithmetic, and the machine that each ran on."""
    from retroln.nnunet.arithmetic import choose

    arithmetics = {"float32": AVX2_ALONE, **({"bf16": {}} if choose().arithmetic == "bf16" else {})}
    return {name: [_in_child(name, seed, limits) for seed in seeds] for name, limits in arithmetics.items()}


def _in_child(arithmetic: str, seed: int, limits: dict[str, str]) -> dict[str, Any]:
    """A process of its own, since instructions are chosen when one starts."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.demo_seeds", "child", arithmetic, str(seed)]
    done = subprocess.run(
        command, env={**os.environ, **limits}, check=True, stdout=subprocess.PIPE, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def _train(arithmetic: Any, seed: int) -> dict[str, Any]:
    from flows.demo import STAND_IN, demo_settings, demo_spec
    from retroln.nnunet.arithmetic import Machine
    from retroln.steps import promote, training
    from retroln.steps.workspace import open_workspace

    machine, own = Machine.here(arithmetic), demo_settings()
    settings = own.model_copy(
        update={
            "arithmetic": arithmetic,
            "experiment": "retroln-demo-seeds",
            "model_name": f"retroln-demo-{arithmetic}",
            "work_dir": own.work_dir / arithmetic,  # what was trained in another arithmetic is not taken over
        }
    )
    spec = demo_spec().model_copy(update={"seed": seed, "stand_in": f"{STAND_IN} ({arithmetic})"})
    started = time.monotonic()
    candidate = training.train_candidate(settings, spec)
    seconds = time.monotonic() - started
    summary = json.loads(open_workspace(settings).registry.tags(candidate.version)[promote.SUMMARY_TAG])
    figures = {name: round(summary[name], 3) for name in _SHOWN}
    return {"seed": seed, "train_and_score_s": round(seconds, 1), **figures, "machine": asdict(machine)}


def main() -> None:
    """Print the figures as JSON."""
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(_train(sys.argv[2], int(sys.argv[3]))))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[600, 601, 602])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    found = measure(options.seeds)
    text = json.dumps(found, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
