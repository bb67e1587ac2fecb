"""Which cases a folder of files holds, and what belongs to them; ids are matched whole.

A case's id is the whole name of its CT without .nii or .nii.gz (in capitals or not) and without nnU-Net's
`_0000`. What belongs to it lies in folders beside it under the same id.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from retroln.anatomy.vertebrae import may_be_level
from retroln.endings import NIFTI, has_ending
from retroln.errors import InputError, NotFoundError
from retroln.files import require_outside
from retroln.steps.files import case_id_of, is_case_id


@dataclass(frozen=True)
class FolderCase:
    """One case: its parts by name (`ct`, `vertebrae`, `mask`), each a file or a folder of level files.

    Attributes:
        problem: why it cannot even be begun.
    """

    case_id: str
    parts: Mapping[str, Path]
    problem: InputError | None = None


@dataclass(frozen=True)
class Listing:
    """Every case of a folder exactly once, in order of id, and what belongs to none.

    Attributes:
        source: the folder.
        ignored: names in it that are no image.
        unmatched: by part, the names that belong to no CT.
        passed_over: ids of CTs that the pattern leaves out.
    """

    source: Path
    cases: tuple[FolderCase, ...]
    ignored: tuple[str, ...] = ()
    unmatched: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    passed_over: frozenset[str] = frozenset()


def list_cts(folder: Path, pattern: str = "*") -> Listing:
    """Every image that matches `pattern` as a case with the part `ct`; two of one id are one held case.

    Raises:
        NotFoundError: no such folder, or no image in it.
    """
    found = _visible(folder, pattern)
    images = [path for path in found if _is_image(path)]
    others = tuple(sorted(_name(path) for path in set(found) - set(images)))
    if not images:
        raise NotFoundError(
            "no CT in the folder",
            file=folder,
            expected=f"files <id>.nii.gz or <id>.nii{'' if pattern == '*' else f' that match {pattern}'}",
            got=shown(others) or "nothing",
            fix="name the folder that holds the files themselves",
        )
    by_id: dict[str, list[Path]] = defaultdict(list)
    for path in images:
        by_id[case_id_of(path)].append(path)
    cases = [_case(case_id, paths) for case_id, paths in sorted(by_id.items())]
    as_deep = "/".join("**" if piece == "**" else "*" for piece in pattern.split("/"))
    everything = {case_id_of(path) for path in _visible(folder, as_deep) if _is_image(path)}
    return Listing(folder, tuple(cases), others, passed_over=frozenset(everything - by_id.keys()))


def with_part(listing: Listing, part: str, folder: Path, *, level_folders: bool = False) -> Listing:
    """The listing with `<id>.nii.gz` of `folder` (or .nii, or `<id>/` of level files) as a part of each case.

    `<id>_0000` stands for `<id>` where there is none of that name. A case without one, or with several,
    is held.

    Args:
        level_folders: whether a folder of `vertebrae_<LEVEL>` files will do.

    Raises:
        NotFoundError: no such folder.
    """
    found = [path for path in _visible(folder, "*") if _may_be_part(path, level_folders)]
    exact: dict[str, list[Path]] = defaultdict(list)
    loose: dict[str, list[Path]] = defaultdict(list)
    for path in found:
        exact[case_id_of(path, keep_channel=True)].append(path)
        loose[case_id_of(path)].append(path)
    matched = {case.case_id: exact[case.case_id] or loose[case.case_id] for case in listing.cases}
    cases = [_with_part(case, part, folder, matched[case.case_id], level_folders) for case in listing.cases]
    used = {path for paths in matched.values() for path in paths}
    left = tuple(
        _name(path) for path in found if path not in used and case_id_of(path) not in listing.passed_over
    )
    return replace(listing, cases=tuple(cases), unmatched={**listing.unmatched, part: left})


def require_apart(output: Path, source: Path, *others: Path, nested: bool = False) -> None:
    """Raise `UserError` if results would go among what is read, or into a folder of level files.

    Args:
        nested: whether the folders below `source` are read too.
    """
    read = [folder for folder in (source, *others) if nested or folder.resolve() == output.resolve()]
    below = [folder for folder in (output, *output.parents) if _is_in(folder, others)]
    require_outside(output, *read, *(one for one in (output, *below) if holds_levels(one)))


def _is_in(folder: Path, others: Sequence[Path]) -> bool:
    return any(folder.resolve().is_relative_to(other.resolve()) for other in others)


def holds_levels(folder: Path) -> bool:
    """Whether a folder is one of level files, one case's vertebrae."""
    return folder.is_dir() and any(may_be_level(inside.name) for inside in folder.iterdir())


def shown(names: Sequence[str]) -> str:
    """The first few names, and how many more there are; "" for none."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _visible(folder: Path, pattern: str) -> list[Path]:
    if not folder.is_dir():
        raise NotFoundError("no such folder", file=folder, fix="check the path")
    return [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(".")]


def _is_image(path: Path) -> bool:
    return has_ending(path.name, *NIFTI) and not path.is_dir()


def _name(path: Path) -> str:
    return f"{path.name}/" if path.is_dir() else path.name


def _may_be_part(path: Path, level_folders: bool) -> bool:
    if path.is_dir():
        return level_folders and holds_levels(path)
    return has_ending(path.name, *NIFTI)


def _case(case_id: str, paths: list[Path]) -> FolderCase:
    case = FolderCase(case_id, {"ct": paths[0]})
    if len(paths) > 1:
        return replace(case, problem=_several("CT", case_id, paths))
    return case if is_case_id(case_id) else replace(case, problem=_bad_name(paths[0], case_id))


def _with_part(
    case: FolderCase, part: str, folder: Path, paths: list[Path], level_folders: bool
) -> FolderCase:
    if case.problem:
        return case
    if len(paths) == 1:
        return replace(case, parts={**case.parts, part: paths[0]})
    problem = (
        _several(part, case.case_id, paths) if paths else _missing(part, case.case_id, folder, level_folders)
    )
    return replace(case, problem=problem)


def _several(part: str, case_id: str, paths: list[Path]) -> InputError:
    return InputError(
        f"several {part} files have the case id {case_id}",
        reason="duplicate_case_id",
        file=paths[0].parent,
        expected="one",
        got=", ".join(_name(path) for path in paths),
        fix="keep the right one, or rename the others",
    )


def _missing(part: str, case_id: str, folder: Path, level_folders: bool) -> InputError:
    names = f"{case_id}.nii.gz" + (f" or {case_id}/vertebrae_<LEVEL>.nii.gz" if level_folders else "")
    return InputError(
        f"case {case_id} has no {part}",
        reason="landmarks_missing" if part == "vertebrae" else f"{part}_missing",
        file=folder,
        expected=names,
        got="a folder without such files" if (folder / case_id).is_dir() else "nothing of that name",
        fix="deliver it under the case's whole id",
    )


def _bad_name(path: Path, case_id: str) -> InputError:
    return InputError(
        "the file's name cannot be a case id",
        reason="bad_name",
        file=path,
        expected="at most 128 letters, digits, '.', '_', '-', beginning with a letter or digit",
        got=repr(case_id),
        fix="rename the file",
    )
