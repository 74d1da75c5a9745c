"""What a reconstruction is told: the gradient of L1 + w_p LPIPS + w_t L_texture + lambda w_d L_GAN by its pixels.

L_GAN has a say where the scan is not at an end of its scale; lambda compares both gradients there.
"""

import torch
from torch import nn

from .discriminator import PatchDiscriminator, diff_augment
from .losses import adaptive_weight, hinge_loss_generator
from .perceptual import PerceptualLoss
from .windows import crop, draw_windows

# Of the losses on their way down through networks in half precision, which ends at 6e-8: the gradient of a mean over so
# many pixels has smaller ones. A power of two alters nothing else.
SCALE = 2.0**10

# What a discriminator judges of images and of reconstructions, a map for each of its levels.
Judged = tuple[list[torch.Tensor], list[torch.Tensor]]


class Criterion:
    """The losses of a VQGAN's reconstruction, each differentiated once, down to the pixels.

    Args:
        discriminator: unwrapped: no gradient is worked out for it here. A `PatchDiscriminator` judges augmented pixels,
            a `ProjectedDiscriminator` the features of `perceptual`.
        last_layer: of the decoder, where the adaptive weight lambda compares both gradients.
        perceptual: LPIPS, or None to do without.
        window_size: side of the window of each image that `perceptual` sees, in pixels.
        perceptual_weight, texture_weight, disc_weight: w_p, w_t and w_d; 0 for w_t does without.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        last_layer: nn.Conv2d,
        perceptual: PerceptualLoss | None,
        window_size: int,
        perceptual_weight: float,
        texture_weight: float,
        disc_weight: float,
    ):
        self.discriminator, self.last_layer, self.perceptual = discriminator, last_layer, perceptual
        self.window_size, self.perceptual_weight = window_size, perceptual_weight
        self.texture_weight, self.disc_weight = texture_weight, disc_weight
        last_layer.register_forward_pre_hook(lambda _, inputs: setattr(self, "last_input", inputs[0].detach()))

    def __call__(
        self, images: torch.Tensor, output: torch.Tensor, adversarial: bool
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor], Judged | None]:
        """
        Args:
            images: (B, 1, H, W) in [-1, 1].
            output: their reconstructions, a leaf that requires its gradient.
            adversarial: whether the discriminator takes part.

        Returns:
            the gradient (B, 1, H, W); the losses by name; and what the discriminator judges, of images and of output,
            None unless it takes part. None of them has a graph.
        """
        shown = as_shown(images, output)  # beyond an end of the scale nothing is wrong
        losses = {"l1": (images - shown).abs().mean()}
        reconstruction_loss = losses["l1"]
        if self.perceptual is not None:
            real, fake = self._features(images, shown)
            losses["lpips"] = self.perceptual.distance(real, fake)
            reconstruction_loss = reconstruction_loss + self.perceptual_weight * losses["lpips"]
            if self.texture_weight:
                losses["texture"] = self.perceptual.texture(real, fake)
                reconstruction_loss = reconstruction_loss + self.texture_weight * losses["texture"]
        gradient = pixel_gradient(reconstruction_loss, output, retain_graph=adversarial)
        if not adversarial:
            return gradient, detached(losses), None
        if isinstance(self.discriminator, PatchDiscriminator):
            real, fake = [diff_augment(images)], [diff_augment(shown)]
        losses["gan"] = hinge_loss_generator(self.discriminator(fake))
        adversarial_gradient = pixel_gradient(losses["gan"], output, retain_graph=False)
        # Nor is there a texture to find at an end. Left in, air is what a discriminator tells scans by, which have it
        # exact: nearly all of both gradients at the last layer comes from there, and lambda says nothing of tissue.
        ended = images.abs() >= 1
        adversarial_gradient = adversarial_gradient.masked_fill(ended, 0)
        of_tissue = gradient.masked_fill(ended, 0), adversarial_gradient
        losses["lambda"] = adaptive_weight(*of_tissue, self.last_input, self.last_layer.weight)
        gradient = gradient + self.disc_weight * losses["lambda"] * adversarial_gradient
        return gradient, detached(losses), (real, [judged.detach() for judged in fake])

    @torch.no_grad()
    def judged(self, images: torch.Tensor, output: torch.Tensor) -> Judged:
        """What the discriminator judges, of images and of output, where nobody else learns."""
        shown = as_shown(images, output)
        if isinstance(self.discriminator, PatchDiscriminator):
            return [diff_augment(images)], [diff_augment(shown)]
        return self._features(images, shown)

    def _features(self, images: torch.Tensor, shown: torch.Tensor) -> Judged:
        """The maps of the same windows of both; those of the images without a graph."""
        windows = draw_windows(len(images), images.shape[-2:], self.window_size, images.device)
        with torch.no_grad():
            real = self.perceptual.features(crop(images, windows))
        return real, self.perceptual.features(crop(shown, windows))


def as_shown(images: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
    """Reconstructions with the scan's own pixels where it is at an end of its scale, as in air, and they beyond it."""
    return torch.where((images.abs() >= 1) & (output * images >= 1), images, output)


def detached(losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without their graph, which would stay in memory through the next step."""
    return {name: loss.detach() for name, loss in losses.items()}


def pixel_gradient(loss: torch.Tensor, output: torch.Tensor, retain_graph: bool) -> torch.Tensor:
    """Gradient of a loss by the pixels of `output`, of the same shape, scaled on its way and back at its end."""
    (gradient,) = torch.autograd.grad(SCALE * loss, output, retain_graph=retain_graph)
    return gradient / SCALE
