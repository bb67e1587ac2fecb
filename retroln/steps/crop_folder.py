"""Crop a folder: the work of `retroln crop` on every case of it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retroln.settings import Hu, LabelScheme, RoiSpec
from retroln.steps.files import crop_files
from retroln.steps.folder_listing import FolderCase, Listing, list_cts, require_apart, with_part
from retroln.steps.folders import Result
from retroln.steps.words import read_words

_RECIPE = 2  # goes up when the same files and options give another crop than before
_FACTS = ("accepted", "anchored", "box_voxel", "clamped_sides", "findings", "rung", "truncated")
_WORDS = "words"


@dataclass(frozen=True)
class CropTool:
    """What `retroln.steps.folders.run_folder` does with each case; see `crop_files` for the options."""

    output_dir: Path
    label_ids: LabelScheme = "totalseg-v2"
    normalize: bool = True
    hu: Hu = field(default_factory=Hu)
    spec: RoiSpec = field(default_factory=RoiSpec)

    @property
    def command(self) -> str:
        """Name of the command."""
        return "crop"

    def list_cases(
        self,
        input_dir: Path,
        vertebrae_dir: Path,
        mask_dir: Path | None = None,
        pattern: str = "*",
        accepted: Path | None = None,
    ) -> Listing:
        """Every CT of a folder with its vertebrae and, when masks are asked for, its mask.

        Args:
            accepted: words of people (`words.read_words`): these cases' landmarks count as labelled.

        Raises:
            NotFoundError: no such folder, or no CT in it.
            UserError: the results would go where the input comes from, or `accepted` cannot be used.
        """
        others = [folder for folder in (vertebrae_dir, mask_dir) if folder]
        require_apart(self.output_dir, input_dir, *others, nested="/" in pattern)
        listing = with_part(list_cts(input_dir, pattern), "vertebrae", vertebrae_dir, level_folders=True)
        listing = with_part(listing, "mask", mask_dir) if mask_dir else listing
        return _with_words(listing, accepted) if accepted else listing

    def options(self) -> dict[str, Any]:
        """All that decides a crop beside the case's files."""
        return {
            "recipe": _RECIPE,
            "label_ids": self.label_ids,
            "hu_window": [self.hu.low, self.hu.high, *self.hu.added()] if self.normalize else None,
            "spec": self.spec.recorded(),
        }

    def work(self, case: FolderCase) -> Result:
        """Crop one case.

        Raises:
            InputError: unusable or unfitting input.
        """
        report = crop_files(
            case.parts["ct"],
            case.parts["vertebrae"],
            self.output_dir,
            mask=case.parts.get("mask"),
            label_ids=self.label_ids,
            normalize=self.normalize,
            hu=self.hu,
            case_id=case.case_id,
            spec=self.spec,
            words=read_words(case.parts[_WORDS])[case.case_id] if _WORDS in case.parts else None,
        )
        inside = report.record["containment"]
        nodes = {name: inside[name] for name in ("inside_voxels", "total_voxels")} if inside else None
        facts = {name: report.record[name] for name in _FACTS} | {"node_voxels": nodes}
        return Result(tuple(path for path in (report.ct, report.mask, report.roi) if path), facts)


def _with_words(listing: Listing, accepted: Path) -> Listing:
    """The listing with the file of words as a part of the cases it names: no other is done anew for it."""
    words = read_words(accepted)
    cases = [
        replace(case, parts={**case.parts, _WORDS: accepted}) if case.case_id in words else case
        for case in listing.cases
    ]
    left = tuple(sorted(words.keys() - {case.case_id for case in listing.cases} - listing.passed_over))
    return replace(listing, cases=tuple(cases), unmatched={**listing.unmatched, _WORDS: left})
