"""The loss of stage 2."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

from .scheduling_heat_dissipation import HeatDissipationScheduler, open_share

MEAN_OPEN_SHARE = 2 / math.pi  # of `open_share` over uniform times


def denoising_loss(
    denoiser: nn.Module,
    scheduler: HeatDissipationScheduler,
    embed_codes: Callable[[torch.LongTensor], torch.Tensor],
    z_0: torch.LongTensor,
    reveal_probability: float,
    covariates: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy of the true codes at every open position given the blurred embeddings, in nats a code.

        L = -log p(z_0 | u_T),  u_T = blur(e_0, sigma_T) + delta * noise

    In a share `reveal_probability` of the examples some positions show their true, sharp embeddings and only the others
    count: what sampling in several steps needs. The paper's eq. 5 sums over masked positions alone; it is the loss of
    its masked baseline. Here nothing is masked: the blur hides something of every position, so every position counts.

    The sum over the open positions is divided by their expected number, not by how many there are: the losses of parts
    of a batch, accumulated or of several processes, then have the whole batch's loss as their mean.

    Args:
        denoiser: a `VQIHDMDenoiser`, or what `accelerate` has wrapped around it.
        embed_codes: its own, (B, H, W) -> (B, D, H, W).
        z_0: (B, H, W) code indices.
        reveal_probability: 0 trains the one-step task alone.
        covariates: (B, C) table of what the denoiser is told, NaN where nothing.
    """
    T = scheduler.config.num_train_timesteps
    e_0 = embed_codes(z_0)
    u_T = scheduler.add_noise(e_0, torch.randn_like(e_0), torch.full((len(z_0),), T, device=z_0.device))
    known = draw_known(z_0.shape, reveal_probability, z_0.device)
    sample = torch.where(known[:, None], e_0, u_T)
    sigma = torch.full((len(z_0),), scheduler.config.sigma_max, device=z_0.device)
    logits = denoiser(sample, sigma, known=known, covariates=covariates).logits
    expected_open = z_0.numel() * (1 - reveal_probability * (1 - MEAN_OPEN_SHARE))
    return F.cross_entropy(logits[~known].float(), z_0[~known], reduction="sum") / expected_open


def draw_known(shape: torch.Size, reveal_probability: float, device: torch.device) -> torch.BoolTensor:
    """Which positions of (B, H, W) are revealed: none in most examples, in the others a random part.

    Times are uniform in the schedule of sampling, so that every stage of a run of many steps is seen equally often. At
    least one position of each example stays open.
    """
    batch, num_positions = shape[0], shape[1:].numel()
    share_open = torch.tensor([open_share(time) for time in torch.rand(batch).tolist()], device=device)
    share_open = torch.where(torch.rand(batch, device=device) < reveal_probability, share_open, 1.0)
    num_open = (share_open * num_positions).ceil().clamp_min(1)
    rank = torch.rand(batch, num_positions, device=device).argsort(1).argsort(1)
    return (rank >= num_open[:, None]).view(shape)
