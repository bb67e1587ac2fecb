"""The model registry: versions, aliases, tags, and the way of a bundle in and out.

Aliases: `candidate` (set by training), `approved` (set by a reviewer), `champion`, `previous`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from retroln import files
from retroln.errors import ConflictError, IntegrityError, NotFoundError
from retroln.settings import Settings
from retroln.tracking.connection import Connection, translated

if TYPE_CHECKING:
    from mlflow.entities.logged_model import LoggedModel
    from mlflow.models import Model, ModelSignature

Alias = Literal["candidate", "approved", "champion", "previous"]
SHA_TAG = "bundle_sha256"
_MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
# Stated, because MLflow would otherwise import the model and query pip to guess them.
_REQUIREMENTS = ["retroln[infer]"]
_BUNDLE = "bundle"  # folder name inside the stored model


@dataclass(frozen=True)
class ModelVersion:
    """One registered version: number, MLflow run, tags, aliases and creation time (ms since 1970, UTC)."""

    version: int
    run_id: str | None
    tags: dict[str, str]
    aliases: tuple[str, ...]
    created_ms: int


@dataclass(frozen=True)
class MlflowRegistry:
    """The versions of one registered model."""

    connection: Connection

    @classmethod
    def of(cls, settings: Settings) -> MlflowRegistry:
        """The registry that the settings name; nothing is opened yet."""
        return cls(Connection.of(settings))

    @property
    def name(self) -> str:
        """Name of the registered model."""
        return self.connection.model_name

    def register(self, bundle_dir: Path, run_id: str, tags: Mapping[str, str]) -> int:
        """Store a bundle as an MLflow model and make it a new version.

        The bundle's `tree_sha256` becomes the version tag `bundle_sha256`. No alias is set. A bundle
        that is already registered for this run returns its version: a repeated step adds nothing.

        Raises:
            IntegrityError: what MLflow's artifact store kept is not the bundle; no version is made.
        """
        sha256 = tree_sha256(bundle_dir)
        with translated(self.connection.uri):
            self._ensure_model()
            if (known := self._registered(run_id, sha256)) is not None:
                return known
            model = self._store(bundle_dir, run_id)
            self._require_kept(model.artifact_location, sha256)
            made = self.connection.client.create_model_version(
                self.name,
                source=model.artifact_location,
                run_id=run_id,
                tags={**tags, SHA_TAG: sha256},
                model_id=model.model_id,
            )
        return int(made.version)

    def aliases(self) -> dict[str, int]:
        """Every alias that is set, with its version, as of one moment; empty without a model."""
        try:
            with translated(self.connection.uri):
                model = self.connection.client.get_registered_model(self.name)
        except NotFoundError:
            return {}
        return {alias: int(version) for alias, version in (model.aliases or {}).items()}

    def get_alias(self, alias: Alias) -> int | None:
        """Version an alias points to, or None when it is not set."""
        return self.aliases().get(alias)

    def set_alias(self, alias: Alias, version: int) -> None:
        """Point an alias to a version.

        Raises:
            NotFoundError: no such version.
        """
        self.version(version)
        with translated(self.connection.uri):
            self.connection.client.set_registered_model_alias(self.name, alias, str(version))

    def delete_alias(self, alias: Alias) -> None:
        """Remove an alias; one that is not set is left so."""
        if self.get_alias(alias) is not None:
            with translated(self.connection.uri):
                self.connection.client.delete_registered_model_alias(self.name, alias)

    def set_tag(self, version: int, name: str, value: str) -> None:
        """Set one tag of a version. `bundle_sha256` is fixed once and refused here.

        Raises:
            ConflictError: somebody tries to change the recorded sha256.
            NotFoundError: no such version.
        """
        if name == SHA_TAG:
            raise ConflictError(f"tag {SHA_TAG} is fixed at registration", fix="register a new version")
        self.version(version)
        with translated(self.connection.uri):
            self.connection.client.set_model_version_tag(self.name, str(version), name, value)

    def delete_tag(self, version: int, name: str) -> None:
        """Remove one tag of a version; one that is not set is left so. `bundle_sha256` stays.

        Raises:
            ConflictError: somebody tries to remove the recorded sha256.
            NotFoundError: no such version.
        """
        if name == SHA_TAG:
            raise ConflictError(f"tag {SHA_TAG} is fixed at registration", fix="register a new version")
        if name in self.tags(version):
            with translated(self.connection.uri):
                self.connection.client.delete_model_version_tag(self.name, str(version), name)

    def tags(self, version: int) -> dict[str, str]:
        """Every tag of a version."""
        return self.version(version).tags

    def version(self, version: int) -> ModelVersion:
        """One version.

        Raises:
            NotFoundError: no such version.
        """
        return self._record(self._mlflow_version(version), self.aliases())

    def versions(self) -> list[ModelVersion]:
        """Every version, the newest first; empty when the model was never registered."""
        with translated(self.connection.uri):
            quote = '"' if "'" in self.name else "'"
            wanted = f"name = {quote}{self.name}{quote}"
            found = self.connection.client.search_model_versions(wanted, max_results=1000)
        aliases = self.aliases()
        return sorted((self._record(v, aliases) for v in found), key=lambda v: -v.version)

    def fetch(self, version: int, dest: Path) -> Path:
        """Bundle folder of a version under `dest`, downloaded unless it is there already.

        The folder's name holds model, version and sha256; its bytes are checked against the registry
        every time, so what this returns is what was registered.

        Raises:
            NotFoundError: no such version.
            IntegrityError: the bytes differ from the record.
        """
        sha256 = self.tags(version).get(SHA_TAG)
        if not sha256:
            raise IntegrityError(
                f"version {version} of {self.name} has no {SHA_TAG}",
                fix="register the model with retroln; a version without a hash is not loaded",
            )
        target = dest / f"{self.name}-v{version}-{sha256[:12]}"
        if not target.exists():
            self._download(version, sha256, target)
        _require_sha256(target, sha256)
        return target

    def _download(self, version: int, sha256: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=target.parent) as folder:
            with translated(self.connection.uri):
                place = self.connection.client.get_model_version_download_uri(self.name, str(version))
            bundle = self._bundle_at(place, folder)
            _require_sha256(bundle, sha256)
            _move_in(bundle, target)

    def _bundle_at(self, place: str, folder: str) -> Path:
        """Download the bundle of the model that MLflow stores at `place`."""
        from mlflow.artifacts import download_artifacts

        source = f"{place}/artifacts/{_BUNDLE}"
        try:
            with translated(self.connection.uri):
                return Path(download_artifacts(source, dst_path=folder, tracking_uri=self.connection.uri))
        except NotFoundError as error:
            raise error.reworded(
                what="MLflow has not the files of this model any more",
                file=place,
                fix="bring its artifacts back from a backup, or promote another version",
            ) from error

    def _require_kept(self, place: str, sha256: str) -> None:
        """Read back what was stored: that is seldom, and every later result rests on it."""
        with tempfile.TemporaryDirectory(prefix="retroln-kept-") as folder:
            got = tree_sha256(self._bundle_at(place, folder))
        if got != sha256:
            raise IntegrityError(
                "MLflow's artifact store kept other bytes than it was sent",
                file=place,
                expected=f"sha256 {sha256}",
                got=got,
                fix="give MLflow's server AWS_REQUEST_CHECKSUM_CALCULATION=when_required, and train again",
            )

    def _store(self, bundle_dir: Path, run_id: str) -> LoggedModel:
        """Write the MLflow model with its own copy of the bundle to the artifact store."""
        from mlflow.entities import LoggedModelOutput
        from mlflow.models import Model

        client = self.connection.client
        model = client.create_logged_model(self.connection.experiment_id, self.name, run_id)
        with tempfile.TemporaryDirectory(prefix="retroln-model-") as folder:
            staged = Path(folder, _BUNDLE)
            shutil.copytree(bundle_dir, staged, copy_function=_link_or_copy)
            description = Model(model.artifact_location, run_id=run_id, model_id=model.model_id)
            _save_model(Path(folder, "model"), staged, description)
            client.log_model_artifacts(model.model_id, f"{folder}/model")
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        return model

    def _registered(self, run_id: str, sha256: str) -> int | None:
        same = [v.version for v in self.versions() if (v.run_id, v.tags.get(SHA_TAG)) == (run_id, sha256)]
        return same[0] if same else None

    def _ensure_model(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self.connection.client.create_registered_model(self.name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise

    def _mlflow_version(self, version: int) -> Any:
        try:
            with translated(self.connection.uri):
                return self.connection.client.get_model_version(self.name, str(version))
        except NotFoundError as error:
            raise NotFoundError(
                f"model {self.name} has no version {version}",
                fix="open the registry in MLflow to see the versions",
            ) from error

    @staticmethod
    def _record(found: Any, aliases: Mapping[str, int]) -> ModelVersion:
        number = int(found.version)
        mine = tuple(sorted(alias for alias, version in aliases.items() if version == number))
        created = int(found.creation_timestamp)
        return ModelVersion(number, found.run_id or None, dict(found.tags), mine, created)


def tree_sha256(folder: Path) -> str:
    """Hex sha256 over every file's relative path and sha256 in `folder`.

    Raises:
        NotFoundError: no such folder, or nothing in it.
    """
    entries = sorted(path for path in folder.rglob("*") if path.is_file())
    if not entries:
        raise NotFoundError("no bundle here", file=folder, fix="train or fetch the model first")
    return files.sha256_json({p.relative_to(folder).as_posix(): files.sha256_unchanged(p) for p in entries})


def _require_sha256(folder: Path, expected: str) -> None:
    got = tree_sha256(folder)
    if got != expected:
        raise IntegrityError(
            "the bundle is not the one that was registered",
            file=folder,
            expected=f"sha256 {expected}",
            got=got,
            fix="delete the folder to fetch it again; if it persists, do not use this version",
        )


def _move_in(source: Path, target: Path) -> None:
    """Rename into place; when another process was first, its copy stays."""
    try:
        source.rename(target)
    except OSError:
        if not target.is_dir():
            raise


def _save_model(path: Path, bundle_dir: Path, description: Model) -> None:
    """Write the MLflow model's folder: MLmodel, the code file and a copy of the bundle."""
    with _without_hints():
        from mlflow.pyfunc import save_model

        save_model(
            path=str(path),
            python_model=str(_MODEL_CODE),
            artifacts={_BUNDLE: str(bundle_dir)},
            signature=_signature(),
            pip_requirements=_REQUIREMENTS,
            mlflow_model=description,
        )


def _link_or_copy(source: str, target: str) -> str:
    """Hard link where the file system allows it: bundles are large."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@contextmanager
def _without_hints() -> Iterator[None]:
    """Drop two hints of MLflow: on a type of its own; to give an input example (it would be run)."""
    with warnings.catch_warnings():
        for hint in ("Any type hint is inferred as AnyType", "An input example was not provided"):
            warnings.filterwarnings("ignore", message=f".*{hint}")
        yield


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "ct"), ColSpec(DataType.string, "output")]),
        outputs=Schema([ColSpec(DataType.string, "output"), ColSpec(DataType.long, "n_nodes")]),
    )
