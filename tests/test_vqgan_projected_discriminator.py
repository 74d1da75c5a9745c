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


def test_projected_discriminator_learns_which_channels_tell(perceptual):
    """A difference in one channel of many: what a fixed random mixing of few channels dilutes."""
    torch.manual_seed(0)
    discriminator = ProjectedDiscriminator(perceptual.feature_channels, 8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-3, betas=discriminator.betas)

    def draw(telling: float) -> list[torch.Tensor]:
        maps = [torch.randn(8, channels, 8, 8) for channels in perceptual.feature_channels]
        for level in maps:
            level[:, 3] += telling
        return maps

    before = [projection.weight.clone() for projection in discriminator.projections]
    for _ in range(60):
        hinge_loss_discriminator(discriminator(draw(1.0)), discriminator(draw(0.0))).backward()
        optimizer.step()
        optimizer.zero_grad()
    for projection, old in zip(discriminator.projections, before, strict=True):
        moved = (projection.weight - old).square().sum(dim=(0, 2, 3))
        assert moved.argmax() == 3
    with torch.no_grad():
        assert hinge_loss_discriminator(discriminator(draw(1.0)), discriminator(draw(0.0))) < 1


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
