"""The one place where Hounsfield units become what the network sees."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.settings import Hu


def scale(array: NDArray[Any], hu: Hu) -> NDArray[np.float32]:
    """HU clipped to the window and scaled to 0..1, float32, same memory order.

    The window -1000..400 is the predecessor's convention (RetroLN-nnUNet `crop.py`); it is stored with
    every model, so training and inference cannot differ.
    """
    scaled: NDArray[np.float32] = np.clip(array, hu.low, hu.high, dtype=np.float32)
    scaled -= np.float32(hu.low)
    scaled /= np.float32(hu.high - hu.low)
    return scaled
