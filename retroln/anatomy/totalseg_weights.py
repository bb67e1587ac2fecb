"""Which networks TotalSegmentator needs, and a bundle of their weights: pinned by one hash.

The table is TotalSegmentator 2.18's own (`map_tasks_config.py`); a test compares the two. Nothing here
imports TotalSegmentator.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retroln.errors import IntegrityError, NotFoundError
from retroln.files import sha256_bytes, sha256_unchanged
from retroln.nnunet.bundle import CHECKPOINT, CONFIGURATION
from retroln.nnunet.model_folder import DATASET_FILE, PLANS_FILE, ModelFolder
from retroln.settings import TotalSegSpec

FAST, ROUGH, VERTEBRAE, RIBS, NUMBERING = 297, 298, 292, 295, 803
MODEL_FILES = (PLANS_FILE, DATASET_FILE, f"fold_0/{CHECKPOINT}")
"""Of each network, relative to its folder."""
PLANS = "nnUNetPlans"
LICENCE = (
    "TotalSegmentator lists task total (291-298) as openly available for any usage under Apache-2.0, and its"
    " registry asks for no licence for vertebrae_pp (803); please cite doi.org/10.1148/ryai.230024"
)


@dataclass(frozen=True)
class Network:
    """One of TotalSegmentator's networks.

    Attributes:
        dataset, trainer: folder names that TotalSegmentator builds its path from.
        labels: how many labels its `dataset.json` names at least, background included.
        use: what it finds, in words.
    """

    task_id: int
    dataset: str
    trainer: str
    labels: int
    use: str

    @property
    def folder(self) -> str:
        """Its model folder, relative to TotalSegmentator's folder of weights."""
        return f"{self.dataset}/{self.trainer}__{PLANS}__{CONFIGURATION}"


_LONG = "nnUNetTrainer_4000epochs_NoMirroring"
_PLAIN = "nnUNetTrainerNoMirroring"
NETWORKS: Mapping[int, Network] = MappingProxyType(
    {
        network.task_id: network
        for network in (
            Network(FAST, "Dataset297_TotalSegmentator_total_3mm_1559subj", _LONG, 118, "total at 3 mm"),
            Network(ROUGH, "Dataset298_TotalSegmentator_total_6mm_1559subj", _LONG, 118, "total at 6 mm"),
            Network(
                VERTEBRAE,
                "Dataset292_TotalSegmentator_part2_vertebrae_1532subj",
                _PLAIN,
                27,
                "vertebrae at 1.5 mm",
            ),
            Network(RIBS, "Dataset295_TotalSegmentator_part5_ribs_1559subj", _PLAIN, 27, "ribs at 1.5 mm"),
            Network(
                NUMBERING,
                "Dataset803_TotalSegmentator_vertebrae_inner_1559subj",
                _PLAIN,
                25,
                "vertebrae_pp at 1.5 mm",
            ),
        )
    }
)


def needed(spec: TotalSegSpec) -> tuple[int, ...]:
    """Ids of the networks that a way of finding vertebrae loads; full needs 297 for its robust cropping."""
    ids = [FAST] if spec.quality == "fast" else [ROUGH, FAST, VERTEBRAE]
    if spec.quality == "full" and spec.ribs:
        ids.append(RIBS)
    return (*ids, NUMBERING) if spec.refine else tuple(ids)


class StoredFile(BaseModel):
    """A file of a bundle."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0)


class Manifest(BaseModel):
    """What a bundle holds; its own hash is the bundle's name, and so pins every byte."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    tasks: tuple[int, ...] = Field(description="ids of the networks that are in it")
    files: dict[str, StoredFile] = Field(description="by path below TotalSegmentator's folder of weights")
    stand_in: str | None = Field(None, description="why these are not TotalSegmentator's own weights")
    licence: str = Field(LICENCE, description="terms under which the weights may be used")

    @property
    def size_bytes(self) -> int:
        """All files together."""
        return sum(file.size_bytes for file in self.files.values())

    def dump(self) -> bytes:
        """The bytes that are stored and hashed."""
        return (self.model_dump_json(indent=1) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes, sha256: str, file: str) -> Manifest:
        """The manifest, if its bytes have the hash that names the bundle and it lists each network whole.

        Raises:
            IntegrityError: they have not, or the content is none of a manifest.
        """
        if (got := sha256_bytes(data)) != sha256:
            raise IntegrityError("manifest is another one", file=file, expected=sha256, got=got, fix=_IMPORT)
        try:
            found = cls.model_validate_json(data)
        except ValidationError as error:
            raise IntegrityError("manifest cannot be read", file=file, got=str(error), fix=_IMPORT) from error
        unknown = [task for task in found.tasks if task not in NETWORKS]
        if unknown or set(found.files) != set(files_of(found.tasks)):
            raise IntegrityError(
                "manifest does not list its networks' files",
                file=file,
                expected=", ".join(files_of(task for task in found.tasks if task in NETWORKS)),
                got=", ".join(sorted(found.files)),
                fix=_IMPORT,
            )
        return found

    def require(self, spec: TotalSegSpec, file: str) -> None:
        """Raise `NotFoundError` unless the bundle holds every network that `spec` needs."""
        missing = [NETWORKS[task] for task in needed(spec) if task not in self.tasks]
        if missing:
            raise NotFoundError(
                "the weights bundle lacks a network",
                file=file,
                expected="; ".join(f"{one.task_id} ({one.dataset}), {one.use}" for one in missing),
                got=", ".join(map(str, self.tasks)),
                fix="import a bundle that holds them all and set RETROLN_TOTALSEG__WEIGHTS to it, or change"
                " RETROLN_TOTALSEG__QUALITY, __RIBS or __REFINE",
            )


def files_of(tasks: Iterable[int]) -> list[str]:
    """Paths of the networks' files below TotalSegmentator's folder of weights."""
    return [f"{NETWORKS[task].folder}/{name}" for task in tasks for name in MODEL_FILES]


@dataclass(frozen=True)
class Weights:
    """A bundle on this machine's disk.

    Attributes:
        sha256: its name.
        folder: holds `Dataset...` folders, as TotalSegmentator wants them.
    """

    sha256: str
    folder: Path
    manifest: Manifest

    def model(self, task_id: int) -> ModelFolder:
        """One network, to be opened. Raises `NotFoundError` if the bundle has no such network."""
        if task_id not in self.manifest.tasks:
            raise NotFoundError(
                f"TotalSegmentator asks for network {task_id}", file=self.folder, got=str(self.manifest.tasks)
            )
        folder = NETWORKS[task_id].folder
        files = tuple((name, self.manifest.files[f"{folder}/{name}"].sha256) for name in MODEL_FILES)
        return ModelFolder(self.folder / folder, files)

    def check(self) -> None:
        """Read every byte. Raises `IntegrityError` if a file is missing or holds others than recorded."""
        wrong = [name for name, known in self.manifest.files.items() if not self._has(name, known.sha256)]
        if wrong:
            raise IntegrityError(
                "this machine's copy of the weights is damaged",
                file=self.folder / wrong[0],
                expected=f"sha256 {self.manifest.files[wrong[0]].sha256}",
                got=f"{len(wrong)} of {len(self.manifest.files)} files differ or are missing",
                fix=f"delete {self.folder}; the next run fetches it again",
            )

    def _has(self, name: str, sha256: str) -> bool:
        file = self.folder / name
        return file.is_file() and sha256_unchanged(file) == sha256


_IMPORT = "import the weights again (`retroln weights import`)"
