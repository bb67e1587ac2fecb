"""A study's files to its series, each usable or with the reason why not, and the one that is used."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retroln.endings import DICOM, has_ending
from retroln.errors import InputError
from retroln.imaging.dicom.choice import Choice, SeriesFacts, asked_for, choose, find
from retroln.imaging.dicom.decoding import require_decodable
from retroln.imaging.dicom.describe import describe
from retroln.imaging.dicom.extras import (
    has_own_frames_of_reference,
    is_no_slice,
    left_out,
    oddities,
    without_extras,
)
from retroln.imaging.dicom.headers import (
    CT,
    DIRECTORY,
    SECONDARY_CAPTURE,
    Instance,
    own_words,
    read_instance,
    seems_dicom,
    truncated,
)
from retroln.imaging.dicom.pixels import read_volume
from retroln.imaging.dicom.planes import planes_of
from retroln.imaging.dicom.stack import Stack, stack
from retroln.imaging.dicom.woven import require_one_acquisition
from retroln.imaging.volume import Volume
from retroln.settings import SeriesRule

_NO_CANDIDATE = ("wrong_modality", "secondary_capture", "localizer")
_MODALITIES = frozenset(
    ("MR", "PT", "NM", "US", "CR", "DX", "XA", "MG", "OT", "SR", "PR", "KO", "SEG", "REG", "DOC")
) | {"RTSTRUCT", "RTPLAN", "RTDOSE", "RTIMAGE"}


@dataclass(frozen=True, eq=False)
class Series:
    """The objects under one SeriesInstanceUID.

    Attributes:
        instances: without the harmless extras among them, unless nothing else is there.
        made: its slices as one stack, None if they cannot be one.
        facts: what the rule of choice looks at; with `made`.
        problem: why it cannot be used; without `made`.
        remarks: what was left out, or taken although it is odd.
    """

    instances: tuple[Instance, ...]
    made: Stack | None = None
    facts: SeriesFacts | None = None
    problem: InputError | None = None
    remarks: tuple[str, ...] = ()

    @property
    def uid(self) -> str:
        """SeriesInstanceUID, "" where the objects have none."""
        return self.instances[0].series_uid

    @property
    def number(self) -> int | None:
        """SeriesNumber."""
        return self.instances[0].whole("SeriesNumber")

    def require_usable(self) -> Stack:
        """The stack. Raises the series' `problem`."""
        if self.made is None:
            assert self.problem is not None
            raise self.problem
        return self.made

    def volume(self) -> Volume:
        """The voxels in HU. Raises `problem`, and as `read_volume`."""
        return read_volume(self.require_usable())


@dataclass(frozen=True, eq=False)
class Study:
    """What a delivered folder holds.

    Attributes:
        series: in the order of their numbers.
        patient_ids: PatientIDs of all objects that have one, as `headers.patient_id` spells them. Never
            stored.
        remarks: on the files that are no part of a series.
    """

    series: tuple[Series, ...]
    patient_ids: frozenset[str]
    remarks: tuple[str, ...] = ()


def open_study(paths: Iterable[Path]) -> Study:
    """Read the headers of all files and stack each series.

    Files that are no DICOM (a viewer, a text) are left out with a remark unless their name ends in .dcm, or
    they begin like a DICOM file whose first bytes are damaged, or they are empty and their name does not say
    what else they were.

    Raises:
        InputError: `not_dicom` (no DICOM file at all, or a .dcm that is none), `truncated`.
    """
    groups: dict[str, list[Instance]] = {}
    others = 0
    for path in sorted(paths):
        if not is_candidate(path):
            others += 1
            continue
        with own_words(path):
            instance = read_instance(path)
        if instance.sop_class != DIRECTORY:
            groups.setdefault(instance.series_uid, []).append(instance)
    if not groups:
        raise InputError(
            "no DICOM file in the delivery",
            reason="not_dicom",
            expected="a study's DICOM files",
            got="none that has DICM at byte 128",
            fix="export the study again as DICOM files",
        )
    series = sorted((_series(group) for group in groups.values()), key=_place)
    ids = {instance.patient_id for group in groups.values() for instance in group}
    return Study(tuple(series), frozenset(ids - {""}), left_out("files that are no DICOM", others))


def pick(
    study: Study, rule: SeriesRule, *, wanted: str = "", drawn_on: Collection[str] = ()
) -> tuple[Series, Choice]:
    """The series to use: the one asked for, else the one a mask was drawn on, else by the rule.

    Args:
        wanted: a SeriesInstanceUID or a series number, "" for none.
        drawn_on: SeriesInstanceUIDs that the delivered mask refers to.

    Raises:
        InputError: `series_not_found`, or why the series, or every series, cannot be used.
    """
    by_uid = {one.uid: one for one in study.series}
    facts = [one.facts for one in study.series if one.facts is not None]
    uid = find(wanted, [(one.uid, one.number) for one in study.series]) if wanted else ""
    why = "named in cases.csv" if uid else "the mask was drawn on it"
    uid = uid or next((one.uid for one in study.series if one.uid and one.uid in drawn_on), "")
    if uid:
        by_uid[uid].require_usable()
        choice = asked_for(facts, uid, why)
    elif facts:
        choice = choose(facts, rule)
    else:
        raise _most_telling(study.series)
    refused = {one.uid: one.problem.reason for one in study.series if one.problem is not None}
    return by_uid[choice.chosen.key], Choice(choice.chosen, choice.why, choice.rejected | refused)


def is_candidate(path: Path) -> bool:
    """Whether a file of a study is DICOM, or says that it is; another is left out.

    Raises:
        InputError: `truncated`, it is empty and may have been a slice.
    """
    if path.stat().st_size == 0:
        if is_no_slice(path.name):
            return False
        raise truncated(path, "an empty file")
    return seems_dicom(path) or has_ending(path.name, DICOM)


def _series(instances: Sequence[Instance]) -> Series:
    kept, remarks = without_extras(instances)
    try:
        with own_words(kept[0].path):
            made = _examine(kept)
            remarks = (*remarks, *oddities(kept, made.planes))
            return Series(kept, made, describe(kept, made), remarks=remarks)
    except InputError as problem:
        return Series(kept, problem=problem, remarks=remarks)


def _examine(instances: Sequence[Instance]) -> Stack:
    for instance in instances:
        _require_ct(instance)
        require_decodable(instance.transfer_syntax, instance.path)
    _require_alike(instances)
    made = stack([plane for instance in instances for plane in planes_of(instance)])
    require_one_acquisition(made.planes, instances)
    return made


def _require_alike(instances: Sequence[Instance]) -> None:
    """A series has one frame of reference (PS3.3 A.1.4): positions in two of them cannot be compared.

    Anonymising may give each object one of its own, which says nothing; that they lie on one even grid does.
    """
    frames_of_reference = {instance.frame_of_reference for instance in instances}
    if has_own_frames_of_reference(instances):
        frames_of_reference = set()
    for what, values in (
        ("frames of reference", frames_of_reference),
        ("kinds of stored values", {instance.whole("PixelRepresentation") for instance in instances}),
    ):
        if len(values) > 1:
            raise InputError(
                f"the series mixes slices of different {what}",
                reason="mixed_series",
                expected="all alike",
                got=f"{len(values)} kinds in {len(instances)} objects",
                fix="deliver each kind as a series of its own",
            )


def _require_ct(instance: Instance) -> None:
    modality = instance.text("Modality").upper()
    if instance.sop_class.startswith(SECONDARY_CAPTURE):
        raise _no_ct(
            instance, "a secondary capture: a picture, no CT values", "secondary_capture", "secondary capture"
        )
    if modality != "CT" or instance.sop_class not in CT:
        other = "no Modality in the header" if not modality else "another kind of object"
        got = modality if modality in _MODALITIES else other
        raise _no_ct(instance, "not a CT series", "wrong_modality", got)
    if "LOCALIZER" in instance.image_type:
        raise _no_ct(instance, "a localizer (scout), no slices", "localizer", "ImageType LOCALIZER")


def _no_ct(instance: Instance, what: str, reason: str, got: str) -> InputError:
    fix = "deliver the original axial CT series"
    return InputError(what, reason=reason, file=instance.path, expected="CT images", got=got, fix=fix)


def _most_telling(series: Sequence[Series]) -> InputError:
    """Of several refusals that of the series most likely meant: slices of CT, then the largest."""
    problems = [(one.problem, len(one.instances)) for one in series if one.problem is not None]
    ranked = sorted(problems, key=lambda pair: (pair[0].reason in _NO_CANDIDATE, -pair[1]))
    first, others = ranked[0][0], [problem.reason for problem, _ in ranked[1:]]
    if not others:
        return first
    return type(first)(
        first.what,
        reason=first.reason,
        file=first.file,
        expected=first.expected,
        got=f"{first.got}; {len(others)} other series: {', '.join(sorted(set(others)))}",
        fix=first.fix,
    )


def _place(series: Series) -> tuple[bool, int, str]:
    return series.number is None, series.number or 0, series.uid
