"""The forward and reverse process of discrete VQ-IHDM as a diffusers scheduler."""

import math
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from .code_sampling import code_probabilities, draw_codes, rand_each
from .heat import blur, sigma_schedule
from .reveal_order import reveal_spread_out

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
