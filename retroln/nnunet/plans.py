"""What network is trained on what patches: the published reference, or a small one for the CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from multiprocessing.pool import ThreadPool
from types import SimpleNamespace
from typing import Any, Literal

from retroln.files import write_json
from retroln.nnunet.bundle import CONFIGURATION
from retroln.nnunet.dataset import DATASET_ID, DATASET_NAME
from retroln.nnunet.environment import Folders, quiet
from retroln.settings import Profile

PROFILE_KEY = "retroln_profile"
PLANS_ID = {"reference": "RetroLNReferencePlans", "demo": "RetroLNDemoPlans"}

# The predecessor's 3d_fullres plan on 834 cases; every figure from docs/reference, axis order z, y, x.
_REFERENCE_STRIDES = ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))
_REFERENCE_KERNELS = ((1, 3, 3), *((3, 3, 3),) * 5)
_REFERENCE_FEATURES = (32, 64, 128, 256, 320, 320)
_REFERENCE_SPACING_MM = (2.5, 0.789, 0.789)
_REFERENCE_PATCH = (64, 192, 160)
_REFERENCE_MEDIAN_SHAPE = (71, 227, 188)
# Of crops scaled from -1000..400 HU to 0..1. CTNormalization uses these four and no others.
_REFERENCE_INTENSITY = {
    "mean": 0.7667,
    "std": 0.0287,
    "percentile_00_5": 0.6814,
    "percentile_99_5": 0.8486,
}

# A node and what is about it; a larger patch shows fewer nodes for the same arithmetic.
_DEMO_PATCH_LIMIT = (24, 40, 40)
# Most of a CPU's time goes into the finest stages, so they get flat kernels, few features, one convolution.
_DEMO_FEATURES = (8, 24, 64, 128)
_DEMO_CONVS = (1, 1, 2, 2)
_DEMO_CONVS_DECODER = (1, 1, 1)
_DEMO_FINEST_KERNEL = (1, 3, 3)
_DEMO_BATCH = 4
_DEMO_FINGERPRINT_VOXELS = 1e6  # nnU-Net's 1e8 sampled voxels take minutes and say nothing more here


def plan(folders: Folders, profile: Profile, processes: int = 1) -> str:
    """Write the plans of a profile for the raw dataset; `reference` is fixed, `demo` follows the data.

    The demo network is what nnU-Net's planner derives from the dataset's fingerprint, with the patch
    capped at 24x40x40, at most four stages and few features.

    Returns:
        The plans' identifier, for preprocessing and training.
    """
    fingerprint = _fingerprint(profile, processes)
    plans = _demo() if profile == "demo" else _reference(fingerprint)
    plans[PROFILE_KEY] = profile
    write_json(folders.preprocessed / DATASET_NAME / f"{PLANS_ID[profile]}.json", plans)
    return PLANS_ID[profile]


@contextlib.contextmanager
def threads_for_processes(module: Any, processes: int) -> Iterator[None]:
    """Let `module` of nnU-Net work on one thread when one process is asked for.

    nnU-Net spawns a pool even of one process, and each spends seconds importing torch.
    """
    genuine = module.multiprocessing
    if processes == 1:
        module.multiprocessing = SimpleNamespace(get_context=lambda _: SimpleNamespace(Pool=ThreadPool))
    try:
        yield
    finally:
        module.multiprocessing = genuine


def _fingerprint(profile: Profile, processes: int) -> dict[str, Any]:
    from nnunetv2.experiment_planning.dataset_fingerprint import fingerprint_extractor as module

    with quiet(), threads_for_processes(module, processes):
        extractor = module.DatasetFingerprintExtractor(DATASET_ID, processes)
        extractor.show_progress_bar = False
        if profile == "demo":
            extractor.num_foreground_voxels_for_intensitystats = _DEMO_FINGERPRINT_VOXELS
        found: dict[str, Any] = extractor.run(overwrite_existing=True)
    return found


def _reference(fingerprint: dict[str, Any]) -> dict[str, Any]:
    """The published plan as it was, its normalisation included, whatever the data's own statistics."""
    configuration = {
        "data_identifier": f"{PLANS_ID['reference']}_{CONFIGURATION}",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": list(_REFERENCE_PATCH),
        "median_image_size_in_voxels": list(_REFERENCE_MEDIAN_SHAPE),
        "spacing": list(_REFERENCE_SPACING_MM),
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        **resampling(),
        "architecture": architecture(
            _REFERENCE_FEATURES, _REFERENCE_STRIDES, _REFERENCE_KERNELS, (2,) * len(_REFERENCE_FEATURES)
        ),
        "batch_dice": False,
    }
    return {
        "dataset_name": DATASET_NAME,
        "plans_name": PLANS_ID["reference"],
        "original_median_spacing_after_transp": list(_REFERENCE_SPACING_MM),
        "original_median_shape_after_transp": list(_REFERENCE_MEDIAN_SHAPE),
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {CONFIGURATION: configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": dict(_REFERENCE_INTENSITY)},
    }


def resampling() -> dict[str, Any]:
    """Cubic for the image, linear for labels and probabilities, nearest along z where z is coarse."""
    kinds = {"data": (False, 3), "seg": (True, 1), "probabilities": (False, 1)}
    functions = {f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in kinds}
    arguments = {
        f"resampling_fn_{kind}_kwargs": {
            "is_seg": is_seg,
            "order": order,
            "order_z": 0,
            "force_separate_z": None,
        }
        for kind, (is_seg, order) in kinds.items()
    }
    return {**functions, **arguments}


def architecture(
    features: Any,
    strides: Any,
    kernels: Any,
    convs: Any,
    convs_decoder: Any = None,
    norm: Literal["instancenorm.InstanceNorm3d", "batchnorm.BatchNorm3d"] = "instancenorm.InstanceNorm3d",
) -> dict[str, Any]:
    """A plan's PlainConvUNet. `convs` per stage, finest first; `convs_decoder` coarsest first, by default
    as many as in the encoder.
    """
    stages = len(features)
    return {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": {
            "n_stages": stages,
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": [list(kernel) for kernel in kernels],
            "strides": [list(stride) for stride in strides],
            "n_conv_per_stage": list(convs),
            "n_conv_per_stage_decoder": list(convs_decoder or convs[-2::-1]),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.{norm}",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


def _demo() -> dict[str, Any]:
    from nnunetv2.experiment_planning.experiment_planners import default_experiment_planner as module
    from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

    with quiet():
        planner = module.ExperimentPlanner(DATASET_ID, plans_name=PLANS_ID["demo"])
        plans: dict[str, Any] = planner.plan_experiment()
    configuration = plans["configurations"][CONFIGURATION]
    patch = [min(n, limit) for n, limit in zip(configuration["patch_size"], _DEMO_PATCH_LIMIT, strict=True)]
    _, strides, kernels, patch, _ = get_pool_and_conv_props(configuration["spacing"], patch, 4, 999999)
    stages = min(len(strides), len(_DEMO_FEATURES))
    configuration["patch_size"] = [int(n) for n in patch]
    configuration["batch_size"] = _DEMO_BATCH
    configuration["batch_dice"] = True
    configuration["architecture"] = architecture(
        _DEMO_FEATURES[:stages],
        strides[:stages],
        [_DEMO_FINEST_KERNEL, *kernels[1:stages]],
        _DEMO_CONVS[:stages],
        _DEMO_CONVS_DECODER[: stages - 1],
        norm="batchnorm.BatchNorm3d",
    )
    plans["configurations"] = {CONFIGURATION: configuration}
    return plans
