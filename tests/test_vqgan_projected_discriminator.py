"""The discriminator on the features of LPIPS."""

import torch

from vq_ihdm.vqgan.losses import hinge_loss_discriminator
from vq_ihdm.vqgan.projected_discriminator import ProjectedDiscriminator


def test_projected_discriminator_judges_every_level_but_the_finest(perceptual):
    features = perceptual.features(torch.rand(3, 1, 64, 64) * 2 - 1)
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8).eval()
    logits = discriminator(features)
    assert [level.shape for level in logits] == [(3, 1, *maps.shape[2:]) for maps in features[1:]]
    alone = discriminator([maps[1:2] for maps in features])
    for level, one in zip(logits, alone, strict=True):
        torch.testing.assert_close(level[1:2], one)


def test_projected_discriminator_is_blind_to_the_scale_of_features(perceptual):
    """It sees their pattern: a level of large activations counts no more than one of small ones."""
    features = perceptual.features(torch.rand(2, 1, 64, 64) * 2 - 1)
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8).eval()
    scaled = [maps * 10**level for level, maps in enumerate(features)]
    for level, same in zip(discriminator(features), discriminator(scaled), strict=True):
        torch.testing.assert_close(level, same, rtol=1e-4, atol=1e-5)


def test_projections_are_fixed_and_saved(perceptual):
    first, second = (ProjectedDiscriminator(perceptual.feature_channels, 8) for _ in range(2))
    assert not any("projection" in name for name, _ in first.named_parameters())
    assert not torch.equal(first.projection_0, second.projection_0)
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.projection_0, second.projection_0)


def test_projected_discriminator_learns_to_tell_noise_from_smooth_images(perceptual):
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2, betas=discriminator.betas)
    noise = perceptual.features(torch.rand(4, 1, 64, 64) * 2 - 1)
    smooth = perceptual.features(torch.linspace(-1, 1, 64).expand(4, 1, 64, 64))
    losses = []
    for _ in range(20):
        losses.append(hinge_loss_discriminator(discriminator(smooth), discriminator(noise)))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2
