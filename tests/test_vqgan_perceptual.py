"""LPIPS on a trunk from a file."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torchvision.models import alexnet, vgg16

from vq_ihdm.errors import InputError
from vq_ihdm.vqgan.perceptual import SMALLEST_SIDE, PerceptualLoss
from vq_ihdm.vqgan.windows import crop, draw_windows


def test_perceptual_loss_has_the_trunk_of_the_file(perceptual, trunk):
    again = PerceptualLoss("alex", str(trunk))
    first, second = torch.rand(2, 2, 1, 48, 48) * 2 - 1
    assert perceptual(first, second) == again(first, second) > 0
    torch.manual_seed(1)
    net = alexnet(weights=None)
    net.features.load_state_dict({k.removeprefix("features."): v for k, v in load_file(trunk).items()})
    inputs = perceptual.lpips.scaling_layer(first.expand(-1, 3, -1, -1))
    torch.testing.assert_close(perceptual.lpips.net(inputs).relu1, net.features[:2](inputs))


def test_the_smallest_images(trunk, tmp_path):
    with torch.device("meta"):
        names_and_shapes = vgg16().features.state_dict().items()
    weights = {f"features.{name}": torch.zeros(weight.shape) for name, weight in names_and_shapes}
    save_file(weights, tmp_path / "vgg.safetensors")
    for name, file in {"alex": trunk, "vgg": tmp_path / "vgg.safetensors"}.items():
        loss = PerceptualLoss(name, str(file))
        smallest = torch.rand(2, 1, SMALLEST_SIDE[name], SMALLEST_SIDE[name])
        assert loss.features(smallest)[-1].shape[2:] == (1, 1)
        with pytest.raises(RuntimeError, match="too small"):
            loss.features(smallest[..., 1:])


def test_perceptual_loss_is_a_fixed_measure(perceptual):
    first, second = torch.rand(2, 2, 1, 48, 48) * 2 - 1
    perceptual.train()
    assert perceptual(first, first) == 0
    assert perceptual(first, second) == perceptual(first, second)
    assert not any(p.requires_grad for p in perceptual.parameters())


def test_gradients_pass_through_the_perceptual_loss(perceptual):
    images = torch.rand(2, 1, 48, 48)
    reconstructions = torch.rand(2, 1, 48, 48, requires_grad=True)
    (gradient,) = torch.autograd.grad(perceptual(images, reconstructions), reconstructions)
    assert gradient.any() and torch.isfinite(gradient).all()


def test_a_random_window_estimates_the_loss_of_the_whole(perceptual):
    """Stationary noise: every window is like the whole, up to edge effects of the trunk."""
    first, second = torch.rand(2, 1, 1, 160, 160) * 2 - 1
    windows = draw_windows(30, (160, 160), 64, torch.device("cpu"))
    cut = perceptual(crop(first.expand(30, -1, -1, -1), windows), crop(second.expand(30, -1, -1, -1), windows))
    assert cut.item() == pytest.approx(perceptual(first, second).item(), rel=0.1)


def test_a_wrong_trunk_is_refused_in_one_sentence(trunk, tmp_path):
    other_trunk = tmp_path / "vgg.safetensors"
    save_file({f"features.{n}.{kind}": torch.zeros(1) for n in (0, 2, 5) for kind in ("weight", "bias")}, other_trunk)
    with pytest.raises(InputError, match="lacks features"):
        PerceptualLoss("alex", str(other_trunk))
    wrong_shapes = tmp_path / "wrong.safetensors"
    save_file({name: tensor[:1].clone() for name, tensor in load_file(trunk).items()}, wrong_shapes)
    with pytest.raises(InputError, match="is no alex trunk") as error:
        PerceptualLoss("alex", str(wrong_shapes))
    assert "\n" not in str(error.value)
    text = tmp_path / "text.safetensors"
    text.write_text("no tensors")
    for path in (text, tmp_path / "missing.safetensors", tmp_path):
        with pytest.raises(InputError, match="cannot be read") as error:
            PerceptualLoss("alex", str(path))
        assert "\n" not in str(error.value)


def test_texture_is_what_is_there_wherever_it_is(perceptual):
    torch.manual_seed(0)
    noise = torch.rand(2, 1, 64, 64) * 2 - 1
    features = perceptual.features(noise)
    assert perceptual.texture(features, features) == 0
    elsewhere, smooth = perceptual.features(noise.roll((16, 16), (2, 3))), perceptual.features(noise * 0.3)
    assert perceptual.texture(features, elsewhere) < 0.25 * perceptual.texture(features, smooth)
    assert perceptual.distance(features, elsewhere) > 0.5 * perceptual.distance(features, smooth)  # LPIPS minds
    shuffled = [maps.flatten(2)[..., torch.randperm(maps[0, 0].numel())].view_as(maps) for maps in features]
    torch.testing.assert_close(perceptual.texture(features, shuffled), torch.tensor(0.0), atol=1e-5, rtol=0)
