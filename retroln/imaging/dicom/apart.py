"""Decoding in a process of its own: a codec that dies on damaged data takes no other case with it.

GDCM ends its process on some damaged streams (an exception that no Python code can catch), and a codec may
loop for ever. So compiled codecs run in a child (`retroln.imaging.dicom.decoder`), one per series, which
sends back frame by frame.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError
from retroln.imaging.dicom.decoding import frames, is_native, require_codec, require_decodable, undecodable

Wanted = Sequence[tuple[Path, Sequence[int]]]
_DIED_OF_DATA = tuple(-number for number in (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE))
_PATIENCE_S = 60.0  # for one frame; a JPEG 2000 slice of 512 x 512 takes some 0.05 s


def decoded(wanted: Wanted, transfer_syntax: str) -> Iterator[NDArray[Any]]:
    """Stored values of the wanted frames of each file, file by file, each of shape (rows, columns).

    Raises:
        InputError: `undecodable`, `no_pixel_data`, `truncated`, `size_mismatch`.
        MissingExtraError: the codec is not installed.
    """
    for path, _ in wanted:
        require_decodable(transfer_syntax, path)
    if not is_native(transfer_syntax):
        for path, places in wanted:
            yield from frames(path, places, transfer_syntax)
    elif wanted:
        require_codec(transfer_syntax)
        with _Child(wanted, transfer_syntax) as child:
            for path, places in wanted:
                for _ in places:
                    yield child.next_frame(path)


class _Child:
    """The decoding process, which has been told what to do; gone when its block ends."""

    def __init__(self, wanted: Wanted, transfer_syntax: str) -> None:
        command = [sys.executable, "-W", "ignore", "-m", "retroln.imaging.dicom.decoder"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._answer, self._too_slow = self._process.stdout, False
        files = [[str(path), list(places)] for path, places in wanted]
        with suppress(BrokenPipeError), self._process.stdin as told:  # its end is noticed at the first frame
            told.write(json.dumps({"syntax": transfer_syntax, "files": files}).encode())

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        self._answer.close()

    def next_frame(self, path: Path) -> NDArray[Any]:
        """The next frame, which is one of `path`.

        Raises:
            InputError: what the child found, or `undecodable` when it died of the file or was too slow.
            MemoryError: it was killed from outside, most likely for want of memory.
            ChildProcessError: it ended in an unforeseen way.
        """
        watch = Timer(_PATIENCE_S, self._give_up)
        watch.start()
        try:
            said = json.loads(self._answer.readline() or "{}")
            data = self._answer.read(said.get("bytes", 0))
        finally:
            watch.cancel()
        if "reason" in said:
            raise InputError(said.pop("what"), file=path, **said)
        if not said or len(data) < said["bytes"]:
            raise self._end(path)
        return np.frombuffer(data, np.dtype(said["dtype"])).reshape(said["shape"])

    def _give_up(self) -> None:
        self._too_slow = True
        self._process.kill()

    def _end(self, path: Path) -> Exception:
        code = self._process.wait()
        if self._too_slow:
            return undecodable(path, f"the codec came to no end in {_PATIENCE_S:.0f} s")
        if code in _DIED_OF_DATA:
            return undecodable(path, f"the codec died of it ({signal.Signals(-code).name})")
        if code == -signal.SIGKILL:
            return MemoryError("the decoding process was killed, most likely for want of memory")
        return ChildProcessError(f"the decoding process ended with {code}")
