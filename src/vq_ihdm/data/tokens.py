"""A data set as code indices, encoded once."""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset, DatasetDict, Image
from diffusers import VQModel
from huggingface_hub.constants import HF_HOME
from tqdm.auto import tqdm

from ..code_indices import encode_images
from ..tensor_cache import cached_tensors
from ..vqgan.model import downsampling_factor, load_vq_model
from .images import SliceTensors, check_image_size

CACHE = Path(HF_HOME) / "vq_ihdm" / "tokens"


def load_tokens(
    args: argparse.Namespace, splits: DatasetDict, accelerator: Accelerator
) -> tuple[VQModel, torch.LongTensor, torch.LongTensor]:
    """The VQGAN, and the data set as its codes.

    Args:
        args: the effective configuration: `vqvae`, `random_flip` (of each training slice its mirror image too), and
            where the set comes from.

    Returns:
        the VQModel on the accelerator's device; training codes (N, V, h, w) on the CPU, V = 2 views of each slice
        with `random_flip`, else 1; held-out codes (M, h, w) on the device.

    Raises:
        InputError: no VQModel, or images of a size it does not take.
    """
    vqvae = load_vq_model(args.vqvae).to(accelerator.device)
    check_image_size(splits["train"], args.dataset_name or args.train_data_dir, downsampling_factor(vqvae))
    with accelerator.main_process_first():  # the first one fills the cache for all
        train_codes = encode_split(vqvae, splits["train"], mirrored=args.random_flip)
        held_out_codes = encode_split(vqvae, splits["validation"], mirrored=False).to(accelerator.device)
    return vqvae, train_codes if args.random_flip else train_codes[:, None], held_out_codes


def draw_views(train_codes: torch.LongTensor, indices: list[int]) -> torch.LongTensor:
    """The slices with the given indices, each as it is or mirrored: (N, V, h, w) codes -> (B, h, w)."""
    return train_codes[indices, torch.randint(train_codes.shape[1], (len(indices),))]


@torch.no_grad()
def encode_split(vqvae: VQModel, split: Dataset, mirrored: bool, batch_size: int = 32) -> torch.LongTensor:
    """Code indices (N, h, w) of a split; with `mirrored` (N, 2, h, w), each image and its left-right mirror image.

    Cached by the content of images and VQGAN, so a set is encoded once whatever trains on it. A damaged cache is
    encoded again.
    """

    def encode() -> dict[str, torch.Tensor]:
        images = SliceTensors(split)
        parts = []
        for start in tqdm(range(0, len(images), batch_size), desc="encoding"):
            batch = images.stack(list(range(start, min(start + batch_size, len(images))))).to(vqvae.device)
            views = [batch, batch.flip(-1)] if mirrored else [batch]
            parts.append(torch.stack([encode_images(vqvae, view).cpu() for view in views], dim=1))
        code_indices = torch.cat(parts) if mirrored else torch.cat(parts)[:, 0]
        return {"code_indices": code_indices.to(torch.int32)}

    path = CACHE / f"{_fingerprint(vqvae, split, mirrored)}.safetensors"
    return cached_tensors(path, encode)["code_indices"].long()


def _fingerprint(vqvae: VQModel, split: Dataset, mirrored: bool) -> str:
    config = {name: value for name, value in vqvae.config.items() if not name.startswith("_")}  # _name_or_path, ...
    # The leading number is the cache's format; as JSON a model that was loaded has the config it was saved with.
    digest = hashlib.sha256(f"1 {mirrored} {json.dumps(config, sort_keys=True)}".encode())
    for name, tensor in sorted(vqvae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for row in split.select_columns("image").cast_column("image", Image(decode=False)):
        digest.update(row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes())
    return digest.hexdigest()[:32]
