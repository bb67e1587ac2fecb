"""Loader processes that cannot hand a batch over end, so that training fails with the reason and the fix."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("batchgenerators")

from retroln.errors import UserError
from retroln.nnunet import train
from retroln.nnunet.loaders import why_stuck

_LOAD = """
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from retroln.nnunet.loaders import end_when_stuck

class Batches:
    def set_thread_id(self, number): pass
    def __next__(self): return {"data": torch.zeros(1 << 19)}

end_when_stuck()
try:
    print(len(next(NonDetMultiThreadedAugmenter(Batches(), None, 1, 2))["data"]), "values")
except RuntimeError as error:
    print(error)
"""
_SMALL = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c"]
_MOUNT = "mount -t tmpfs -o size=512k tmpfs /dev/shm"


def load(*before: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ask one loader process for a batch of 2 MiB."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), **variables}
    command = [*before, sys.executable, "-W", "ignore", "-c", _LOAD]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)


def test_a_batch_arrives() -> None:
    assert load(TMPDIR="/tmp").stdout == "524288 values\n"


def test_a_temporary_folder_whose_path_is_too_long_ends_the_loader(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    done = load(TMPDIR=str(folder))
    assert "no longer alive" in done.stdout
    found = why_stuck(done.stderr)
    assert found is not None
    assert found[1] == "set TMPDIR to a path of at most 70 characters"


def test_shared_memory_without_room_ends_the_loader() -> None:
    if subprocess.run([*_SMALL, _MOUNT], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot mount a small /dev/shm")
    done = load(*_SMALL, f'{_MOUNT} && exec "$@"', "sh", TMPDIR="/tmp")
    assert "no longer alive" in done.stdout
    found = why_stuck(done.stderr)
    assert found is not None
    assert found[0].startswith("training ran out of shared memory (/dev/shm has ")
    assert "--shm-size" in found[1]


def test_a_training_that_died_of_it_says_so(tmp_path: Path) -> None:
    output = "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left\n"
    (tmp_path / "training_output.txt").write_text(output)
    error = train._death(1, tmp_path)
    assert isinstance(error, UserError)
    assert error.what.startswith("training ran out of shared memory (/dev/shm has ")
    (tmp_path / "training_output.txt").write_text("ValueError: what\n")
    assert train._death(1, tmp_path).what == "training failed"
