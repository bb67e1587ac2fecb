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

from retroln.imaging import nifti
from retroln.imaging.volume import Volume

_FULL = [f"vertebrae_{level}" for level in ("S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11")]
_OPTIONS: dict[str, dict[str, Any]] = {"fast": {"fast": True}, "full": {"roi_subset": _FULL}}
_SCRIPT = """
import json, sys
from pathlib import Path
import nibabel as nib
from totalsegmentator.python_api import totalsegmentator
if __name__ == "__main__":
    for name, options in json.loads(sys.argv[1]).items():
        made = totalsegmentator(Path("ct.nii.gz"), None, ml=True, device="cpu", quiet=True, **options)
        nib.save(made, f"{name}.nii.gz")
"""


def labelled_by_a_fresh_process(ct: Volume, networks: Path, folder: Path, *qualities: str) -> Path:
    """`folder`, with its label map <quality>.nii.gz for each quality in it; `full` holds T11 to S1 alone."""
    from totalsegmentator.map_tasks_config import TASK_ID_WEIGHTS_CONFIGS

    home = folder / "home"
    results = home / "nnunet" / "results"
    shutil.copytree(networks, results)
    for task in range(291, 296):  # it asks for folders of parts that a subset does not load
        (results / TASK_ID_WEIGHTS_CONFIGS[task]["foldername"]).mkdir(exist_ok=True)
    config = {"totalseg_id": "t", "send_usage_stats": False, "prediction_counter": 0}
    (home / "config.json").write_text(json.dumps(config))
    nifti.write_source(folder / "ct.nii.gz", ct)
    (folder / "fresh.py").write_text(_SCRIPT)
    subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "fresh.py",
            json.dumps({name: _OPTIONS[name] for name in qualities}),
        ],
        cwd=folder,
        env={**os.environ, "TOTALSEG_HOME_DIR": str(home)},
        check=True,
        capture_output=True,
        timeout=600,
    )
    return folder


def overlaps(first: NDArray[Any], second: NDArray[Any]) -> dict[int, float]:
    """Dice of every label that either map holds."""
    labels = (set(np.unique(first).tolist()) | set(np.unique(second).tolist())) - {0}
    shared = {n: ((first == n) & (second == n)).sum() for n in labels}
    return {n: float(2 * shared[n] / ((first == n).sum() + (second == n).sum())) for n in labels}
