"""Places that cannot be written, and full disks: one line that names the place, and nothing half written.

Tests run as root, whom no mode stops. A folder that refuses is shown by /proc, where only the kernel makes
files; a full disk by a limit on the size of files; EROFS and EDQUOT by `test_store_meanings.py`.
"""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from retroln.cli import main
from retroln.steps.files import crop_files
from retroln.storage.local import LocalStore

Retroln = Callable[..., tuple[int, str]]
Limit = Callable[[int], None]


@pytest.fixture
def retroln(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Retroln:
    """Run `retroln WORDS` in this process; its exit code and the last line that it said."""
    monkeypatch.setattr("retroln.cli.share_threads", lambda _: None)

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["retroln", *map(str, words)])
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capfd.readouterr().err.strip().splitlines()[-1]

    return run


@pytest.fixture
def case(deliver: Callable[..., Path], tmp_path: Path) -> dict[str, tuple[object, ...]]:
    """For each command, the words that lack nothing but the place to write."""
    folder = deliver("CASE", "P1")
    ct, vertebrae, mask = (folder / f"{name}.nii.gz" for name in ("ct", "vertebrae", "mask"))
    whole = crop_files(ct, vertebrae, tmp_path / "whole", mask=mask, case_id="A")
    for name in ("cts", "levels"):
        (tmp_path / name).mkdir()
    (tmp_path / "cts" / "A.nii.gz").symlink_to(ct)
    (tmp_path / "levels" / "A.nii.gz").symlink_to(vertebrae)
    one = ("--ct", ct, "--vertebrae", vertebrae)
    folders = ("--input-dir", tmp_path / "cts", "--vertebrae-dir", tmp_path / "levels")
    return {
        "crop": ("crop", *one, "--mask", mask, "--case-id", "A", "--output-dir"),
        "crop of a folder": ("crop", *folders, "--output-dir"),
        "paste": ("paste", "--crop", whole.mask, "--roi", whole.roi, "--output"),
        "measure": ("measure", "--labels", mask, "--output"),
        "predict": ("predict", *one, "--bundle", tmp_path / "none", "--output"),
    }


@pytest.fixture
def limit() -> Iterator[Limit]:
    """Let no file grow beyond so many bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _target(command: str, place: Path) -> Path:
    """What the command writes when it is sent to `place`."""
    names = {"crop": "A_roi.json", "crop of a folder": ".retroln-journal.jsonl", "measure": "nodes.json"}
    return place / names.get(command, "labels.nii.gz")


_COMMANDS = ("crop", "crop of a folder", "paste", "measure", "predict")


@pytest.mark.parametrize("command", _COMMANDS)
@pytest.mark.parametrize(
    ("place", "code", "says"),
    [
        ("file", 2, "the disk has a file where a folder is needed"),
        ("file/below", 2, "the disk has a file where a folder is needed"),
        ("/proc/retroln", 13, "the disk refuses this user; got: nothing can be made here"),
        ("n" * 300, 13, "the disk takes no name as long as this"),
    ],
    ids=["a file", "below a file", "refuses", "too long"],
)
def test_a_place_that_cannot_be_a_folder(
    retroln: Retroln,
    case: dict[str, tuple[object, ...]],
    command: str,
    place: str,
    code: int,
    says: str,
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    output = tmp_path / place
    if not command.startswith("crop"):
        output = _target(command, output)
    got, line = retroln(*case[command], output)
    assert got == code
    assert line.startswith(f"error: {tmp_path / place}") and says in line and "; fix: " in line
    assert (tmp_path / "file").read_bytes() == b"not a folder"


@pytest.mark.parametrize("command", ["paste", "measure", "predict"])
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "a folder where a file is needed"),
        (os.mkfifo, "a device or a pipe where a file is needed"),
    ],
    ids=["folder", "pipe"],
)
def test_what_stands_where_a_file_is_needed_stays(
    retroln: Retroln,
    case: dict[str, tuple[object, ...]],
    command: str,
    make: Callable[[Path], None],
    says: str,
    tmp_path: Path,
) -> None:
    output = tmp_path / "labels.nii.gz"
    make(output)
    kind = output.stat().st_mode
    code, line = retroln(*case[command], output)
    assert (code, output.stat().st_mode) == (2, kind)
    assert line.startswith(f"error: {output}: the disk has {says}; ")


@pytest.mark.parametrize("name", ["A_ct.nii.gz", "A_mask.nii.gz", "A_roi.json"])
def test_a_folder_in_the_way_of_one_file_of_a_crop_keeps_the_others_unwritten(
    retroln: Retroln, case: dict[str, tuple[object, ...]], name: str, tmp_path: Path
) -> None:
    (tmp_path / "out" / name).mkdir(parents=True)
    code, line = retroln(*case["crop"], tmp_path / "out")
    assert code == 2 and line.startswith(f"error: {tmp_path}/out/{name}: the disk has a folder where")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("command", ["crop", "paste", "measure"])
def test_a_full_disk_is_named_and_what_was_there_stays(
    retroln: Retroln, case: dict[str, tuple[object, ...]], command: str, limit: Limit, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    names = ("A_ct.nii.gz", "A_mask.nii.gz", "A_roi.json", "labels.nii.gz", "nodes.json")
    before = {name: f"before: {name}".encode() for name in names}
    for name, content in before.items():
        (folder / name).write_bytes(content)
    limit(500)
    code, line = retroln(*case[command], folder if command == "crop" else _target(command, folder))
    assert code == 13 and line.startswith(f"error: {folder}/")
    assert ": the disk has no room left; got: File too large; fix: free space" in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_case_of_a_folder_that_meets_a_full_disk_fails_in_words_and_leaves_nothing(
    case: dict[str, tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    retroln: Retroln,
    tmp_path: Path,
    limit: Limit,
) -> None:
    told: list[str] = []
    monkeypatch.setattr("retroln.cli.folders.click.echo", lambda text, **_: told.append(str(text)))
    limit(5000)
    code, _ = retroln(*case["crop of a folder"], tmp_path / "out")
    (line,) = [text for text in told if text.startswith("A failed")]
    assert code == 10
    assert f"A failed (RefusedError): {tmp_path}/out/A_ct.nii.gz: the disk has no room left" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["summary.json"]


def test_a_store_whose_place_is_a_file_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/store"):
        with pytest.raises(Exception, match="the disk has a file where a folder is needed"):
            LocalStore(tmp_path / place).put_bytes(b"x", "key")
