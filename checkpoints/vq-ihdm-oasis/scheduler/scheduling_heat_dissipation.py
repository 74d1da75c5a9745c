# Made by `save_pretrained` from vq_ihdm.heat, vq_ihdm.code_sampling, vq_ihdm.reveal_order, vq_ihdm.scheduling_heat_dissipation.
import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput


"""Heat dissipation on a grid: the mathematics of the forward process, as pure functions.

With reflecting borders the cosine modes are eigenfunctions of the heat equation du/dt = laplace u. Mode (n, m) of an
H x W grid decays as exp(-lambda_nm t) with lambda_nm = (pi n / H)^2 + (pi m / W)^2, and running the equation for
t = sigma^2 / 2 equals a Gaussian blur of standard deviation sigma, in units of grid cells (Rissanen et al., 2023). The
snippet in VQ-IHDM has this lambda; the formula in its text, pi (n^2 / W^2 + m^2 / H^2), has pi for pi squared.

Every function keeps dtype and device of its input and can be differentiated.
"""


WITHOUT_FLOAT64 = ("mps", "npu")  # types of device


def finest_dtype(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on a device that has no float64."""
    return torch.float32 if torch.device(device).type in WITHOUT_FLOAT64 else torch.float64


def dct_basis(size: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> torch.Tensor:
    """The orthonormal DCT-II as a matrix (size, size): row n is mode n, so `basis @ u` transforms a column u."""
    position = torch.arange(size, dtype=torch.float64) + 0.5
    mode = torch.arange(size, dtype=torch.float64)
    basis = torch.cos(math.pi / size * torch.outer(mode, position)) * math.sqrt(2 / size)
    basis[0] /= math.sqrt(2)
    return basis.to(dtype).to(device)  # one after the other: not every device has float64


def dct(u: torch.Tensor) -> torch.Tensor:
    """Orthonormal 2-D DCT-II over the last two axes, (..., H, W) -> (..., H, W); scipy's `dctn(norm="ortho")`."""
    height, width = u.shape[-2:]
    return dct_basis(height, u.dtype, u.device) @ u @ dct_basis(width, u.dtype, u.device).T


def idct(coefficients: torch.Tensor) -> torch.Tensor:
    """Inverse of `dct`."""
    height, width = coefficients.shape[-2:]
    basis_h = dct_basis(height, coefficients.dtype, coefficients.device)
    return basis_h.T @ coefficients @ dct_basis(width, coefficients.dtype, coefficients.device)


def heat_kernel(sigma: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Gain exp(-lambda_nm sigma^2 / 2) of every mode: (...) sigmas in grid cells -> (..., height, width) in [0, 1]."""
    lambda_h = (math.pi * torch.arange(height, dtype=sigma.dtype, device=sigma.device) / height) ** 2
    lambda_w = (math.pi * torch.arange(width, dtype=sigma.dtype, device=sigma.device) / width) ** 2
    t = sigma[..., None, None] ** 2 / 2
    return torch.exp(-(lambda_h[:, None] + lambda_w[None, :]) * t)


def blur(u: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Run the heat equation on u for t = sigma^2 / 2.

    Args:
        u: (B, D, H, W).
        sigma: blur width in grid cells, one for all or one for each of the B fields; 0 leaves u as it is.

    Returns:
        (B, D, H, W). Conserves every channel's mean; blur(blur(u, a), b) = blur(u, sqrt(a^2 + b^2)).
    """
    sigma = torch.as_tensor(sigma, dtype=u.dtype, device=u.device).expand(u.shape[0])
    return idct(dct(u) * heat_kernel(sigma, *u.shape[-2:])[:, None])


def sigma_schedule(sigma_min: float, sigma_max: float, num_sigmas: int) -> torch.Tensor:
    """`num_sigmas` blur widths from sigma_min to sigma_max, ascending and evenly spaced in log sigma, float64.

    A single one is sigma_max.
    """
    # From the upper end, which is what a single one has to be.
    return torch.logspace(math.log10(sigma_max), math.log10(sigma_min), num_sigmas, dtype=torch.float64).flip(0)


def surviving_modes(sigma: float, height: int, width: int, min_gain: float = 0.05) -> torch.Tensor:
    """Which modes keep at least `min_gain` of their amplitude under a blur of width sigma: (height, width) bool."""
    return heat_kernel(torch.tensor(sigma, dtype=torch.float64), height, width) >= min_gain


"""How codes are drawn from the logits of a network: pure functions of random numbers."""


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


"""Which positions of a code grid are revealed next."""


def reveal_spread_out(known: torch.BoolTensor, uniform: torch.Tensor, num_known: int) -> torch.BoolTensor:
    """Reveal positions until each image has `num_known`, each as far as can be from all that are known before it.

    Codes that are revealed at one time are drawn independently of each other. Neighbours depend on each other most, so
    they are to be revealed at different times. Distances are on a torus: else rim and corners would come first.

    Args:
        known: (B, H, W); an image of which more is known already keeps it.
        uniform: (B, H, W) uniform numbers in [0, 1), which decide among equally distant positions.

    Returns:
        (B, H, W) what is known then.
    """
    height, width = known.shape[1:]
    rows, columns = (squared_gaps(size, uniform) for size in (height, width))
    # Squared distance of each position to the nearest known one, in its row and then over the rows.
    distance = torch.where(known, 0, height**2 + width**2).to(uniform.dtype)
    distance = (distance[:, :, None] + columns).amin(-1)
    distance = (distance.mT[:, :, None] + rows).amin(-1).mT
    missing = num_known - known.sum((1, 2))
    for revealed in range(int(missing.max())):
        farthest = (distance + uniform).flatten(1).argmax(1)
        y, x = farthest // width, farthest % width
        nearer = torch.minimum(distance, rows[y][:, :, None] + columns[x][:, None])
        distance = torch.where((revealed < missing)[:, None, None], nearer, distance)
    return distance == 0


def squared_gaps(size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, size) squared distances between the positions of a circle, of the type and on the device of `like`."""
    positions = torch.arange(size, dtype=like.dtype, device=like.device)
    gaps = (positions[:, None] - positions).abs()
    return torch.minimum(gaps, size - gaps) ** 2


"""The forward and reverse process of discrete VQ-IHDM as a diffusers scheduler."""


OPEN = -1  # the code index of a position that is not revealed yet


@dataclass
class HeatDissipationSchedulerOutput(BaseOutput):
    """One reverse step.

    Args:
        prev_sample (`torch.Tensor` of shape `(B, D, H, W)`): the less blurred state: u_T where positions are still
            open, the sharp embeddings of the codes where they have been revealed.
        code_indices (`torch.LongTensor` of shape `(B, H, W)`): the codes revealed so far, `OPEN` elsewhere.
        pred_code_indices (`torch.LongTensor` of shape `(B, H, W)`): codes drawn for every position: what the step
            would return were it the last one.
    """

    prev_sample: torch.Tensor
    code_indices: torch.LongTensor
    pred_code_indices: torch.LongTensor


class HeatDissipationScheduler(SchedulerMixin, ConfigMixin):
    """Heat dissipation over code embeddings, and its reversal by revealing codes.

    Time runs from t = 0, sharp, to t = T = `num_train_timesteps`, most blurred. The forward process is

        u_t = blur(e_0, sigma_t) + delta * noise,  sigma_1 = sigma_min ... sigma_T = sigma_max in log steps,

    (VQ-IHDM, eq. 2, with delta = 0 there). The paper lists the sigmas from 24 down, the IHDM code from 0.5 up; here
    index and blur grow together.

    The reverse process starts from a draw of u_T. The denoiser gives p(z_0 | u_T) for every position at once, so
    one step draws all codes independently given u_T: the paper's sampler. With more steps u_T stays fixed as context
    and at each time t a share sin(pi t / 2T) of the positions is left open; what has been revealed is shown to the
    denoiser as sharp embeddings, so that the remaining codes are drawn in its knowledge. The positions of a step lie
    far apart, in an order that is drawn for each image (`reveal_order`). (Blurring the drawn codes to a smaller sigma
    and going on, the obvious alternative, redraws at each step the low frequencies that u_T had fixed, and gets worse
    with more steps.)

    Args:
        num_train_timesteps: T.
        sigma_min, sigma_max: blur widths in grid cells.
        delta: standard deviation of the noise on u_t, in units of the standardised embeddings.
        temperature: divides the logits before a code is drawn; 0 takes the most likely code.
        top_p: draw from the smallest set of codes that holds this much probability.
        num_inference_steps: how many the pipeline takes unless told otherwise.

    Raises:
        ValueError: numbers without sense.
    """

    order = 1
    open_index = OPEN

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 200,
        sigma_min: float = 0.5,
        sigma_max: float = 24.0,
        delta: float = 0.0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        num_inference_steps: int = 1,
    ):
        if not (0 < sigma_min <= sigma_max < math.inf and 0 <= delta < math.inf):
            raise ValueError(f"0 < sigma_min <= sigma_max and 0 <= delta, not {sigma_min}, {sigma_max} and {delta}")
        # sigmas[t] belongs to timestep t; t = 0 is the sharp state.
        self.sigmas = torch.cat(
            [torch.zeros(1), sigma_schedule(sigma_min, sigma_max, num_train_timesteps).to(torch.float32)]
        )
        self.set_timesteps(num_inference_steps)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        """Spread the steps evenly from T down; `timesteps[0]` is always T, the most blurred state."""
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_inference_steps}")
        T = self.config.num_train_timesteps
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.linspace(T, 0, num_inference_steps + 1, device=device)[:-1]

    def open_share(self, timestep: float) -> float:
        """Share of positions not yet revealed at time t."""
        return open_share(timestep / self.config.num_train_timesteps)

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.LongTensor
    ) -> torch.Tensor:
        """The forward process: u_t = blur(e_0, sigma_t) + delta * noise.

        Args:
            original_samples: (B, D, H, W) standardised code embeddings e_0.
            noise: standard normal, of the same shape.
            timesteps: (B,) in 1..T.
        """
        sigmas = self.sigmas.to(original_samples.device)[timesteps]
        return blur(original_samples, sigmas.to(original_samples.dtype)) + self.config.delta * noise

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | float,
        sample: torch.Tensor,
        code_indices: torch.LongTensor,
        code_embeddings: torch.Tensor,
        temperature: float | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> HeatDissipationSchedulerOutput | tuple:
        """Draw codes for the open positions and reveal as many as the next timestep asks for.

        Args:
            model_output: (B, H, W, K) logits of p(z_0 | u, revealed codes).
            timestep: the current t, one of `timesteps`.
            sample: (B, D, H, W) the current state.
            code_indices: (B, H, W) revealed codes, `OPEN` elsewhere.
            code_embeddings: (K, D) standardised embeddings of the codes.
            temperature, top_p: override the config's.
            generator: one, or a list with one for each image; then an image does not depend on its batch.
        """
        temperature = self.config.temperature if temperature is None else temperature
        top_p = self.config.top_p if top_p is None else top_p
        batch, height, width, _ = model_output.shape
        device = model_output.device

        probabilities = code_probabilities(model_output, temperature, top_p)
        uniform = rand_each((2, height, width), batch, generator, device)
        is_open = code_indices == OPEN
        pred_code_indices = torch.where(is_open, draw_codes(probabilities, uniform[:, 0]), code_indices)

        step_index = int((self.timesteps.to(device) - torch.as_tensor(timestep, device=device)).abs().argmin())
        if step_index + 1 == len(self.timesteps):
            known = torch.ones_like(is_open)
        else:
            num_open = int(self.open_share(float(self.timesteps[step_index + 1])) * height * width)
            known = reveal_spread_out(~is_open, uniform[:, 1], height * width - num_open)

        code_indices = torch.where(known, pred_code_indices, OPEN)
        revealed = code_embeddings[pred_code_indices].permute(0, 3, 1, 2).to(sample.dtype)
        prev_sample = torch.where(known[:, None], revealed, sample)
        if not return_dict:
            return prev_sample, code_indices, pred_code_indices
        return HeatDissipationSchedulerOutput(prev_sample, code_indices, pred_code_indices)

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def open_share(time: float) -> float:
    """Share sin(pi time / 2) of positions not yet revealed, of time t / T in [0, 1]: MaskGIT's cosine schedule."""
    return math.sin(math.pi / 2 * time)
