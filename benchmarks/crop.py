"""Crop of one 512x512x240 CT with six per-level files and a mask: RetroLN beside plain nibabel.

    python -m benchmarks.crop [--rounds 3] [--output results.json]

Both sides do the same work in the same run: find the region from T12-L5, scale to 0..1, cut CT and mask
out, write .nii.gz. The plain side is what most scripts of the field do, the predecessor's included: every
file through `get_fdata()` (float64), the whole volume normalised, then cropped, `nibabel.save`. Each
figure is the best of the rounds; each process is new, and its peak memory is the kernel's ru_maxrss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LEVELS = ("T12", "L1", "L2", "L3", "L4", "L5")
SHAPE = (512, 512, 240)
SPACING_MM = (0.8, 0.8, 2.0)
_HALF_WIDTH = {"T12": 20}  # voxels; transverse processes begin at L1
_ITSELF = (sys.executable, "-m", "benchmarks.crop")


def make_case(folder: Path) -> None:
    """A body of noise with six blocks for vertebrae and a few spheres for nodes."""
    import nibabel as nib
    import numpy as np

    rng = np.random.default_rng(600)
    x, y = np.ogrid[: SHAPE[0], : SHAPE[1]]
    body = ((x - 256) / 220) ** 2 + ((y - 256) / 160) ** 2 < 1
    noise = rng.normal(40, 10, SHAPE).astype(np.int16)
    ct = np.where(body[:, :, None], noise, np.int16(-1000)).astype(np.int16)
    affine = np.diag([*SPACING_MM, 1.0])
    (folder / "vertebrae").mkdir()
    for i, level in enumerate(LEVELS):
        bottom = 195 - 17 * i
        half = _HALF_WIDTH.get(level, 28)
        block = (slice(256 - half, 256 + half), slice(120, 190), slice(bottom, bottom + 14))
        ct[block] = 300
        mask = np.zeros(SHAPE, np.uint8)
        mask[block] = 1
        nib.save(nib.Nifti1Image(mask, affine), folder / "vertebrae" / f"vertebrae_{level}.nii.gz")
    nodes = np.zeros(SHAPE, np.uint8)
    nodes[250:262, 200:212, 150:156] = 1
    nib.save(nib.Nifti1Image(nodes, affine), folder / "mask.nii.gz")
    nib.save(nib.Nifti1Image(ct, affine), folder / "ct.nii.gz")


def plain_crop(case: Path, output: Path) -> None:
    """The plain way, with the region of docs/reference/region.md."""
    import nibabel as nib
    import numpy as np

    image = nib.load(case / "ct.nii.gz")
    ct = image.get_fdata()
    mask = nib.load(case / "mask.nii.gz").get_fdata()
    spans = {}
    for level in LEVELS:
        vertebra = nib.load(case / "vertebrae" / f"vertebrae_{level}.nii.gz").get_fdata()
        spans[level] = np.array(np.where(vertebra > 0))
    l2 = spans["L2"]
    lo, hi = l2[2].min(), l2[2].max()
    slices = range(lo + int(0.25 * (hi - lo)), lo + int(0.75 * (hi - lo)) + 1)
    margin = np.median([l2[1][l2[2] == k].max() for k in slices])
    centre = np.median([l2[0][l2[2] == k].mean() for k in slices])
    sx, sy = SPACING_MM[:2]
    x0, x1 = int(np.ceil(centre - 75 / sx - 0.5)), int(np.floor(centre + 75 / sx + 0.5)) + 1
    y0, y1 = int(np.ceil(margin - 30 / sy - 0.5)), int(np.floor(margin + 150 / sy + 0.5)) + 1
    z0, z1 = min(s[2].min() for s in spans.values()), max(s[2].max() for s in spans.values()) + 1
    scaled = (np.clip(ct, -1000, 400) + 1000) / 1400
    affine = image.affine.copy()
    affine[:3, 3] = (image.affine @ [x0, y0, z0, 1])[:3]
    output.mkdir(exist_ok=True)
    box = (slice(x0, x1), slice(y0, y1), slice(z0, z1))
    nib.save(nib.Nifti1Image(scaled[box].astype(np.float32), affine), output / "ct_ct.nii.gz")
    nib.save(nib.Nifti1Image(mask[box].astype(np.uint8), affine), output / "ct_mask.nii.gz")


def our_crop(case: Path, output: Path) -> None:
    """The same by RetroLN's library."""
    from retroln.steps.files import crop_files

    crop_files(case / "ct.nii.gz", case / "vertebrae", output, mask=case / "mask.nii.gz")


def in_process_s(side: str, case: Path, output: Path, rounds: int) -> float:
    """Best seconds of one call after a first one that imports everything."""
    crop = plain_crop if side == "plain" else our_crop
    crop(case, output)
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        crop(case, output)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def command(side: str, case: Path, output: Path) -> list[str]:
    """The command line a person would type."""
    if side == "plain":
        return [*_ITSELF, "child", "plain", str(case), str(output)]
    files = ["--ct", case / "ct.nii.gz", "--vertebrae", case / "vertebrae", "--mask", case / "mask.nii.gz"]
    program = [sys.executable, "-m", "retroln.cli", "crop"]
    return [*program, *map(str, files), "--output-dir", str(output)]


def run_process(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, processor seconds and peak memory (MiB) of one process."""
    start = time.perf_counter()
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{arguments} ended with {process.returncode}")
    wall_s = time.perf_counter() - start
    return wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def measure(side: str, case: Path, output: Path, rounds: int) -> dict[str, float]:
    """Figures of one side."""
    runs = [run_process(command(side, case, output)) for _ in range(rounds)]
    child = [*_ITSELF, "time", side, str(case), str(output), str(rounds)]
    inside = subprocess.run(child, check=True, capture_output=True, text=True).stdout
    return {
        "in_process_s": round(float(inside), 3),
        "command_s": round(min(wall_s for wall_s, _, _ in runs), 3),
        "command_cpu_s": round(min(cpu_s for _, cpu_s, _ in runs), 3),
        "peak_mib": round(max(mib for _, _, mib in runs), 1),
    }


def require_equal(ours: Path, plain: Path) -> None:
    """The two sides must have written the same voxels in the same place."""
    import nibabel as nib
    import numpy as np

    for name in ("ct_ct.nii.gz", "ct_mask.nii.gz"):
        a, b = nib.load(ours / name), nib.load(plain / name)
        np.testing.assert_allclose(a.affine, b.affine, atol=1e-3)
        np.testing.assert_allclose(np.asanyarray(a.dataobj), np.asanyarray(b.dataobj), atol=1e-6)


def benchmark(rounds: int) -> dict[str, dict[str, float]]:
    """Both sides and their ratios, plain over ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run([*_ITSELF, "make", name], check=True)
        found = {side: measure(side, folder, folder / side, rounds) for side in ("plain", "retroln")}
        require_equal(folder / "retroln", folder / "plain")
    found["ratio"] = {key: round(found["plain"][key] / found["retroln"][key], 2) for key in found["plain"]}
    return found


def main() -> None:
    """Child modes first: they keep each measured process free of the others' memory."""
    if sys.argv[1:2] == ["make"]:
        make_case(Path(sys.argv[2]))
    elif sys.argv[1:2] == ["child"]:
        plain_crop(Path(sys.argv[3]), Path(sys.argv[4]))
    elif sys.argv[1:2] == ["time"]:
        side, case, output, rounds = sys.argv[2:6]
        print(in_process_s(side, Path(case), Path(output), int(rounds)))
    else:
        parser = argparse.ArgumentParser(description=__doc__)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--output", type=Path)
        arguments = parser.parse_args()
        text = json.dumps(benchmark(arguments.rounds), indent=2)
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
