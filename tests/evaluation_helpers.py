"""A tiny feature network and real-looking sets of people for the tests of `vq_ihdm.evaluation`."""

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from scipy import ndimage
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from vq_ihdm.evaluation.image_sets import ImageSet


class TinyExtractor(FeatureExtractorBase):
    """Sixteen pooled features and ten logits from one random convolution."""

    def __init__(self, name="tiny", features_list=("16", "logits"), seed=0, **_):
        super().__init__(name, features_list)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.convolution = torch.nn.Conv2d(3, 16, 5, stride=2)
            self.head = torch.nn.Linear(16, 10)

    @staticmethod
    def get_provided_features_list():
        return ("16", "logits")

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "logits" if metric == "isc" else "16"

    def forward(self, images):
        pooled = torch.relu(self.convolution(images.float() / 255)).mean(dim=(2, 3)) * 10
        outputs = {"16": pooled, "logits": self.head(pooled)}
        return tuple(outputs[name] for name in self.features_list)


def people(num_subjects: int, slices: int = 4, size: int = 32, seed: int = 0) -> ImageSet:
    """Round heads with a dark centre; people differ, and the slices of one person are alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    images = []
    for _ in range(num_subjects):
        radius, ventricle, texture = rng.uniform(0.34, 0.44), rng.uniform(0.06, 0.14), rng.normal(size=(size, size))
        for level in range(slices):
            distance = np.hypot(x, y) / size
            image = np.where(distance < radius, 170 + 30 * level / slices, 0) + 60 * ndimage.gaussian_filter(texture, 2)
            image = np.where(distance < ventricle, 40, image) * (distance < radius)
            images.append(image + rng.normal(size=(size, size)))
    subjects, levels = np.divmod(np.arange(num_subjects * slices), slices)
    images = np.stack(images).clip(0, 255).astype(np.uint8)
    return ImageSet(images, subjects, levels, as_split(images))


def as_split(images: np.ndarray, **columns: list) -> Dataset:
    """A split with a column of images, (N, H, W) of any depth."""
    rows = {"image": [PILImage.fromarray(image) for image in images], **columns}
    return Dataset.from_dict(rows).cast_column("image", Image(mode="L" if images.dtype == np.uint8 else "I;16"))


def write_data_set(folder: Path, **splits: ImageSet) -> Path:
    """Image sets as `load_dataset(folder)` reads them; subjects are named after their split."""
    for name, image_set in splits.items():
        (folder / "data").mkdir(parents=True, exist_ok=True)
        subjects = [f"{name}{subject}" for subject in image_set.subjects]
        split = as_split(image_set.images, subject=subjects, slice=image_set.slices.tolist())
        split.to_parquet(folder / "data" / f"{name}-00000-of-00001.parquet")
    return folder
