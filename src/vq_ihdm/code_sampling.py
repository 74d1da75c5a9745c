"""How codes are drawn from the logits of a network: pure functions of random numbers."""

import torch

from .heat import finest_dtype


def code_probabilities(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """(..., K) logits -> probabilities after temperature and nucleus truncation, not renormalised; `finest_dtype`.

    Raises:
        ValueError: temperature < 0 or top_p outside (0, 1].
    """
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, but is {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], but is {top_p}")
    dtype = finest_dtype(logits.device)
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).to(dtype)
    probabilities = (logits.to(dtype) / temperature).softmax(-1)
    if top_p < 1:
        ordered, order = probabilities.sort(-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # probability of everything more likely
        probabilities = probabilities.masked_fill((before >= top_p).gather(-1, order.argsort(-1)), 0)
    return probabilities


def draw_codes(probabilities: torch.Tensor, uniform: torch.Tensor) -> torch.LongTensor:
    """(...,) codes from (..., K) unnormalised probabilities and (...,) uniform numbers.

    Inverse transform sampling: one uniform number a position, whatever the size of the codebook.
    """
    cumulative = probabilities.cumsum(-1)
    return (cumulative <= uniform[..., None] * cumulative[..., -1:]).sum(-1).clamp_max(probabilities.shape[-1] - 1)


def rand_each(
    shape: tuple[int, ...],
    batch: int,
    generator: torch.Generator | list[torch.Generator] | None,
    device: torch.device,
) -> torch.Tensor:
    """(batch, *shape) uniform numbers of `finest_dtype`; from a list of generators each image draws its own."""

    def draw(shape: tuple[int, ...], g: torch.Generator | None) -> torch.Tensor:
        source = g.device if g is not None else device
        return torch.rand(shape, dtype=finest_dtype(source), device=source, generator=g)

    if isinstance(generator, list):
        uniform = torch.stack([draw(shape, g) for g in generator])
    else:
        uniform = draw((batch, *shape), generator)
    return uniform.to(finest_dtype(device)).to(device)
