"""The child that decodes: `python -m retroln.imaging.dicom.decoder`, told what by JSON on its input.

Its answer is, for each frame, a line of JSON (dtype, shape, bytes) and the values, or a line with an error.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO

import numpy as np

from retroln.errors import InputError
from retroln.imaging.dicom.decoding import frames


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
    for path, places in files:
        for stored in frames(Path(path), places, syntax):
            data = np.ascontiguousarray(stored).tobytes()
            head = {"dtype": stored.dtype.str, "shape": stored.shape, "bytes": len(data)}
            answer.write(json.dumps(head).encode() + b"\n" + data)
            answer.flush()


if __name__ == "__main__":
    main()
