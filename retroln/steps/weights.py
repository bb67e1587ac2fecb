"""Weights of TotalSegmentator in the object store: a bundle that settings pin by its hash.

A bundle lies under `weights/totalseg/<sha256>/`. Its name is the hash of its manifest, which states the hash
of every file; the manifest is put last, so a bundle is seen whole or not at all. A machine's copy lies under
the same name in the work folder (`retroln.steps.weights_copy`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retroln.anatomy.totalseg_weights import LICENCE, NETWORKS, Manifest, StoredFile, Weights, files_of
from retroln.errors import ConflictError, IntegrityError, NotFoundError, SettingsError, UserError
from retroln.files import sha256_bytes, sha256_file
from retroln.nnunet.model_folder import DATASET_FILE, labels_in, stand_in_of
from retroln.settings import Settings
from retroln.steps.weight_sources import found_in
from retroln.storage.base import ObjectStore
from retroln.storage.open import open_store

PREFIX = "weights/totalseg"
_MANIFEST = "manifest.json"
_NOT_THEIRS = "not TotalSegmentator's weights; ask whoever made them"


@dataclass(frozen=True)
class Bundle:
    """A bundle in the store.

    Attributes:
        sha256: its name, which settings pin.
    """

    sha256: str
    manifest: Manifest


def import_weights(
    settings: Settings, sources: Sequence[Path], *, stand_in: str | None = None, licence: str | None = None
) -> Bundle:
    """Put the networks found in folders and zips into the store as one bundle.

    Doing it again changes nothing. No checkpoint is unpickled. A network that names itself a stand-in makes
    the bundle one.

    Args:
        sources: folders (any depth above `Dataset...`) or zips, as TotalSegmentator publishes them.
        stand_in: why these are not TotalSegmentator's own weights.
        licence: terms of use that are kept with them; by default what TotalSegmentator says of its own.

    Raises:
        NotFoundError: a source does not exist, or holds no network that is needed for vertebrae.
        UserError: two sources differ in a file, or a network has too few labels for its task.
        InputError: `unsafe_key`, a zip with names that leave it.
    """
    store = _store(settings)
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=settings.work_dir) as scratch:
        files = found_in(sources, Path(scratch))
        manifest = _described(files, stand_in, licence)
        bundle = Bundle(sha256_bytes(manifest.dump()), manifest)
        for name, known in manifest.files.items():
            _put(store, files[name], key_of(bundle.sha256, name), known.sha256)
        store.put_bytes(manifest.dump(), key_of(bundle.sha256, _MANIFEST))
    return bundle


def bundles(settings: Settings) -> list[Bundle]:
    """Every bundle in the store, in the order of their hashes.

    Raises:
        IntegrityError: a manifest is not the one its name says.
    """
    names = sorted(
        info.key.split("/")[2]
        for info in _store(settings).list(f"{PREFIX}/")
        if info.key.endswith(f"/{_MANIFEST}")
    )
    return [_bundle(settings, name) for name in names]


def verify(settings: Settings, sha256: str) -> Bundle:
    """Read every byte of a bundle in the store, and of this machine's copy if it has one.

    Raises:
        NotFoundError: no such bundle, or a file of it is gone.
        IntegrityError: bytes are not those that were imported; the message says where.
    """
    bundle, store = _bundle(settings, sha256), _store(settings)
    settings.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="weights-", dir=settings.work_dir) as scratch:
        for name, known in bundle.manifest.files.items():
            get(store, key_of(sha256, name), Path(scratch) / "file", known.sha256)
    copy = Weights(sha256, copy_folder(settings, sha256), bundle.manifest)
    if copy.folder.is_dir():
        copy.check()
    return bundle


def require(settings: Settings) -> Bundle:
    """The pinned bundle, if the store has every file of every network that the settings need.

    Reads the manifest and asks for the files' sizes, so it is quick: the look that prepare begins with.

    Raises:
        SettingsError: no bundle is pinned.
        NotFoundError: the store has no such bundle, or it lacks a network or a file.
        IntegrityError: the manifest is another one, or a file has another size.
    """
    bundle, store = _bundle(settings, _pinned(settings)), _store(settings)
    bundle.manifest.require(settings.totalseg, f"{store.uri}/{key_of(bundle.sha256)}")
    for name, known in bundle.manifest.files.items():
        size_bytes = store.stat(key_of(bundle.sha256, name)).size_bytes
        if size_bytes != known.size_bytes:
            raise IntegrityError(
                "a file of the weights has another size",
                file=f"{store.uri}/{key_of(bundle.sha256, name)}",
                expected=f"{known.size_bytes} bytes",
                got=f"{size_bytes} bytes",
                fix=_IMPORT,
            )
    return bundle


def _described(files: dict[str, Path], stand_in: str | None, licence: str | None) -> Manifest:
    tasks = sorted(task for task in NETWORKS if set(files_of([task])) <= set(files))
    if not tasks:
        raise NotFoundError(
            "no whole network that is needed for vertebrae",
            expected=", ".join(one.folder for one in NETWORKS.values()),
            got=", ".join(sorted(files)) or "none of their files",
            fix="give TotalSegmentator's folder of weights, or the zips that it publishes",
        )
    said = [*_stand_ins(files, tasks), *([stand_in] if stand_in else [])]
    return Manifest(
        tasks=tuple(tasks),
        files={
            name: StoredFile(sha256=sha256_file(files[name]), size_bytes=files[name].stat().st_size)
            for name in sorted(files_of(tasks))
        },
        stand_in="; ".join(dict.fromkeys(said)) or None,
        licence=licence or (_NOT_THEIRS if said else LICENCE),
    )


def _stand_ins(files: dict[str, Path], tasks: Sequence[int]) -> Iterator[str]:
    """What networks say of themselves; each must have the labels of its task."""
    for network in (NETWORKS[task] for task in tasks):
        file = files[f"{network.folder}/{DATASET_FILE}"]
        try:
            labels = labels_in(file.read_bytes())
        except ValueError as error:
            raise UserError("dataset.json cannot be read", file=file, got=str(error)) from error
        if labels < network.labels:
            raise UserError(
                f"network {network.task_id} is another one",
                file=file,
                expected=f"{network.labels} labels or more, background included",
                got=str(labels),
                fix=f"import TotalSegmentator's {network.dataset}",
            )
        if said := stand_in_of(file.read_bytes()):
            yield said


def _put(store: ObjectStore, path: Path, key: str, sha256: str) -> None:
    """Store a file once; one that is there already must hold the same bytes."""
    try:
        stored = store.put_file(path, key, if_absent=True)
    except ConflictError:
        stored = store.stat(key)
    if stored.sha256 not in (None, sha256):
        raise IntegrityError(
            "the store holds other bytes than were to be stored",
            file=f"{store.uri}/{key}",
            expected=f"sha256 {sha256}",
            got=str(stored.sha256),
            fix="delete the object and import again",
        )


def get(store: ObjectStore, key: str, path: Path, sha256: str) -> None:
    """Fetch a file of a bundle; `IntegrityError` if its bytes are not those that were imported."""
    if (got := store.get_file(key, path)) != sha256:
        raise IntegrityError(
            "a file of the weights has other bytes than were imported",
            file=f"{store.uri}/{key}",
            expected=f"sha256 {sha256}",
            got=got,
            fix=_IMPORT,
        )


def _bundle(settings: Settings, sha256: str) -> Bundle:
    store = _store(settings)
    key = key_of(sha256, _MANIFEST)
    try:
        data = store.get_bytes(key)
    except NotFoundError as error:
        raise NotFoundError(
            "no such weights bundle in the store",
            file=f"{store.uri}/{key_of(sha256)}",
            fix="`retroln weights list` shows what is there, `retroln weights import` brings one",
        ) from error
    return Bundle(sha256, Manifest.parse(data, sha256, f"{store.uri}/{key}"))


def _pinned(settings: Settings) -> str:
    if settings.totalseg.weights is None:
        raise SettingsError(
            "no weights are pinned for TotalSegmentator",
            expected="RETROLN_TOTALSEG__WEIGHTS, the sha256 of a bundle",
            got="nothing",
            fix="`retroln weights import FOLDER` prints it; `retroln weights list` shows what the store has",
        )
    return settings.totalseg.weights


def _store(settings: Settings) -> ObjectStore:
    return open_store(settings.store_uri, settings)


def key_of(sha256: str, *parts: str) -> str:
    """Key of a bundle's file; without `parts`, what its keys begin with."""
    return "/".join([PREFIX, sha256, *parts])


def copy_folder(settings: Settings, sha256: str) -> Path:
    """Where this machine's copy of a bundle lies, if it has one."""
    return settings.work_dir.resolve() / PREFIX / sha256


_IMPORT = "import the weights again (`retroln weights import`)"
