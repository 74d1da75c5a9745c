"""What the trainings on code indices share: the flags, the data as tokens."""

import argparse

import torch
from accelerate import Accelerator
from datasets import DatasetDict
from diffusers import VQModel

from ..data.images import check_image_size
from ..data.tokens import encode_split
from ..vqgan.model import downsampling_factor, load_vq_model
from .config import positive


def add_transformer_arguments(parser: argparse.ArgumentParser) -> None:
    """The tokenizer and the size of the transformer; the defaults are the paper's."""
    add = parser.add_argument
    add("--vqvae", required=True, help="the VQModel of stage 1: a folder or a Hub id")
    add("--hidden_size", type=positive, default=512)
    add("--num_hidden_layers", type=positive, default=24)
    add("--num_attention_heads", type=positive, default=8)
    add("--dropout", type=float, default=0.1)


def load_tokens(
    args: argparse.Namespace, accelerator: Accelerator, splits: DatasetDict
) -> tuple[VQModel, torch.LongTensor, torch.LongTensor]:
    """The VQGAN, and the data set as its codes.

    Returns:
        the VQModel on the accelerator's device; training codes (N, V, h, w) on the CPU, V = 2 views of each slice
        with --random_flip (itself and its mirror image), else 1; held-out codes (M, h, w) on the device.

    Raises:
        InputError: no VQModel, or images of a size it does not take.
    """
    vqvae = load_vq_model(args.vqvae).to(accelerator.device)
    check_image_size(splits["train"], args.dataset_name or args.train_data_dir, downsampling_factor(vqvae))
    with accelerator.main_process_first():  # the first one fills the cache for all
        train_codes = encode_split(vqvae, splits["train"], mirrored=args.random_flip)
        held_out_codes = encode_split(vqvae, splits["validation"], mirrored=False).to(accelerator.device)
    return vqvae, train_codes if args.random_flip else train_codes[:, None], held_out_codes


def draw_views(train_codes: torch.LongTensor, indices: torch.LongTensor) -> torch.LongTensor:
    """The slices with the given indices, each as it is or mirrored: (N, V, h, w) codes -> (B, h, w)."""
    return train_codes[indices, torch.randint(train_codes.shape[1], indices.shape)]
