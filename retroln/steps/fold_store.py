"""What machines that train one model together leave for each other in the object store.

Everything of a training lies under `training/<dataset>/<spec>/`. Each thing there (the plans, a fold,
its last checkpoint, the bundle) is a set of files: they are put under a name made from their hashes,
then `sealed.json` says which set holds and states every hash. A set is therefore seen whole or not at
all, also while it is being replaced.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from retroln.errors import ConflictError, IntegrityError, NotFoundError
from retroln.files import sha256_file, sha256_json
from retroln.settings import Settings, TrainSpec
from retroln.steps.workspace import open_workspace
from retroln.storage.base import ObjectStore
from retroln.storage.keys import safe_key

_SEAL = "sealed.json"
_SHORT = 16  # hex digits in keys


class Ticket(BaseModel):
    """What a machine must know to do its part of a training; travels as JSON."""

    model_config = ConfigDict(frozen=True)

    dataset_version: str
    spec: TrainSpec
    mlflow_run_id: str

    @property
    def short(self) -> str:
        """Names dataset and spec in keys and folders: two times 16 hex digits."""
        return f"{self.dataset_version[:_SHORT]}/{spec_sha256(self.spec)[:_SHORT]}"


def spec_sha256(spec: TrainSpec) -> str:
    """Hash of all that a spec says."""
    return sha256_json(spec.recorded())


@dataclass(frozen=True)
class Sealed:
    """A set that is whole: sha256 of each file by its name, and what was said about it."""

    files: Mapping[str, str]
    facts: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The set's name, made from its hashes."""
        return sha256_json(dict(self.files))[:_SHORT]


@dataclass(frozen=True)
class FoldStore:
    """The shared things of one training. Places: `plans`, `fold_<n>`, `fold_<n>/latest`, `bundle`.

    Attributes:
        require_trainable: raises `ConflictError` when a patient of the dataset version has withdrawn.
    """

    store: ObjectStore
    prefix: str
    require_trainable: Callable[[], None]

    @classmethod
    def of(cls, settings: Settings, ticket: Ticket) -> FoldStore:
        """The training's part of the store that the settings name."""
        workspace = open_workspace(settings)
        require = partial(workspace.catalog.require_trainable, ticket.dataset_version)
        return cls(workspace.store, f"training/{ticket.short}", require)

    def sealed(self, place: str) -> Sealed | None:
        """What holds at a place; None when nothing was ever put there."""
        try:
            content = json.loads(self.store.get_bytes(self._key(place, _SEAL)))
        except NotFoundError:
            return None
        return Sealed(content["files"], content["facts"])

    def put(
        self, place: str, files: Mapping[str, Path], facts: Mapping[str, Any], *, first_wins: bool = False
    ) -> Sealed:
        """Put a set of files and let it hold from now on; the set that holds is returned.

        Args:
            first_wins: leave what another machine has put there meanwhile.

        Raises:
            ConflictError: a patient of the dataset version has withdrawn, maybe meanwhile; nothing of the
                training is left.
        """
        self.require_trainable()
        stored = self._put(place, files, facts, first_wins)
        try:
            self.require_trainable()
        except ConflictError:
            for info in list(self.store.list(self._key(""))):
                self.store.delete(info.key)
            raise
        return stored

    def _put(
        self, place: str, files: Mapping[str, Path], facts: Mapping[str, Any], first_wins: bool
    ) -> Sealed:
        made = Sealed({name: sha256_file(path) for name, path in files.items()}, facts)
        for name, path in files.items():
            self.store.put_file(path, self._key(place, made.name, name))
        content = json.dumps({"files": made.files, "facts": made.facts}).encode()
        try:
            self.store.put_bytes(content, self._key(place, _SEAL), if_absent=first_wins)
        except ConflictError:
            return self.sealed(place) or made
        return made

    def fetch(self, place: str, folder: Path) -> Sealed:
        """Bring the set that holds into `folder`; files there that are right already are left.

        Raises:
            NotFoundError: nothing was put there.
            IntegrityError: a file's bytes are not those that were sealed.
        """
        found = self._require(place)
        try:
            self._copy(place, found, folder)
        except NotFoundError:  # replaced meanwhile
            found = self._require(place)
            self._copy(place, found, folder)
        return found

    def read(self, place: str, name: str) -> bytes:
        """One small file of the set that holds; errors as `fetch`."""
        found = self._require(place)
        return self.store.get_bytes(self._key(place, found.name, name))

    def sweep(self, place: str, *, keep: Sealed | None) -> None:
        """Remove sets that hold no longer; with `keep` None also the one that does."""
        if keep is None:
            self.store.delete(self._key(place, _SEAL))
        for info in list(self.store.list(self._key(place, ""))):
            name = info.key.removeprefix(self._key(place, "")).split("/")[0]
            if name != _SEAL and (keep is None or name != keep.name):
                self.store.delete(info.key)

    def _key(self, *parts: str) -> str:
        return "/".join([self.prefix, *parts])

    def _require(self, place: str) -> Sealed:
        if (found := self.sealed(place)) is None:
            raise NotFoundError(
                "nothing is there yet",
                file=f"{self.store.uri}/{self._key(place)}",
                fix="run the part of the training that makes it",
            )
        return found

    def _copy(self, place: str, found: Sealed, folder: Path) -> None:
        for name, sha256 in found.files.items():
            target = folder / safe_key(name)
            if target.is_file() and sha256_file(target) == sha256:
                continue
            key = self._key(place, found.name, name)
            got = self.store.get_file(key, target)
            if got != sha256:
                target.unlink()
                raise IntegrityError(
                    "stored bytes are not those that were sealed",
                    file=f"{self.store.uri}/{key}",
                    expected=f"sha256 {sha256}",
                    got=got,
                    fix="delete the training's part of the store and train again",
                )
