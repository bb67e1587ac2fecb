"""Crop a folder: two processes beside one, and RetroLN beside the plain nibabel way, in one run.

    python -m benchmarks.crop_folder [--cases 40] [--rounds 3] [--output results.json]

The cases are that of `benchmarks.crop` (512x512x240) under many ids: hard links, so files come from memory.
Vertebrae come in the two forms that `retroln landmarks` writes. With level files one process reads two
files at a time already, so the second process has less to gain there. Starting a process costs about as
much as a case, so few cases show less than many. The plain way does a few of the cases only; it is compared
by the case. Each figure is the best of the rounds, sides in turn; each command is a new process, and its
memory is that of its largest process (the kernel's ru_maxrss). The outputs of all sides are compared.
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

from benchmarks.crop import LEVELS, make_case, plain_crop, require_equal, run_process

FORMS = ("label_maps", "level_files")
PLAIN_CASES = 3


def make_cohort(root: Path, cases: int) -> None:
    """One case under many ids, its vertebrae in both forms."""
    make_case(root)
    make_label_map(root)
    for number in range(cases):
        name = f"C{number:03}.nii.gz"
        for folder, file in (("ct", "ct"), ("masks", "mask"), ("label_maps", "label_map")):
            (root / folder).mkdir(exist_ok=True)
            os.link(root / f"{file}.nii.gz", root / folder / name)
        levels = root / "level_files" / f"C{number:03}"
        levels.mkdir(parents=True)
        for path in (root / "vertebrae").iterdir():
            os.link(path, levels / path.name)


def make_label_map(root: Path) -> None:
    """The levels of the case in one file, with TotalSegmentator's ids."""
    import nibabel as nib
    import numpy as np

    labels, affine = None, None
    for i, level in enumerate(LEVELS):
        image = nib.load(root / "vertebrae" / f"vertebrae_{level}.nii.gz")
        mask, affine = np.asanyarray(image.dataobj), image.affine
        labels = np.zeros(mask.shape, np.uint8) if labels is None else labels
        labels[mask > 0] = 32 - i
    nib.save(nib.Nifti1Image(labels, affine), root / "label_map.nii.gz")


def plain_folder(root: Path, output: Path) -> None:
    """The plain way, case after case."""
    for number in range(PLAIN_CASES):
        plain_crop(root, output / f"C{number:03}")


def command(root: Path, form: str, output: Path, processes: int) -> list[str]:
    """The command line a person would type."""
    places = {"input-dir": "ct", "vertebrae-dir": form, "mask-dir": "masks"}
    options = [item for name, folder in places.items() for item in (f"--{name}", str(root / folder))]
    program = [sys.executable, "-m", "retroln.cli", "crop", *options]
    return [*program, "--output-dir", str(output), "--processes", str(processes)]


def in_process_s(root: Path, form: str, output: Path, cases: int) -> float:
    """Seconds per case in a process that has imported everything."""
    from retroln.steps.crop_folder import CropTool
    from retroln.steps.folders import run_folder

    listing = CropTool(output).list_cases(root / "ct", root / form, root / "masks")
    run_folder(CropTool(output / "first"), listing, limit=1)
    start = time.perf_counter()
    run_folder(CropTool(output / "all"), listing)
    return (time.perf_counter() - start) / cases


def measure(root: Path, cases: int, rounds: int) -> dict[str, dict[str, float]]:
    """Best wall seconds, processor seconds per case and largest memory, by side."""
    runs: dict[str, list[tuple[float, float, float]]] = {}
    for number in range(rounds):
        output = root / f"round{number}"
        sides = {
            f"{form}_{processes}": command(root, form, output / f"{form}_{processes}", processes)
            for form in FORMS
            for processes in (1, 2)
        }
        sides["plain"] = [sys.executable, "-m", __spec__.name, "plain", str(root), str(output / "plain")]
        for side, arguments in sides.items():
            runs.setdefault(side, []).append(run_process(arguments))
    return {side: _best(found, PLAIN_CASES if side == "plain" else cases) for side, found in runs.items()}


def _best(found: list[tuple[float, float, float]], cases: int) -> dict[str, float]:
    wall_s = min(wall_s for wall_s, _, _ in found)
    return {
        "cases": cases,
        "command_s": round(wall_s, 2),
        "per_case_s": round(wall_s / cases, 3),
        "cpu_per_case_s": round(min(cpu_s for _, cpu_s, _ in found) / cases, 3),
        "peak_mib": round(max(mib for _, _, mib in found), 1),
    }


def again_s(root: Path) -> float:
    """A second run, in which everything is skipped."""
    return round(run_process(command(root, FORMS[0], root / "round0" / f"{FORMS[0]}_1", 1))[0], 2)


def require_same(root: Path) -> None:
    """Every side must have written the same voxels in the same place."""
    first = root / "round0"
    for number in range(PLAIN_CASES):
        case_id = f"C{number:03}"
        for side in (f"{form}_{processes}" for form in FORMS for processes in (1, 2)):
            aside = root / "aside"
            aside.mkdir(exist_ok=True)
            for part in ("ct", "mask"):
                target = aside / f"ct_{part}.nii.gz"
                target.unlink(missing_ok=True)
                os.link(first / side / f"{case_id}_{part}.nii.gz", target)
            require_equal(aside, first / "plain" / case_id)


def benchmark(cases: int, rounds: int) -> dict[str, object]:
    """Every figure, and the ratios."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        subprocess.run([sys.executable, "-m", __spec__.name, "make", name, str(cases)], check=True)
        found = measure(root, cases, rounds)
        require_same(root)
        inside = {form: _in_process(root, form, cases) for form in FORMS}
        again = again_s(root)
    wall = {side: figures["per_case_s"] for side, figures in found.items()}
    return {
        "sides": found,
        "in_process_per_case_s": inside,
        "nothing_left_to_do_s": again,
        "two_processes_over_one": {form: round(wall[f"{form}_1"] / wall[f"{form}_2"], 2) for form in FORMS},
        "plain_over_one_process": round(wall["plain"] / wall["level_files_1"], 2),
        "plain_memory_over_ours": round(found["plain"]["peak_mib"] / found["level_files_1"]["peak_mib"], 2),
    }


def _in_process(root: Path, form: str, cases: int) -> float:
    child = [
        sys.executable,
        "-m",
        __spec__.name,
        "time",
        str(root),
        form,
        str(root / f"in_{form}"),
        str(cases),
    ]
    return round(float(subprocess.run(child, check=True, capture_output=True, text=True).stdout), 3)


def main() -> None:
    """Child modes first: they keep each measured process free of the others' memory."""
    mode, *rest = sys.argv[1:] or [""]
    if mode == "make":
        make_cohort(Path(rest[0]), int(rest[1]))
    elif mode == "plain":
        Path(rest[1]).mkdir(parents=True)
        plain_folder(Path(rest[0]), Path(rest[1]))
    elif mode == "time":
        print(in_process_s(Path(rest[0]), rest[1], Path(rest[2]), int(rest[3])))
    else:
        parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
        parser.add_argument("--cases", type=int, default=40)
        parser.add_argument("--rounds", type=int, default=3)
        parser.add_argument("--output", type=Path)
        arguments = parser.parse_args()
        text = json.dumps(benchmark(arguments.cases, arguments.rounds), indent=2)
        print(text)
        if arguments.output:
            arguments.output.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
