"""What a process may use: control groups of both versions, its processors, its share of threads, its home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import ClassVar

import pytest

from infra.stack.supervisor import Supervisor
from retroln import machine
from retroln.catalog.records import ScanDraft
from retroln.cli import machine as findings
from retroln.errors import SettingsError, UserError
from retroln.settings import Settings
from retroln.steps.workspace import open_workspace
from retroln.storage.open import open_store

GIB = 1 << 30


def groups(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of control groups and a process's own list of them."""
    for name, content in files.items():
        path = folder / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")
    (folder / "own").write_text(own)
    return folder / "cgroup", folder / "own"


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))


@pytest.mark.usefixtures("sixteen")
class TestCores:
    def test_without_groups_they_are_those_that_the_process_is_pinned_to(self, tmp_path: Path) -> None:
        assert machine.cores(tmp_path / "none", tmp_path / "none") == 16

    def test_version_2_counts_the_narrowest_group_above(self, tmp_path: Path) -> None:
        files = {"a/cpu.max": "350000 100000", "a/b/cpu.max": "max 100000"}
        assert machine.cores(*groups(tmp_path, "0::/a/b\n", files)) == 4

    def test_version_1_knows_no_limit_as_minus_one(self, tmp_path: Path) -> None:
        files = {
            "cpu,cpuacct/pod/cpu.cfs_quota_us": "200000",
            "cpu,cpuacct/pod/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        }
        assert machine.cores(*groups(tmp_path, "4:cpu,cpuacct:/pod\n", files)) == 2

    def test_a_container_sees_its_own_group_as_the_root(self, tmp_path: Path) -> None:
        assert machine.cores(*groups(tmp_path, "0::/host/pod\n", {"cpu.max": "10000 100000"})) == 1

    def test_a_larger_quota_makes_no_processors(self, tmp_path: Path) -> None:
        assert machine.cores(*groups(tmp_path, "0::/\n", {"cpu.max": "6400000 100000"})) == 16


class TestMemory:
    def test_no_limit_leaves_what_the_machine_has(self, tmp_path: Path) -> None:
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert machine.memory_bytes(tmp_path, tmp_path / "none") == whole
        assert machine.memory_bytes(*groups(tmp_path, "0::/\n", {"memory.max": "max"})) == whole

    @pytest.mark.parametrize(
        ("own", "file"),
        [("0::/a/b\n", "a/memory.max"), ("9:memory:/a/b\n1:cpu:/x\n", "memory/a/memory.limit_in_bytes")],
    )
    def test_a_limit_of_either_version_counts(self, tmp_path: Path, own: str, file: str) -> None:
        assert machine.memory_bytes(*groups(tmp_path, own, {file: str(GIB // 4)})) == GIB // 4


@pytest.mark.usefixtures("sixteen")
class TestThreads:
    @pytest.mark.parametrize(
        ("processes", "given", "expected"),
        [(1, None, None), (4, None, "4"), (32, None, "1"), (4, "2", "2"), (4, "12", "4"), (4, "8,2", "8,2")],
    )
    def test_each_process_has_its_share(
        self, monkeypatch: pytest.MonkeyPatch, processes: int, given: str | None, expected: str | None
    ) -> None:
        monkeypatch.setattr(machine, "cores", lambda: 16)
        environment = {} if given is None else {"OMP_NUM_THREADS": given}
        machine.share_threads(processes, environment)
        assert environment.get("OMP_NUM_THREADS") == expected

    def test_a_quota_bounds_a_single_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "cores", lambda: 3)
        environment: dict[str, str] = {}
        machine.share_threads(1, environment)
        assert environment == {"OMP_NUM_THREADS": "3"}


class TestHome:
    def test_a_user_without_one_is_told_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr(os, "getuid", lambda: 54321)
        with pytest.raises(UserError, match=r"user 54321 in /etc/passwd; fix: set HOME to a folder"):
            machine.require_home()
        (home,) = [finding for finding in findings.machine_findings() if finding.name == "home"]
        assert (home.well, home.fix) == (False, "set HOME to a folder")

    def test_a_store_below_an_unknown_home_is_a_wrong_setting(self) -> None:
        with pytest.raises(SettingsError, match="write the whole path"):
            open_store("file://~nobody-of-this-name/store", Settings())

    def test_mlflow_is_not_loaded_without_one(self, tmp_path: Path) -> None:
        pytest.importorskip("mlflow")
        code = (
            "import os; os.environ.pop('HOME', None); os.getuid = lambda: 54321\n"
            "from retroln.settings import Settings; from retroln.tracking.registry import MlflowRegistry\n"
            "from retroln.errors import UserError\n"
            "try: MlflowRegistry.of(Settings()).versions()\n"
            "except UserError as error: print(error.what)\n"
        )
        command = [sys.executable, "-c", code]
        environment = {**os.environ, "RETROLN_MLFLOW_URI": f"sqlite:///{tmp_path}/mlflow.db"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == "no home folder is known\n"


class TestDoctor:
    def test_little_memory_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(machine, "memory_bytes", lambda: GIB // 2)
        (memory,) = [finding for finding in findings.machine_findings() if finding.name == "memory"]
        assert not memory.well
        assert memory.seen.startswith("0.5 GiB usable of ")

    @pytest.mark.parametrize(
        ("size", "well", "seen"),
        [
            (64 << 20, True, "64 MiB, too little to train"),
            (2 * GIB, True, "2.0 GiB"),
            (None, False, "cannot be"),
        ],
    )
    def test_shared_memory(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, size: int | None, well: bool, seen: str
    ) -> None:
        monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
        monkeypatch.setattr(machine, "shared_memory_bytes", lambda: size)
        (shared,) = [finding for finding in findings.machine_findings() if finding.name == "shared memory"]
        assert (shared.well, bool(shared.fix)) == (well, size != 2 * GIB)
        assert seen in shared.seen

    @pytest.mark.parametrize(("length", "hinted"), [(70, False), (71, True)])
    def test_a_temporary_folder(self, monkeypatch: pytest.MonkeyPatch, length: int, hinted: bool) -> None:
        monkeypatch.setattr(tempfile, "tempdir", "/".ljust(length, "t"))
        (temporary,) = [one for one in findings.machine_findings() if one.name == "temporary folder"]
        assert (temporary.well, "TMPDIR of at most 70 letters" in temporary.fix) == (True, hinted)

    def test_a_folder_that_cannot_be_made_names_its_variable(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        finding = findings.folder_finding("work folder", tmp_path / "file" / "work", "RETROLN_WORK_DIR")
        assert not finding.well
        assert "RETROLN_WORK_DIR" in finding.fix
        assert findings.folder_finding("work folder", tmp_path / "work", "RETROLN_WORK_DIR").well


def test_shared_memory_that_is_not_there_has_no_size(tmp_path: Path) -> None:
    assert machine.shared_memory_bytes(tmp_path / "none") is None
    assert machine.shared_memory_bytes(tmp_path) == shutil.disk_usage(tmp_path).total


class TestLetters:
    """A locale that knows ASCII alone, with Python's own way out of it barred."""

    ASCII: ClassVar = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def test_a_page_is_the_same_in_any_locale(self) -> None:
        code = (
            "import hashlib; from retroln.report.case_page import case_page;"
            "from tests.unit.test_case_page import _page;"
            "print(hashlib.sha256(case_page(_page()).encode()).hexdigest())"
        )
        own = {**os.environ, "PYTHONPATH": str(Path.cwd())}
        hashes = {
            subprocess.run(
                [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True
            ).stdout
            for env in (own, own | self.ASCII)
        }
        assert len(hashes) == 1

    def test_a_name_that_the_terminal_cannot_show_is_spelt_out(self, tmp_path: Path) -> None:
        settings = Settings(catalog_url=f"sqlite:///{tmp_path}/catalog.db")
        draft = ScanDraft(case_id="Łódź", patient_id="p", source_uri={}, source_fingerprint="f", ct_key="k")
        open_workspace(settings).catalog.add_scan(draft, None)
        code = f"import sys; from retroln.cli import main; sys.argv = ['', 'status', {'Łódź'!a}]; main()"
        environment = {
            **os.environ,
            "PYTHONIOENCODING": "latin-1",
            "RETROLN_CATALOG_URL": settings.catalog_url,
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            encoding="latin-1",
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert r"Case \u0141ód\u017a" in done.stdout


def test_a_stack_folder_whose_path_is_too_long_is_refused(tmp_path: Path) -> None:
    home = tmp_path / ("long" * 25)
    with pytest.raises(RuntimeError, match=r"too long a path for a socket .* RETROLN_STACK_HOME"):
        Supervisor(home).configure([])
    assert not home.exists()
