"""The child that decodes: `python -m retroln.imaging.dicom.decoder`, told what by JSON on its input.

Its answer is, for each frame, a line of JSON (dtype, shape, bytes) and the values, or a line with an error.
It takes no more memory than its work can need, because a damaged stream can make a codec take all there is.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from retroln.errors import InputError
from retroln.imaging.dicom.decoding import frames, undecodable
from retroln.imaging.dicom.headers import load_pydicom
from retroln.imaging.dicom.layout import LONGEST_SIDE

FRAME_SHARE = 24
"""Times the largest frame; JPEG 2000 and JPEG lossless of 4096 x 4096 took 10 to 11 by GDCM 3.2.6."""
FILE_SHARE = 2
"""Times the largest file: pydicom holds its pixels, and once more while it reads them."""
_FRAME_BYTES = LONGEST_SIDE**2 * 2


def main() -> None:
    """Decode every frame that is asked for, or say what is wrong with the first that cannot be."""
    with os.fdopen(os.dup(1), "wb") as answer:
        os.dup2(2, 1)  # what a codec prints is no answer
        try:
            _decode(json.load(sys.stdin), answer)
        except InputError as error:
            said = {name: getattr(error, name) for name in ("what", "reason", "expected", "got", "fix")}
            answer.write(json.dumps(said).encode() + b"\n")


def _decode(jobs: dict[str, object], answer: IO[bytes]) -> None:
    syntax, files = jobs["syntax"], jobs["files"]
    assert isinstance(syntax, str) and isinstance(files, list)
    load_pydicom()  # part of what is held at the start
    most_bytes = _bound_memory(Path(path) for path, _ in files)
    for path, places in files:
        try:
            for stored in frames(Path(path), places, syntax):
                data = np.ascontiguousarray(stored).tobytes()
                head = {"dtype": stored.dtype.str, "shape": stored.shape, "bytes": len(data)}
                answer.write(json.dumps(head).encode() + b"\n" + data)
                answer.flush()
        except MemoryError:
            _unbound_memory()  # for the words of the error
            raise undecodable(Path(path), f"more than {most_bytes >> 20} MiB taken to decode it") from None


def _bound_memory(files: Iterable[Path]) -> int:
    """Let this process take so many bytes beside what it holds; returns how many."""
    largest = max((path.stat().st_size for path in files), default=0)
    most = FILE_SHARE * largest + FRAME_SHARE * _FRAME_BYTES
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    wanted = _held_bytes() + most
    resource.setrlimit(
        resource.RLIMIT_DATA, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
    )
    return most


def _unbound_memory() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (hard, hard))


def _held_bytes() -> int:
    """What RLIMIT_DATA counts: memory that only this process can write to, which code in libraries is not."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmData:")).split()[1]) << 10


if __name__ == "__main__":
    main()
