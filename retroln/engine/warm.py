"""Loaded predictors, kept between cases: loading costs more than predicting one."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from retroln.nnunet import bundle
from retroln.nnunet.predict import Predictor
from retroln.settings import AskedArithmetic, Device


def predictor_for(
    bundle_dir: Path, device: Device = "auto", arithmetic: AskedArithmetic = "auto"
) -> Predictor:
    """The predictor of a bundle, from memory if the same bytes were opened before.

    Every call verifies the bundle, of which only files that are new or were written to are read; a bundle
    replaced on disk is loaded anew. The two most recent are kept.

    Raises:
        NotFoundError, IntegrityError: as `retroln.nnunet.bundle.load`.
    """
    sealed = bundle.load(bundle_dir.resolve())
    return _predictor(sealed.path, sealed.sha256, device, arithmetic)


def device_name() -> str:
    """What "auto" would use on this machine."""
    import torch

    return f"cuda ({torch.cuda.get_device_name()})" if torch.cuda.is_available() else "cpu (no GPU found)"


@lru_cache(maxsize=2)
def _predictor(path: Path, sha256: str, device: Device, arithmetic: AskedArithmetic) -> Predictor:
    return Predictor(bundle.load(path, sha256), device, arithmetic)
