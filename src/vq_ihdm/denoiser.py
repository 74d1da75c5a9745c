"""The denoiser: BERT over the positions of a code grid."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import BertConfig, BertModel, PretrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from .covariate_embedding import CovariateEmbedding, KnowsCovariates
from .covariates import vocabulary
from .neighbourhood import make_neighbourhood

# Of log sigma, which spans about 4 (0.5 to 24): periods from 16 down to an eighth tell neighbouring sigmas apart.
NUM_FREQUENCIES = 32


class VQIHDMDenoiserConfig(PretrainedConfig):
    """Configuration of a `VQIHDMDenoiser`.

    Args:
        num_codes: K, size of the codebook.
        code_dim: D, dimension of a code.
        height, width: the grid of codes.
        hidden_size, num_hidden_layers, num_attention_heads, dropout: of the `BertModel`; its intermediate size is
            4 x hidden_size. The defaults are the paper's.
        neighbourhood_size: side of the two convolutions that show each position its neighbours; 1, the paper's, for
            none. Attention has to learn from nothing which of the other positions are near.
        covariates: what the network can be asked for (`Covariate` as dicts); nothing by default.
    """

    model_type = "vq_ihdm_denoiser"

    def __init__(
        self,
        num_codes: int = 1024,
        code_dim: int = 256,
        height: int = 11,
        width: int = 11,
        hidden_size: int = 512,
        num_hidden_layers: int = 24,
        num_attention_heads: int = 8,
        dropout: float = 0.1,
        neighbourhood_size: int = 1,
        covariates: list[dict] | None = None,
        **kwargs,
    ):
        self.num_codes = num_codes
        self.code_dim = code_dim
        self.height = height
        self.width = width
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.dropout = dropout
        self.neighbourhood_size = neighbourhood_size
        self.covariates = covariates
        super().__init__(**kwargs)


@dataclass
class VQIHDMDenoiserOutput(ModelOutput):
    """`logits`: (B, H, W, K), of p(z_0 | u_t, revealed codes)."""

    logits: torch.FloatTensor | None = None


class VQIHDMDenoiser(KnowsCovariates, PreTrainedModel):
    """Predicts the codes of all positions at once from the blurred embeddings, the reverse process of VQ-IHDM.

    BERT's own inputs serve: `inputs_embeds` are the projected state plus an embedding of sigma, `position_embeddings`
    the position on the grid, and `token_type_embeddings` the learned flag for revealed positions (type 1). The
    embedding layer normalises its input, which would lose the amplitude of a D-dimensional state; the projection is
    therefore non-linear and wider than D. Word embeddings and pooler do not exist: they would get no gradient,
    which distributed training does not forgive.

    The standardised codebook travels with the weights as the buffer `code_embeddings` (K, D).
    """

    config_class = VQIHDMDenoiserConfig
    base_model_prefix = "denoiser"
    main_input_name = "sample"

    def __init__(self, config: VQIHDMDenoiserConfig):
        super().__init__(config)
        self.input_projection = nn.Sequential(
            nn.Linear(config.code_dim, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )
        if config.neighbourhood_size > 1:
            self.neighbourhood = make_neighbourhood(config.code_dim + 1, config.hidden_size, config.neighbourhood_size)
        self.sigma_embedding = SigmaEmbedding(config.hidden_size)
        self.known_covariates = vocabulary(config.covariates)
        if self.known_covariates:
            self.covariate_embedding = CovariateEmbedding(self.known_covariates, config.hidden_size)
        self.bert = BertModel(
            BertConfig(
                vocab_size=1,
                hidden_size=config.hidden_size,
                num_hidden_layers=config.num_hidden_layers,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=4 * config.hidden_size,
                hidden_dropout_prob=config.dropout,
                attention_probs_dropout_prob=0.0,  # dropout on the hidden states suffices, and fused kernels need this
                max_position_embeddings=config.height * config.width,
            ),
            add_pooling_layer=False,
        )
        self.bert.embeddings.word_embeddings = None
        self.head = nn.Linear(config.hidden_size, config.num_codes)
        self.register_buffer("code_embeddings", torch.zeros(config.num_codes, config.code_dim))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)

    def embed_codes(self, code_indices: torch.LongTensor) -> torch.Tensor:
        """(B, H, W) code indices -> (B, D, H, W) standardised embeddings e_0."""
        return self.code_embeddings[code_indices].permute(0, 3, 1, 2).contiguous()

    def forward(
        self,
        sample: torch.Tensor,
        sigma: torch.Tensor,
        known: torch.BoolTensor | None = None,
        covariates: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> VQIHDMDenoiserOutput | tuple:
        """
        Args:
            sample: (B, D, H, W) the state: blurred embeddings, sharp ones where codes are known.
            sigma: (B,) blur width of the state in grid cells; networks that train_ihdm.py trained know sigma_T alone.
            known: (B, H, W) which positions are revealed; none when left out.
            covariates: (B, C) table of `vq_ihdm.covariates`, NaN where not given; nothing is given when left out.
        """
        batch, _, height, width = sample.shape
        if known is None:
            known = torch.zeros(batch, height, width, dtype=torch.bool, device=sample.device)
        tokens = self.input_projection(sample.flatten(2).transpose(1, 2))
        if self.config.neighbourhood_size > 1:
            seen = self.neighbourhood(torch.cat([sample, known[:, None].to(sample)], dim=1))
            tokens = tokens + seen.flatten(2).transpose(1, 2)
        tokens = tokens + self.sigma_embedding(sigma)[:, None]
        if self.known_covariates:
            if covariates is None:
                covariates = torch.full((batch, len(self.known_covariates)), math.nan, device=sample.device)
            tokens = tokens + self.covariate_embedding(covariates)[:, None]
        hidden = self.bert(inputs_embeds=tokens, token_type_ids=known.flatten(1).long()).last_hidden_state
        logits = self.head(hidden).view(batch, height, width, -1)
        return VQIHDMDenoiserOutput(logits=logits) if return_dict else (logits,)


class SigmaEmbedding(nn.Module):
    """(B,) sigma -> (B, hidden_size): Fourier features of log sigma, then a small network."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size)
        )

    def forward(self, sigma: torch.Tensor) -> torch.Tensor:
        # made on the CPU: Apple's GPUs have no logspace
        frequencies = torch.logspace(math.log10(1 / 16), math.log10(8), NUM_FREQUENCIES).to(sigma.device)
        angles = 2 * math.pi * sigma.float().log()[:, None] * frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.layers(features.to(self.layers[0].weight.dtype))
