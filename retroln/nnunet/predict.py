"""Nodes in a crop, from memory to memory, as nnU-Net would find them from file to file."""

from __future__ import annotations

import io
import json
import threading
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retroln.errors import InputError, UserError
from retroln.imaging import hounsfield, intensity
from retroln.imaging.volume import Volume
from retroln.nnunet.arithmetic import autocast, of_network
from retroln.nnunet.bundle import CHECKPOINT, CONFIGURATION, Bundle
from retroln.nnunet.environment import quiet
from retroln.nnunet.plans import PROFILE_KEY
from retroln.settings import AskedArithmetic, Device

_EVEN = 0.5


class Predictor:
    """A bundle's networks, loaded once. Safe to share between threads, which take turns.

    Folds are averaged before the decision; tiles overlap by half with Gaussian weights; mirroring
    follows the checkpoint: all stock nnU-Net behaviour, without its temporary files and processes.
    A voxel is node from the contract's `min_probability`; 0.5, the default, is nnU-Net's own decision.
    On a CPU the networks are laid out channels-last and compute in `arithmetic`
    (`retroln.nnunet.arithmetic.of_network`).
    """

    def __init__(self, bundle: Bundle, device: Device = "auto", arithmetic: AskedArithmetic = "auto") -> None:
        """Load the networks of a verified bundle (`retroln.nnunet.bundle.load`).

        Raises:
            IntegrityError: a file changed after the bundle was verified.
            UserError: `device` is "cuda" and there is none.
        """
        self.bundle = bundle
        self.contract = bundle.contract
        self._lock = threading.Lock()
        with quiet():
            self._network = _open(bundle, _device(device))
        device_type = self._network.device.type
        self.arithmetic = of_network(_profile(self._network), device_type, arithmetic)
        if device_type == "cpu":
            import torch

            self._network.network.to(memory_format=torch.channels_last_3d)
            if self.arithmetic == "float32":
                _convolve_by_onednn(self._network.network)

    def predict(self, ct: Volume) -> Volume:
        """Label map of a crop in Hounsfield units.

        Args:
            ct: RAS+ crop in HU, cut as the contract's region says; its values are scaled here.

        Returns:
            uint8, 0 background, 1 lymph node, on the grids of `ct`.

        Raises:
            InputError: `not_hu` if the crop is already scaled, or surely in other units
                (`retroln.imaging.hounsfield`); `not_finite`, `not_3d`.
        """
        labels, _ = self._run(ct, probabilities=False)
        return ct.with_array(labels)

    def predict_probabilities(self, ct: Volume) -> tuple[Volume, Volume]:
        """As `predict`, with the probability of lymph node (float32, 0..1) as a second volume.

        Voxels outside nnU-Net's crop to non-zero values (air at the window's low end) have 0.
        """
        labels, probabilities = self._run(ct, probabilities=True)
        return ct.with_array(labels), ct.with_array(probabilities)

    def _run(self, ct: Volume, *, probabilities: bool) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        image = _to_nnunet(ct, self.contract.hu)
        # nnU-Net's reader takes the spacing from the header, which stores float32.
        spacing = [float(np.float32(side)) for side in ct.grid.spacing_mm[::-1]]
        limit = self.contract.min_probability
        needed = probabilities or limit != _EVEN
        with self._lock, quiet():
            labels, found = _predict(self._network, image, spacing, needed, self.arithmetic)
        if limit != _EVEN:
            labels = found >= limit
        return _from_nnunet(labels).astype(np.uint8), _from_nnunet(found).astype(np.float32)


def _to_nnunet(ct: Volume, hu: Any) -> NDArray[np.float32]:
    """Scaled crop as SimpleITK would hand it over: (channel, z, y, x)."""
    _require_hu(ct.array)
    scaled = intensity.scale(ct.array, hu)
    return np.ascontiguousarray(scaled.transpose(2, 1, 0)[None], dtype=np.float32)


def _from_nnunet(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array.transpose(2, 1, 0))


def _require_hu(array: NDArray[Any]) -> None:
    if array.ndim != 3 or not array.size:
        raise InputError("crop is not a volume", reason="not_3d", expected="3 axes", got=str(array.shape))
    low, high = float(array.min()), float(array.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InputError("crop holds NaN or infinity", reason="not_finite", fix="export the scan again")
    for doubt in hounsfield.doubts(array):
        raise InputError(
            doubt.what,
            reason="not_hu",
            expected=doubt.expected,
            got=doubt.got,
            fix="give the crop before scaling (`retroln crop --no-normalize`)",
        )


def _device(name: Device) -> Any:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device", expected="a GPU that torch can use", fix="device=auto or cpu")
    is_cuda = name == "cuda" or (name == "auto" and torch.cuda.is_available())
    return torch.device("cuda" if is_cuda else "cpu")


def _open(bundle: Bundle, device: Any) -> Any:
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
    from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans, described = (
        PlansManager(json.loads(bundle.read("plans.json"))),
        json.loads(bundle.read("dataset.json")),
    )
    configuration = plans.get_configuration(CONFIGURATION)
    network = get_network_from_plans(
        configuration.network_arch_class_name,
        configuration.network_arch_init_kwargs,
        configuration.network_arch_init_kwargs_req_import,
        determine_num_input_channels(plans, configuration, described),
        plans.get_label_manager(described).num_segmentation_heads,
        deep_supervision=False,
    )
    checkpoints = [_checkpoint(bundle, fold) for fold in bundle.folds]
    weights = [checkpoint["network_weights"] for checkpoint in checkpoints]
    network.load_state_dict(weights[0])
    mirrored = checkpoints[0]["inference_allowed_mirroring_axes"]
    predictor = nnUNetPredictor(use_mirroring=mirrored is not None, device=device, allow_tqdm=False)
    name = checkpoints[0]["trainer_name"]
    predictor.manual_initialization(network, plans, configuration, weights, described, name, mirrored)
    return predictor


def _convolve_by_onednn(network: Any) -> None:
    """Torch gives a single small patch in float32 to an algorithm of its own: four times as long."""
    import torch

    def convolved(layer: Any, image: Any) -> Any:
        return torch.mkldnn_convolution(
            image, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups
        )

    if torch.backends.mkldnn.is_available():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Conv3d):
                layer.forward = partial(convolved, layer)


def _profile(predictor: Any) -> str:
    return str(predictor.plans_manager.plans.get(PROFILE_KEY))


def _checkpoint(bundle: Bundle, fold: int) -> dict[str, Any]:
    """Tensors and plain values alone: `weights_only` refuses any other pickle, should a hash ever lie."""
    import torch

    data = io.BytesIO(bundle.read(f"fold_{fold}/{CHECKPOINT}"))
    found: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    return found


def _predict(
    predictor: Any, image: NDArray[np.float32], spacing: list[float], probabilities: bool, arithmetic: str
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels and the probability of label 1 (zeros unless asked for), both (z, y, x)."""
    import torch
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as to_segmentation,
    )

    plans, configuration = predictor.plans_manager, predictor.configuration_manager
    preprocessor = configuration.preprocessor_class(verbose=False)
    data, _, properties = preprocessor.run_case_npy(
        image, None, {"spacing": spacing}, plans, configuration, predictor.dataset_json
    )
    with autocast(arithmetic):
        logits = predictor.predict_logits_from_preprocessed_data(torch.from_numpy(data)).cpu()
    found = to_segmentation(
        logits,
        plans,
        configuration,
        predictor.label_manager,
        properties,
        probabilities,
        torch.get_num_threads(),
    )
    return (found[0], found[1][1]) if probabilities else (found, np.zeros(image.shape[1:], np.float32))
