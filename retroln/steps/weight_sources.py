"""Networks of TotalSegmentator as people have them: its folder of weights, datasets, published zips."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile, is_zipfile

from retroln.anatomy.totalseg_weights import NETWORKS, files_of
from retroln.endings import ZIP, has_ending
from retroln.errors import NotFoundError, UserError
from retroln.files import sha256_file
from retroln.storage.keys import safe_key

_WANTED = frozenset(files_of(NETWORKS))
_DEPTHS = {len(PurePosixPath(name).parts) for name in _WANTED}


def found_in(sources: Sequence[Path], scratch: Path) -> dict[str, Path]:
    """Files of the networks that are needed for vertebrae, by path below TotalSegmentator's folder.

    What else lies in the sources is passed over. Zips, also such that lie in a folder, are unpacked into
    `scratch`, those files alone.

    Raises:
        NotFoundError: a source does not exist.
        UserError: a source is neither folder nor zip, or two sources differ in a file.
        InputError: `unsafe_key`, a wanted name in a zip leaves it.
    """
    found: dict[str, Path] = {}
    for number, source in enumerate(sources):
        for name, path in _files(source, scratch / str(number)):
            known = found.setdefault(name, path)
            if known != path and sha256_file(known) != sha256_file(path):
                raise UserError(
                    "two sources differ in a file",
                    file=name,
                    expected=str(known),
                    got=str(path),
                    fix="give each network once",
                )
    return found


def _files(source: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    if not source.exists():
        raise NotFoundError("no such folder or zip", file=source, fix="check the path")
    if source.is_dir():
        yield from _in_folder(source.resolve())
        zips = sorted(path for path in source.iterdir() if has_ending(path.name, ZIP))
        for number, path in enumerate(zips):
            yield from _in_zip(path, scratch / str(number))
    elif is_zipfile(source):
        yield from _in_zip(source, scratch)
    else:
        raise UserError("neither a folder nor a zip", file=source, fix="give a folder of weights or a zip")


def _in_folder(folder: Path) -> Iterator[tuple[str, Path]]:
    """The folder may lie above the datasets, be one of them, or lie in one."""
    for path in sorted(folder.rglob("*")):
        name = _wanted(path.parts)
        if name and path.is_file():
            yield name, path


def _in_zip(source: Path, scratch: Path) -> Iterator[tuple[str, Path]]:
    try:
        with ZipFile(source) as archive:
            for info in archive.infolist():
                name = _wanted(PurePosixPath(info.filename).parts)
                if name is None or info.is_dir():
                    continue
                safe_key(info.filename)
                target = scratch / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(info) as packed, target.open("wb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 1 << 20)
                yield name, target
    except BadZipFile as error:
        raise UserError("the zip is damaged", file=source, got=str(error), fix="copy it again") from error


def _wanted(parts: Sequence[str]) -> str | None:
    """The end of a path that is the name of a wanted file."""
    ends = ("/".join(parts[-depth:]) for depth in _DEPTHS)
    return next((end for end in ends if end in _WANTED), None)
