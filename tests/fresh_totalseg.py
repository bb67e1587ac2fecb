"""What TotalSegmentator's own function makes of a CT in a process of its own, as a person would call it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FULL = [f"vertebrae_{level}" for level in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11")]
_OPTIONS: dict[str, dict[str, Any]] = {"fast": {"fast": True}, "full": {"roi_subset": _FULL}}
_SPINE = range(26, 34)  # S1 to T11
_SCRIPT = """
import json, sys
from pathlib import Path
import nibabel as nib
from totalsegmentator.python_api import totalsegmentator
if __name__ == "__main__":
    for target, options in json.loads(sys.argv[2]).items():
        made = totalsegmentator(Path(sys.argv[1]), None, ml=True, device="cpu", quiet=True, **options)
        nib.save(made, target)
"""


def home_with(networks: Path, folder: Path) -> Path:
    """A home for TotalSegmentator, below `folder`, that has these networks and needs no download."""
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS

    home = folder / "home"
    results = home / "nnunet" / "results"
    shutil.copytree(networks, results)
    for task in range(291, 296):  # it asks for folders of parts that a subset does not load
        (results / TASK_ID_WEIGHTS_CONFIGS[task]["foldername"]).mkdir(exist_ok=True)
    config = {"totalseg_id": "t", "send_usage_stats": False, "prediction_counter": 0}
    (home / "config.json").write_text(json.dumps(config))
    (home / "fresh.py").write_text(_SCRIPT)
    return home


def label(ct: Path, home: Path, **targets: Path) -> None:
    """Write a label map for each quality (`fast`, `full`) by one process; `full` holds T11 to S1 alone."""
    wanted = {str(target): _OPTIONS[quality] for quality, target in targets.items()}
    subprocess.run(
        [sys.executable, "-W", "ignore", str(home / "fresh.py"), str(ct), json.dumps(wanted)],
        env={**os.environ, "TOTALSEG_HOME_DIR": str(home)},
        check=True,
        capture_output=True,
        timeout=600,
    )


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> dict[int, float]:
    """Dice of every label that either map holds."""
    labels = (set(np.unique(first).tolist()) | set(np.unique(second).tolist())) - {0}
    shared = {n: ((first == n) & (second == n)).sum() for n in labels}
    return {n: float(2 * shared[n] / ((first == n).sum() + (second == n).sum())) for n in labels}


def spine_overlaps(first: NDArray[Any], second: NDArray[Any]) -> dict[int, float]:
    """The same of S1 to T11 alone."""
    return {n: dice for n, dice in overlaps(first, second).items() if n in _SPINE}
