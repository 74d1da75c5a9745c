"""CCE-GAN (Xing et al., "Cycle consistent embedding of 3D brains with auto-encoding GANs", 2021)."""

import torch
import torch.nn.functional as F

from .alphawgan import AutoEncodingWGAN
from .updates import Update


class CCEGAN(AutoEncodingWGAN):
    """An auto-encoding WGAN whose codes are kept by cycles, and drawn to the latents by optimal transport.

    At 176 x 176 encoder, generator and critic have 64,709,288 + 63,502,784 + 2,818,241 parameters. As in the released
    code the encoder learns from the generator's loss too.
    """

    def updates(self) -> list[Update]:
        return [
            Update("generator", [self.encoder, self.decoder], self.generator_update),
            Update("encoder", [self.encoder], self.encoder_update),
            Update("critic", [self.critic], self.critic_update, repeats=3),
        ]

    def generator_update(self, images: torch.Tensor) -> torch.Tensor:
        codes, latents = self.encoder(images), self.decoder.draw_latents(len(images))
        reconstructions, samples = self.decoder(codes), self.decoder(latents)
        scores = self.critic(reconstructions), self.critic(samples)
        cycles = (codes, self.encoder(reconstructions)), (latents, self.encoder(samples))
        return generator_loss(images, reconstructions, *scores, *cycles)

    def encoder_update(self, images: torch.Tensor) -> torch.Tensor:
        codes, latents = self.encoder(images), self.decoder.draw_latents(len(images))
        # As released: the points are the latent dimensions, with one coordinate an image. A batch of 4 would be too
        # few points for transport in 1000 dimensions, while 1000 points in 4 dimensions tell their distribution.
        return 100 * sinkhorn_cost(latents.T, codes.T)


def generator_loss(
    images: torch.Tensor,
    reconstructions: torch.Tensor,
    reconstruction_scores: torch.Tensor,
    sample_scores: torch.Tensor,
    code_cycle: tuple[torch.Tensor, torch.Tensor],
    latent_cycle: tuple[torch.Tensor, torch.Tensor],
) -> torch.Tensor:
    """100 |G(E(x)) - x| - D(G(E(x))) - D(G(z)) + 50 (E(x) - E(G(E(x))))^2 + 50 (z - E(G(z)))^2, each a mean.

    Args:
        code_cycle: E(x) and E(G(E(x))).
        latent_cycle: z and E(G(z)).
    """
    adversarial = reconstruction_scores.mean() + sample_scores.mean()
    cycles = F.mse_loss(*code_cycle) + F.mse_loss(*latent_cycle)
    return 100 * F.l1_loss(reconstructions, images) - adversarial + 50 * cycles


def sinkhorn_cost(
    x: torch.Tensor, y: torch.Tensor, epsilon: float = 0.1, num_iterations: int = 100, tolerance: float = 1e-4
) -> torch.Tensor:
    """Cost of the optimal transport between two point clouds of equal weights, with entropic regularisation.

    Sinkhorn's algorithm in the logarithmic domain (Peyre and Cuturi, 2019, section 4.4). Its iterations need no
    gradient: by the envelope theorem the regularised cost has that of the cost matrix under the final plan.

    Args:
        x, y: (n, d) and (m, d) points; the cost of a pair is its squared Euclidean distance.
        epsilon: strength of the regularisation; towards 0 the cost becomes that of unregularised transport.
        num_iterations: at most so many;
        tolerance: fewer if the potentials change by no more than this on average.
    """
    cost = (x[:, None] - y[None]).float().square().sum(-1)
    with torch.no_grad():
        log_n, log_m = torch.tensor([len(x), len(y)], device=x.device).log()
        u, v = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])
        for _ in range(num_iterations):
            before = u
            u = -epsilon * (((v - cost) / epsilon).logsumexp(1) + log_n)
            v = -epsilon * (((u[:, None] - cost) / epsilon).logsumexp(0) + log_m)
            if (u - before).abs().mean() <= tolerance:
                break
        plan = ((u[:, None] + v - cost) / epsilon).exp()
    return (plan * cost).sum()
