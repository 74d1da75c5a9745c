"""Absorbing diffusion over code indices (Bond-Taylor et al., "Unleashing Transformers", 2022).

The forward process turns codes into a mask token, one after the other: at time t of T each code is masked with
probability t / T. The reverse process reveals them again: from t to t - 1 each masked code is revealed with
probability 1 / t, drawn from p(z_0 | z_t), which one bidirectional transformer gives for all positions at once.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..covariate_embedding import CovariateEmbedding, KnowsCovariates
from ..covariates import vocabulary
from ..neighbourhood import make_neighbourhood


class AbsorbingDenoiserConfig(PretrainedConfig):
    """Configuration of an `AbsorbingDenoiser`.

    Args:
        num_codes: K, size of the codebook.
        height, width: the grid of codes.
        num_train_timesteps: T.
        hidden_size, num_hidden_layers, num_attention_heads, dropout: of the transformer; its intermediate size is
            4 x hidden_size, as in `VQIHDMDenoiserConfig`.
        neighbourhood_size: as in `VQIHDMDenoiserConfig`; 1, the published network, for no convolutions.
        covariates: as in `VQIHDMDenoiserConfig`.
    """

    model_type = "absorbing_denoiser"

    def __init__(
        self,
        num_codes: int = 1024,
        height: int = 11,
        width: int = 11,
        num_train_timesteps: int = 256,
        hidden_size: int = 512,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        neighbourhood_size: int = 1,
        covariates: list[dict] | None = None,
        **kwargs,
    ):
        self.num_codes = num_codes
        self.height = height
        self.width = width
        self.num_train_timesteps = num_train_timesteps
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.neighbourhood_size = neighbourhood_size
        self.covariates = covariates
        super().__init__(**kwargs)

    @property
    def mask_index(self) -> int:
        """The token of a masked position: the one after the last code."""
        return self.num_codes


@dataclass
class AbsorbingDenoiserOutput(ModelOutput):
    """`logits`: (B, h, w, K), of p(z_0 | z_t)."""

    logits: torch.FloatTensor | None = None


class AbsorbingDenoiser(KnowsCovariates, PreTrainedModel):
    """A bidirectional transformer with layer norm before attention and before the feed-forward part.

    The time t is no input: it is the share of masked positions, which the network sees.
    """

    config_class = AbsorbingDenoiserConfig
    base_model_prefix = "denoiser"
    main_input_name = "code_indices"

    def __init__(self, config: AbsorbingDenoiserConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.num_codes + 1, config.hidden_size)
        if config.neighbourhood_size > 1:
            self.neighbourhood = make_neighbourhood(config.hidden_size, config.hidden_size, config.neighbourhood_size)
        self.position_embedding = nn.Embedding(config.height * config.width, config.hidden_size)
        self.known_covariates = vocabulary(config.covariates)
        if self.known_covariates:
            self.covariate_embedding = CovariateEmbedding(self.known_covariates, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.hidden_size,
            config.num_attention_heads,
            dim_feedforward=4 * config.hidden_size,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        # As in the released code and in our denoiser: dropout on the hidden states alone. Between the two layers of the
        # feed-forward part it is four times as wide: a step of the preset `oasis` takes 1.17 times as long on a CPU.
        layer.self_attn.dropout = layer.dropout.p = 0.0
        self.transformer = nn.TransformerEncoder(
            layer, config.num_hidden_layers, norm=nn.LayerNorm(config.hidden_size), enable_nested_tensor=False
        )
        self.head = nn.Linear(config.hidden_size, config.num_codes, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.MultiheadAttention):
            nn.init.normal_(module.in_proj_weight, std=0.02)
            nn.init.zeros_(module.in_proj_bias)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)

    def forward(
        self, code_indices: torch.LongTensor, covariates: torch.Tensor | None = None, return_dict: bool = True
    ) -> AbsorbingDenoiserOutput | tuple:
        """
        Args:
            code_indices: (B, h, w) codes, `config.mask_index` where masked.
            covariates: (B, C) table of `vq_ihdm.covariates`, NaN where not given; nothing is given when left out.
        """
        embedded = self.token_embedding(code_indices)
        tokens = embedded.flatten(1, 2) + self.position_embedding.weight
        if self.config.neighbourhood_size > 1:
            tokens = tokens + self.neighbourhood(embedded.movedim(-1, 1)).flatten(2).transpose(1, 2)
        if self.known_covariates:
            if covariates is None:
                covariates = torch.full((len(tokens), len(self.known_covariates)), math.nan, device=tokens.device)
            tokens = tokens + self.covariate_embedding(covariates)[:, None]
        logits = self.head(self.transformer(self.dropout(tokens))).unflatten(1, code_indices.shape[1:])
        return AbsorbingDenoiserOutput(logits=logits) if return_dict else (logits,)


def draw_mask(timesteps: torch.LongTensor, num_train_timesteps: int, uniform: torch.Tensor) -> torch.BoolTensor:
    """The forward process: which positions are masked at time t, each with probability t / T.

    Args:
        timesteps: (B,) in 1..T.
        uniform: (B, h, w) uniform numbers in [0, 1).
    """
    return uniform < (timesteps / num_train_timesteps)[:, None, None]


def reweighted_elbo(
    logits: torch.Tensor,
    code_indices: torch.LongTensor,
    masked: torch.BoolTensor,
    timesteps: torch.LongTensor,
    num_train_timesteps: int,
) -> torch.Tensor:
    """The training loss, the evidence lower bound reweighted by the information z_t holds, in nats a position.

        mean over the batch of (T - t + 1) / T * sum_masked -log p(z_0 | z_t) / (h w)

    Args:
        logits: (B, h, w, K).
        code_indices: (B, h, w) the true codes.
        masked: (B, h, w), of `draw_mask`.
        timesteps: (B,) in 1..T.
    """
    # The released code has the weight 1 - t / T, which leaves nothing of t = T, where sampling starts.
    weight = (num_train_timesteps - timesteps + 1) / num_train_timesteps
    cross_entropy = F.cross_entropy(logits.float().movedim(-1, 1), code_indices, reduction="none")
    return (weight[:, None, None] * cross_entropy * masked).mean()


def absorbing_loss(
    denoiser: nn.Module,
    code_indices: torch.LongTensor,
    config: AbsorbingDenoiserConfig,
    covariates: torch.Tensor | None = None,
) -> torch.Tensor:
    """`reweighted_elbo` of codes (B, h, w), given a table of covariates, at times drawn uniformly from 1..T."""
    T = config.num_train_timesteps
    timesteps = torch.randint(1, T + 1, (len(code_indices),), device=code_indices.device)
    masked = draw_mask(timesteps, T, torch.rand(code_indices.shape, device=code_indices.device))
    logits = denoiser(code_indices.masked_fill(masked, config.mask_index), covariates).logits
    return reweighted_elbo(logits, code_indices, masked, timesteps, T)
