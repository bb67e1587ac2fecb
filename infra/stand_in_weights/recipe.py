"""What the stand-in network is, what it learns from, and how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from retroln.anatomy.totalseg_weights import FAST, NETWORKS, PLANS
from retroln.nnunet.bundle import CONFIGURATION
from retroln.nnunet.model_folder import STAND_IN
from retroln.nnunet.plans import architecture, resampling

SAID = "a small network trained on phantoms, not TotalSegmentator's weights"
TOTAL_IDS = (*range(26, 34), 103, 115)
"""What is learnt, in the ids of task `total`: S1 to T11, the left and the right 12th rib."""
CLIP_HU, MEAN_HU, STD_HU = (-200.0, 600.0), 100.0, 200.0


@dataclass(frozen=True)
class Recipe:
    """One stand-in network.

    Attributes:
        ids: label of each output after the background, in the network's own numbering.
        spacing_mm: isotropic, as TotalSegmentator resamples for the network.
        patch: voxels along z, y, x.
        features: per stage, finest first.
        phantoms: how many made-up patients it learns from.
    """

    task_id: int
    ids: tuple[int, ...]
    spacing_mm: float
    patch: tuple[int, int, int]
    features: tuple[int, ...]
    phantoms: int
    iterations: int

    @property
    def n_labels(self) -> int:
        """Labels that TotalSegmentator's network has, background included."""
        return NETWORKS[self.task_id].labels

    @property
    def strides(self) -> list[tuple[int, ...]]:
        """Per stage; each after the first halves every axis with an even number of voxels left."""
        strides, sides = [(1, 1, 1)], self.patch
        while len(strides) < len(self.features):
            strides.append(tuple(2 - side % 2 for side in sides))
            sides = tuple(side // step for side, step in zip(sides, strides[-1], strict=True))
        return strides

    def plans(self) -> dict[str, Any]:
        """nnU-Net's plans."""
        spacing = [self.spacing_mm] * 3
        stages = len(self.features)
        configuration = {
            "data_identifier": f"{PLANS}_{CONFIGURATION}",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 1,
            "patch_size": list(self.patch),
            "median_image_size_in_voxels": list(self.patch),
            "spacing": spacing,
            "normalization_schemes": ["CTNormalization"],
            "use_mask_for_norm": [False],
            **resampling(),
            "architecture": architecture(
                self.features,
                self.strides,
                ((1, 3, 3), *((3, 3, 3),) * (stages - 1)),
                (1, *(2,) * (stages - 1)),
                convs_decoder=(1,) * (stages - 1),
            ),
            "batch_dice": False,
        }
        intensity = {
            "mean": MEAN_HU,
            "std": STD_HU,
            "percentile_00_5": CLIP_HU[0],
            "percentile_99_5": CLIP_HU[1],
        }
        return {
            "dataset_name": NETWORKS[self.task_id].dataset,
            "plans_name": PLANS,
            "original_median_spacing_after_transp": spacing,
            "original_median_shape_after_transp": list(self.patch),
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "configurations": {CONFIGURATION: configuration},
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {"0": intensity},
        }

    def dataset(self) -> dict[str, Any]:
        """nnU-Net's description, which says that this is a stand-in."""
        named = {f"label_{value}": value for value in range(1, self.n_labels)}
        return {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, **named},
            "numTraining": self.phantoms,
            "file_ending": ".nii.gz",
            STAND_IN: SAID,
        }


# The patch is as high as the whole phantom or nearly: the levels look alike, and are told apart by counting
# from the sacrum or from the last rib. With 8 features at the end, fewer than there are labels, one level in
# the middle of the spine was never chosen. The two finest stages have as many, since the finest begins as an
# enlargement of the other.
RECIPE = Recipe(FAST, TOTAL_IDS, 3.0, (96, 48, 48), (16, 16, 32, 64, 96, 96), 96, 450)
