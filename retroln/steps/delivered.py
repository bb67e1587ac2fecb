"""What was fetched of a case, read: a CT from NIfTI or from a DICOM study, vertebrae and mask on its grid."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retroln.anatomy.vertebrae import Vertebrae
from retroln.errors import InputError, LandmarkError, NotFoundError, naming
from retroln.imaging import nifti
from retroln.imaging.dicom import archive, deidentify, masks
from retroln.imaging.dicom.choice import Choice
from retroln.imaging.dicom.extras import is_no_slice
from retroln.imaging.dicom.headers import is_dicom, is_doubtful, is_placeholder
from retroln.imaging.dicom.study import Series, Study, open_study, pick
from retroln.imaging.geometry import Grid, require_same_grid
from retroln.imaging.volume import Volume
from retroln.settings import Settings
from retroln.steps.entry import CaseEntry
from retroln.steps.identity import Policy
from retroln.storage.base import ObjectInfo

_UNPACKED = "unpacked"


@dataclass(frozen=True, eq=False)
class Image:
    """The CT of a case.

    Attributes:
        series: the DICOM series that it is, None for NIfTI.
        record: what is kept of the series' headers (`series.json`).
    """

    ct: Volume
    series: Series | None
    record: dict[str, Any] | None


@dataclass(frozen=True, eq=False)
class Delivered:
    """One case in a scratch folder, with a folder per part (`ct`, `vertebrae`, `mask`).

    Attributes:
        objects: what the CT's files are called in messages, by their names in the scratch folder.
        study: the headers of a DICOM CT, None for NIfTI.
    """

    entry: CaseEntry
    folder: Path
    policy: Policy
    objects: dict[str, str]
    study: Study | None

    @classmethod
    def open(cls, entry: CaseEntry, folder: Path, infos: Sequence[ObjectInfo], policy: Policy) -> Delivered:
        """Look at the files of the CT; of DICOM read every header.

        Raises:
            InputError: `no_pseudonym_key`, `several_patients`, and as `unpack` and `open_study`.
        """
        first, *others = sorted((folder / "ct").iterdir())
        named_itself = [info.key for info in infos] == [entry.ct]  # and no folder, which can only be DICOM
        if named_itself and not (archive.is_zip(first) or is_dicom(first)):
            return cls(entry, folder, policy, {}, None)
        policy.for_dicom(entry.ct)
        objects = {
            neutral_name(number, info.key): policy.object_name(entry.ct, info.key)
            for number, info in enumerate(infos, start=1)
        }
        files = [first, *others]
        packed = [path for path in files if not is_no_slice(path.name)]
        if len(packed) == 1 and archive.is_zip(packed[0]):
            with naming(policy.key(entry.ct), instead=True):
                unpacked = archive.unpack(packed[0], folder / _UNPACKED)
            objects = {path.name: f"{policy.key(entry.ct)} (file {path.stem} in it)" for path in unpacked}
            files = [*unpacked, *(path for path in files if path != packed[0])]
        found = cls(entry, folder, policy, objects, None)
        with found.naming_objects():
            study = open_study(files)
        _require_one_patient(study, policy.key(entry.ct))
        return cls(entry, folder, policy, objects, study)

    @property
    def patient_id(self) -> str:
        """The patient by the listing, else the pseudonym of the headers' PatientID.

        Raises:
            InputError: `no_patient_id`, `doubtful_patient_id`.
        """
        if self.entry.patient_id:
            return self.entry.patient_id
        stated = next(iter(self.study.patient_ids), "") if self.study else ""
        _require_telling(stated, self.policy.key(self.entry.ct))
        return self.policy.pseudonyms("DICOM").patient(stated)

    @property
    def persons(self) -> frozenset[str]:
        """Keyed names of the person, the same under whatever patient's id the case comes."""
        ids = self.study.patient_ids if self.study else frozenset()
        named = {self.policy.pseudonyms("DICOM").patient(one) for one in ids if not is_placeholder(one)}
        return frozenset(named | ({self.entry.patient_id} if self.policy.replaced else set()))

    def read_image(self, settings: Settings) -> Image:
        """The CT of the series to use, and the headers that are kept of it. Raises as the parts below."""
        picked = self.choose_series(settings)
        series = picked[0] if picked else None
        ct = self.read_ct(series)
        return Image(ct, series, self.series_record(*picked) if picked else None)

    def choose_series(self, settings: Settings) -> tuple[Series, Choice] | None:
        """The series to use of a study; None for NIfTI.

        Raises:
            InputError: as `pick`; `series_not_found` too if a NIfTI was listed with a series.
        """
        if self.study is None:
            if self.entry.series:
                raise _no_series(self.policy.key(self.entry.ct))
            return None
        drawn_on: frozenset[str] = frozenset()
        if self.entry.mask:
            with naming(self.policy.key(self.entry.mask), instead=True):
                drawn_on = masks.referenced_series(_only_file(self.folder / "mask"))
        with self.naming_objects():
            return pick(self.study, settings.series, wanted=self.entry.series or "", drawn_on=drawn_on)

    def read_ct(self, series: Series | None) -> Volume:
        """The CT in HU. Raises `InputError` as the readers and `check_ct` do."""
        if series is None:
            with naming(self.entry.ct, instead=True):
                ct = nifti.read(_only_file(self.folder / "ct"))
        else:
            with self.naming_objects():
                ct = series.volume()
        nifti.check_ct(ct, self.entry.ct)
        return ct

    def read_mask(self, grid: Grid, series: Series | None, names: str) -> Volume:
        """The node mask on the CT's RAS+ grid.

        Raises:
            InputError: `mask_without_series` for DICOM beside a NIfTI CT, and as the readers.
            GeometryError: `grid_mismatch`.
        """
        path = _only_file(self.folder / "mask")
        with naming(str(self.entry.mask), instead=True):
            if is_dicom(path):
                return masks.read_mask(path, _required(series), names)
            mask = nifti.read_labels(path)
            require_same_grid(grid, mask.grid, what="node mask")
        return mask

    def read_vertebrae(self, grid: Grid) -> Vertebrae:
        """The vertebrae, which must lie on the CT's RAS+ grid. Raises as `Vertebrae.read`."""
        folder, key = self.folder / "vertebrae", str(self.entry.vertebrae)
        single = not key.endswith("/") and (folder / Path(key).name)
        path = single if single and single.exists() else folder
        try:
            with naming(key, instead=True):
                vertebrae = Vertebrae.read(path, self.entry.label_ids)
        except NotFoundError as error:
            others = sum(1 for _ in folder.iterdir())  # their names may be a patient's
            raise LandmarkError(
                "no vertebra level in the folder",
                reason="landmarks_missing",
                file=key,
                expected="files named vertebrae_<LEVEL>.nii.gz",
                got=f"{others} of other names",
                fix="deliver one file per level, or one label map",
            ) from error
        require_same_grid(grid, vertebrae.grid, what="vertebra label map", file=key)
        return vertebrae

    def series_record(self, series: Series, choice: Choice) -> dict[str, Any]:
        """What is kept of the series' headers (`series.json`)."""
        assert self.study is not None
        known_as = deidentify.KnownAs(self.policy.pseudonyms("DICOM"), self.patient_id)
        with self.naming_objects():
            return deidentify.series_record(self.study, series, choice, known_as)

    @contextmanager
    def naming_objects(self) -> Iterator[None]:
        """Let an `InputError` of the CT name the object as delivered instead of its scratch copy."""
        try:
            yield
        except InputError as error:
            name = Path(error.file).name if error.file else ""
            raise error.reworded(file=self.objects.get(name, self.policy.key(self.entry.ct))) from None


def neutral_name(number: int, key: str) -> str:
    """Name of an object's scratch copy; an object's own name may be a patient's."""
    return archive.neutral_name(number, key)


def _only_file(folder: Path) -> Path:
    return next(iter(sorted(folder.iterdir())))


def _require_one_patient(study: Study, file: str) -> None:
    if len(study.patient_ids) > 1:
        raise InputError(
            "the folder holds scans of several patients",
            reason="several_patients",
            file=file,
            expected="one PatientID in every file",
            got=f"{len(study.patient_ids)} of them",
            fix="deliver each patient in a folder of its own",
        )


def _require_telling(patient_id: str, file: str) -> None:
    """Raise unless a PatientID of the headers says whose a scan is; no message repeats it."""
    if is_doubtful(patient_id):
        raise InputError(
            "PatientID does not say for sure whose scan this is",
            reason="doubtful_patient_id",
            file=file,
            expected="one value, in the character set that the header declares",
            got="several values" if "\\" in patient_id else "bytes that this character set cannot hold",
            fix="export it with the right SpecificCharacterSet and one PatientID, put the case into a"
            " patient's folder, or list it in cases.csv",
        )
    if is_placeholder(patient_id):
        raise InputError(
            "nothing says whose scan this is",
            reason="no_patient_id",
            file=file,
            expected="a patient id in the listing, or PatientID in the DICOM headers",
            got="a PatientID that names nobody" if patient_id else "neither",
            fix="put the case into a patient's folder, or list it in cases.csv",
        )


def _no_series(file: str) -> InputError:
    return InputError(
        "a series was named for a CT that is no DICOM",
        reason="series_not_found",
        file=file,
        expected="a DICOM study, or an empty column series",
        got="a NIfTI file",
        fix="correct the column series of cases.csv",
    )


def _required(series: Series | None) -> Series:
    if series is None:
        raise InputError(
            "a DICOM mask beside a CT that is no DICOM",
            reason="mask_without_series",
            expected="the DICOM series that the mask was drawn on, or a NIfTI mask",
            got="a NIfTI CT",
            fix="deliver CT and mask both as DICOM or both as NIfTI",
        )
    return series
