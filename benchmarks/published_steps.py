"""Training steps as published, in plain PyTorch: what ours are timed against. Written anew after the papers' code."""

import torch
import torch.nn.functional as F
from torch import nn

from vq_ihdm.vqgan.discriminator import PatchDiscriminator
from vq_ihdm.vqgan.losses import hinge_loss_discriminator, hinge_loss_generator
from vq_ihdm.vqgan.model import TrainableVQModel
from vq_ihdm.vqgan.perceptual import PerceptualLoss

DISC_WEIGHT = 0.8


class TamingStep:
    """One step of VQGAN's generator and discriminator (taming-transformers).

    LPIPS is of the whole image. Both losses are differentiated down to the decoder's last layer for the adaptive weight
    and then once more together, and the discriminator's half of the step encodes and decodes the batch anew.

    Args:
        generator, perceptual: ours, so that the architecture is the same.
    """

    def __init__(self, generator: TrainableVQModel, perceptual: PerceptualLoss, disc_channels: int):
        self.generator, self.perceptual = generator, perceptual
        self.discriminator = PatchDiscriminator(disc_channels)
        self.optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-4, betas=(0.5, 0.9))
        self.optimizer_d = torch.optim.Adam(self.discriminator.parameters(), lr=1e-4, betas=(0.5, 0.9))

    def __call__(self, images: torch.Tensor) -> None:
        reconstructions, vq_loss, _, _ = self.generator(images)
        reconstruction_loss = (images - reconstructions).abs().mean() + self.perceptual(images, reconstructions)
        gan_loss = hinge_loss_generator(self.discriminator([reconstructions]))
        last_layer = self.generator.vq_model.decoder.conv_out.weight
        norms = [
            torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
            for loss in (reconstruction_loss, gan_loss)
        ]
        weight = (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()
        (reconstruction_loss + DISC_WEIGHT * weight * gan_loss + vq_loss).backward()
        self.optimizer_g.step()
        self.optimizer_g.zero_grad()
        self.optimizer_d.zero_grad()  # it collected gradients of the generator's loss

        reconstructions = self.generator(images)[0]
        real, fake = self.discriminator([images]), self.discriminator([reconstructions.detach()])
        hinge_loss_discriminator(real, fake).backward()
        self.optimizer_d.step()
        self.optimizer_d.zero_grad()


class Block(nn.Module):
    """A layer of minGPT without the causal mask: attention by explicit softmax, as unleashing-transformers has it."""

    def __init__(self, hidden_size: int, num_heads: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(hidden_size) for _ in range(2))
        self.query, self.key, self.value, self.projection = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden_size, 4 * hidden_size),
            nn.GELU(),
            nn.Linear(4 * hidden_size, hidden_size),
            nn.Dropout(dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        heads = (x.shape[0], x.shape[1], self.num_heads, -1)
        query, key, value = (layer(y).view(heads).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attention = self.dropout((query @ key.mT / query.shape[-1] ** 0.5).softmax(-1))
        x = x + self.dropout(self.projection((attention @ value).transpose(1, 2).reshape(x.shape)))
        return x + self.feed_forward(self.norms[1](x))


class AbsorbingStep:
    """One step of absorbing diffusion's transformer (unleashing-transformers), of the size of our denoiser."""

    TIMESTEPS = 256

    def __init__(self, num_codes: int, num_positions: int, hidden_size: int, layers: int, heads: int, dropout: float):
        self.num_codes = num_codes
        self.embedding = nn.Embedding(num_codes + 1, hidden_size)
        self.positions = nn.Parameter(torch.zeros(num_positions, hidden_size))
        self.transformer = nn.Sequential(
            nn.Dropout(dropout),
            *(Block(hidden_size, heads, dropout) for _ in range(layers)),
            nn.LayerNorm(hidden_size),
            nn.Linear(hidden_size, num_codes, bias=False),
        )
        parameters = [self.positions, *self.embedding.parameters(), *self.transformer.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def __call__(self, codes: torch.LongTensor) -> None:
        """codes: (B, positions)."""
        t = torch.randint(1, self.TIMESTEPS + 1, (len(codes),))
        masked = torch.rand(codes.shape) < (t / self.TIMESTEPS)[:, None]
        logits = self.transformer(self.embedding(codes.masked_fill(masked, self.num_codes)) + self.positions)
        targets = codes.masked_fill(~masked, -1)
        cross_entropy = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=-1, reduction="none").sum(1)
        loss = ((1 - t / self.TIMESTEPS) * cross_entropy).mean() / codes.shape[1]
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
