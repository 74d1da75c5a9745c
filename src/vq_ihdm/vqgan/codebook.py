"""Upkeep of a codebook: initialisation from data, usage over an epoch, restart of dead codes."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import nn


def code_vectors(latents: torch.Tensor) -> torch.Tensor:
    """(B, D, h, w) -> (B * h * w, D)."""
    return latents.permute(0, 2, 3, 1).flatten(0, 2)


@torch.no_grad()
def draw_code_vectors(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """`count` of the (N, D) encoder outputs, repeated with a little jitter when N < count."""
    picks = torch.cat([torch.randperm(len(vectors), device=vectors.device) for _ in range(-(-count // len(vectors)))])
    jitter = 1e-3 * vectors.std() * torch.randn(count, vectors.shape[1], device=vectors.device)
    return vectors[picks[:count]] + jitter


@torch.no_grad()
def normalize_codebook(embedding: nn.Embedding) -> None:
    """Project the codes on the unit sphere: the second half of a projected gradient step."""
    embedding.weight.copy_(F.normalize(embedding.weight, dim=1))


@torch.no_grad()
def init_codebook(
    embedding: nn.Embedding, ema_embedding: nn.Embedding, latents: torch.Tensor, normalized: bool
) -> None:
    """Put the codes (K, D) and their moving average on encoder outputs (B, D, h, w); the first process draws for all.

    The default, +-1/K around the origin, would leave all but a few codes without a single neighbour.
    """
    embedding.weight.copy_(broadcast(draw_code_vectors(code_vectors(latents), len(embedding.weight))))
    if normalized:
        normalize_codebook(embedding)
    ema_embedding.weight.copy_(embedding.weight)


class CodeUsage:
    """Counts how often each code was used, each process its own images. One batch says little: count over an epoch."""

    def __init__(self, num_codes: int, accelerator: Accelerator):
        self.accelerator = accelerator
        self.counts = torch.zeros(num_codes, device=accelerator.device)

    def update(self, code_indices: torch.Tensor) -> None:
        self.counts += torch.bincount(code_indices.flatten(), minlength=len(self.counts))

    def total(self) -> torch.Tensor:
        """The counts of all processes together, (K,); to be called by every process."""
        return self.accelerator.reduce(self.counts, "sum")

    def reset(self) -> None:
        self.counts.zero_()

    def state_dict(self) -> dict:
        return {"counts": self.total()}  # a checkpoint is what the first process holds

    def load_state_dict(self, state: dict) -> None:
        self.counts.copy_(state["counts"] * self.accelerator.is_main_process)  # once, whoever counted


def usage_and_perplexity(counts: torch.Tensor) -> tuple[float, float]:
    """Share of codes in use, in [0, 1], and perplexity exp(H) of their distribution, in [1, K]."""
    share = counts / counts.sum()
    entropy = -(share * share.clamp_min(1e-12).log()).sum()
    return (counts > 0).float().mean().item(), entropy.exp().item()


@torch.no_grad()
def restart_dead_codes(
    embedding: nn.Embedding,
    ema_embedding: nn.Embedding,
    optimizer: torch.optim.Optimizer,
    counts: torch.Tensor,
    latents: torch.Tensor,
) -> int:
    """Move codes that nothing used onto encoder outputs of the current batch.

    A restarted code is a new code: its row of the moving average and of Adam's moments starts anew too. With
    several processes the first one draws for all.

    Args:
        embedding, ema_embedding: the codebook (K, D) and its moving average.
        optimizer: the Adam that trains `embedding.weight`.
        counts: (K,) uses since the last restart, of all processes.
        latents: (B, D, h, w) what the quantiser saw last.

    Returns:
        how many codes were restarted.
    """
    dead = counts == 0
    replacements = broadcast(draw_code_vectors(code_vectors(latents), int(dead.sum())) if dead.any() else latents[:0])
    if dead.any():
        embedding.weight[dead] = replacements
        ema_embedding.weight[dead] = replacements
        moments = optimizer.state.get(embedding.weight, {})  # none where fp16 has skipped every step so far
        for name in moments.keys() & {"exp_avg", "exp_avg_sq"}:
            moments[name][dead] = 0
    return int(dead.sum())
