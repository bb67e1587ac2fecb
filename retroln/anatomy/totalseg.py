"""TotalSegmentator's own function, called in this process with its networks loaded once.

The function does all the work: orientation, cropping, resampling, putting the parts together. Two functions
that it calls are replaced meanwhile, here and nowhere else: the one that starts processes, loads weights and
predicts (`_Call.predict` predicts the same with a network that stays loaded), and the one that downloads
weights (`_Call.no_download`). A third is listened to: `crop_to_mask` tells which part of the scan was looked
at. Other versions may call other functions, so exactly `VERSION` is accepted.
"""

from __future__ import annotations

import importlib.metadata
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from retroln.anatomy.totalseg_weights import PLANS, Weights
from retroln.errors import MissingExtraError, NotFoundError, UserError, install_from_checkout
from retroln.files import write_json
from retroln.imaging.geometry import Grid, VoxelBox, require_same_grid, upright
from retroln.imaging.volume import Volume
from retroln.nnunet.environment import quiet
from retroln.nnunet.model_folder import predict_folder

VERSION = "2.18.0"
_PATHS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results", "TOTALSEG_WEIGHTS_PATH", "TOTALSEG_HOME_DIR")
_one_at_a_time = threading.Lock()  # it works through environment variables and module globals

Labels = NDArray[np.uint8]
Device = Literal["cpu", "gpu"]


@dataclass(frozen=True, eq=False)
class Labelled:
    """A label map of a task, RAS+, on the grid of the CT that it was made from.

    Attributes:
        labels: ids of the task.
        part: what of the scan was looked at; None when the rough network saw nothing worth a look.
    """

    labels: Labels
    part: VoxelBox | None


def require_installed() -> None:
    """Raise `MissingExtraError` unless exactly the version that this module was written for is there."""
    try:
        found = importlib.metadata.version("TotalSegmentator")
    except importlib.metadata.PackageNotFoundError:
        found = "not installed"
    if found != VERSION:
        raise MissingExtraError(
            f"TotalSegmentator {VERSION} is needed", got=found, fix=install_from_checkout("landmarks")
        )


def device_of(name: Literal["auto", "cpu", "gpu"]) -> Device:
    """What TotalSegmentator calls the device. It would itself fall back to the CPU without a word.

    Raises:
        UserError: `name` is "gpu" and torch finds none.
    """
    import torch

    has_gpu = torch.cuda.is_available()
    if name == "gpu" and not has_gpu:
        raise UserError(
            "no GPU for TotalSegmentator",
            expected="a GPU that torch can use",
            fix="RETROLN_TOTALSEG__DEVICE=auto or cpu",
        )
    return "gpu" if has_gpu and name != "cpu" else "cpu"


@dataclass(frozen=True, eq=False)
class Scan:
    """One CT, to be given to TotalSegmentator any number of times; calls from several threads take turns.

    Attributes:
        ct: in Hounsfield units; any orientation and spacing.
        weights: a bundle with the networks that the tasks need.
    """

    ct: Volume
    weights: Weights
    device: Device

    def call(
        self, *, task: str, fast: bool = False, roi_subset: Sequence[str] = (), robust_crop: bool = False
    ) -> Labelled:
        """The label map of a task. `roi_subset` has it look at a part of the scan alone, and label no more.

        Raises:
            MissingExtraError: TotalSegmentator is not there in the right version.
            NotFoundError, IntegrityError: a network's file is missing or has other bytes than recorded.
        """
        require_installed()
        from nibabel.nifti1 import Nifti1Image

        call, array = _Call(self.weights), np.asarray(self.ct.array)
        grid = upright(self.ct.grid)  # voxels are all that counts, and SimpleITK reads no sheared grid
        image = Nifti1Image(array, grid.affine, dtype=_nifti_type(array))
        with _one_at_a_time, quiet(), _surroundings(self.weights.folder), call.in_place() as totalsegmentator:
            try:
                made = totalsegmentator(
                    image,
                    None,
                    ml=True,
                    task=task,
                    fast=fast,
                    roi_subset=list(roi_subset) or None,
                    robust_crop=robust_crop,
                    device=self.device,
                    quiet=True,
                    nr_thr_saving=1,
                )
            except _NothingSeen:
                return Labelled(np.zeros(grid.shape, np.uint8), None)
            except SystemExit as error:  # its way of refusing an input
                raise RuntimeError(f"TotalSegmentator gave up: {error}") from error
        require_same_grid(
            grid, Grid(made.shape, np.asarray(made.affine)), what="TotalSegmentator's label map"
        )
        whole = VoxelBox((0, 0, 0), grid.shape)
        return Labelled(np.asarray(made.dataobj, np.uint8), call.part or whole)


class _NothingSeen(Exception):
    """The rough network marked nothing. TotalSegmentator would go on with the whole scan."""


@dataclass(eq=False)
class _Call:
    """What stands in TotalSegmentator's place while one call of it runs."""

    weights: Weights
    part: VoxelBox | None = field(default=None, init=False)

    @contextmanager
    def in_place(self) -> Iterator[Callable[..., Any]]:
        """Its function, with the replacements of the module's docstring in force."""
        import torch
        from totalsegmentator import nnunet, python_api

        threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
        replaced = [
            (nnunet, "nnUNetv2_predict", self.predict),
            (nnunet, "crop_to_mask", self._listening(nnunet.crop_to_mask)),
            (python_api, "download_pretrained_weights", self.no_download),
        ]
        genuine = [getattr(module, name) for module, name, _ in replaced]
        try:
            for module, name, ours in replaced:
                setattr(module, name, ours)
            yield python_api.totalsegmentator
        finally:
            for (module, name, _), theirs in zip(replaced, genuine, strict=True):
                setattr(module, name, theirs)
            torch.set_num_threads(threads)
            torch.backends.cudnn.benchmark = benchmark

    def no_download(self, task_id: int) -> None:
        """In place of `download_pretrained_weights`.

        TotalSegmentator asks for all five parts of `total`, of which a subset loads few; what is loaded and
        is not in the bundle fails in `predict`.
        """

    def predict(
        self,
        dir_in: Path,
        dir_out: Path,
        task_id: int,
        model: str = "3d_fullres",
        folds: Sequence[int] | None = None,
        trainer: str = "nnUNetTrainer",
        tta: bool = False,
        num_threads_preprocessing: int = 3,
        num_threads_nifti_save: int = 2,
        plans: str = "nnUNetPlans",
        device: Any = "cuda",
        quiet: bool = False,
        step_size: float = 0.5,
        save_probabilities_path: Path | None = None,
        use_cropped_logits_resampling: bool = False,
    ) -> None:
        """In place of `nnUNetv2_predict`, whose parameters these are: without processes, network kept."""
        network = self.weights.model(task_id)
        asked = f"{trainer}__{plans}__{model}"
        if network.path.name != asked or list(folds or []) != [0] or plans != PLANS:
            raise NotFoundError(
                "TotalSegmentator asks for another network", file=asked, expected=str(network.path)
            )
        if save_probabilities_path or use_cropped_logits_resampling:
            raise NotImplementedError("probabilities and higher-order resampling")
        predict_folder(network, dir_in, dir_out, device=str(device), tile_step=step_size, mirroring=tta)

    def _listening(self, crop_to_mask: Callable[..., Any]) -> Callable[..., Any]:
        def listening(image: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
            if not np.any(np.asanyarray(mask.dataobj)):
                raise _NothingSeen
            image, box = crop_to_mask(image, mask, *args, **kwargs)
            (a, b), (c, d), (e, f) = box
            self.part = VoxelBox((a, c, e), (b, d, f))
            return image, box

        return listening


@contextmanager
def _surroundings(weights: Path) -> Iterator[None]:
    """A home of its own that switches usage statistics off, and the environment as it was afterwards."""
    before = {name: os.environ.get(name) for name in _PATHS}
    with tempfile.TemporaryDirectory(prefix="totalseg-") as home:
        config = {
            "totalseg_id": "retroln",
            "send_usage_stats": False,
            "prediction_counter": 0,
            "statistics_disclaimer_shown": True,
        }
        write_json(Path(home) / "config.json", config)
        os.environ["TOTALSEG_HOME_DIR"], os.environ["TOTALSEG_WEIGHTS_PATH"] = home, str(weights)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


def _nifti_type(array: NDArray[Any]) -> Any:
    """The array's type, or one that NIfTI knows and whose values it holds."""
    if array.dtype.kind in "iu" and array.dtype.itemsize > 4:
        return np.int32
    return np.float32 if array.dtype == np.float16 else array.dtype
