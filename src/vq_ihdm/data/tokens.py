"""A data set as code indices, encoded once."""

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
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
BATCH = 32  # a constant: how far views are shifted must not depend on it
MAX_SHIFT = 3  # pixels


def load_tokens(
    args: argparse.Namespace, splits: DatasetDict, accelerator: Accelerator, shifted_views: int = 0
) -> tuple[VQModel, torch.LongTensor, torch.LongTensor]:
    """The VQGAN, and the data set as its codes.

    Args:
        args: the effective configuration: `vqvae`, `random_flip` (of each training slice its mirror image too), and
            where the set comes from.
        shifted_views: of each training slice, and of its mirror image; see `encode_split`.

    Returns:
        the VQModel on the accelerator's device; training codes (N, V, h, w) on the CPU, of each slice and, with
        `random_flip`, of its mirror image, then their shifted views; held-out codes (M, h, w) on the device.

    Raises:
        InputError: no VQModel, or images of a size it does not take.
    """
    vqvae = load_vq_model(args.vqvae).to(accelerator.device)
    check_image_size(splits["train"], args.dataset_name or args.train_data_dir, downsampling_factor(vqvae))
    with accelerator.main_process_first():  # the first one fills the cache for all
        train_codes = encode_split(vqvae, splits["train"], args.random_flip, shifted_views)
        held_out_codes = encode_split(vqvae, splits["validation"], mirrored=False)[:, 0]
    return vqvae, train_codes, held_out_codes.to(accelerator.device)


def draw_views(train_codes: torch.LongTensor, indices: list[int]) -> torch.LongTensor:
    """The slices with the given indices, each in any of its views: (N, V, h, w) codes -> (B, h, w)."""
    return train_codes[indices, torch.randint(train_codes.shape[1], (len(indices),))]


def encode_split(vqvae: VQModel, split: Dataset, mirrored: bool, shifted_views: int = 0) -> torch.LongTensor:
    """Code indices (N, V, h, w) of a split: of each image as it is; with `mirrored`, of its left-right mirror image;
    then `shifted_views` times of these, moved by up to `MAX_SHIFT` pixels.

    Cached by the content of images and VQGAN, so a set is encoded once whatever trains on it. A damaged cache is
    encoded again.
    """
    codes = _encode_views(vqvae, split, lambda images: still(images, mirrored), f"{mirrored}")
    if not shifted_views:
        return codes
    return torch.cat([codes, encode_shifted(vqvae, split, mirrored, shifted_views)], dim=1)


def encode_shifted(vqvae: VQModel, split: Dataset, mirrored: bool, shifted_views: int) -> torch.LongTensor:
    """The shifted views of `encode_split` alone."""
    generator = torch.Generator().manual_seed(0)

    def moved(images: torch.Tensor) -> list[torch.Tensor]:
        return [shifted(view, generator) for _ in range(shifted_views) for view in still(images, mirrored)]

    return _encode_views(vqvae, split, moved, f"{mirrored} {shifted_views} shifted")


def still(images: torch.Tensor, mirrored: bool) -> list[torch.Tensor]:
    """The images and, with `mirrored`, their left-right mirror images."""
    return [images, images.flip(-1)] if mirrored else [images]


def _encode_views(
    vqvae: VQModel, split: Dataset, views: Callable[[torch.Tensor], list[torch.Tensor]], name: str
) -> torch.LongTensor:
    """Codes (N, V, h, w) of V views of each image; the cache knows them by name."""

    @torch.no_grad()
    def encode() -> dict[str, torch.Tensor]:
        images, parts = SliceTensors(split), []
        for start in tqdm(range(0, len(images), BATCH), desc="encoding"):
            batch = images.stack(list(range(start, min(start + BATCH, len(images)))))
            parts.append(torch.stack([encode_images(vqvae, view.to(vqvae.device)).cpu() for view in views(batch)], 1))
        return {"code_indices": torch.cat(parts).to(torch.int32)}

    path = CACHE / f"{_fingerprint(vqvae, split, name)}.safetensors"
    return cached_tensors(path, encode)["code_indices"].long()


def shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Images (B, C, H, W), each moved by -`MAX_SHIFT` to `MAX_SHIFT` whole pixels along either side; what comes in
    repeats the edge."""
    padded = F.pad(images, [MAX_SHIFT] * 4, mode="replicate")
    places = torch.randint(2 * MAX_SHIFT + 1, (len(images), 2), generator=generator).tolist()
    height, width = images.shape[-2:]
    return torch.stack([image[:, y : y + height, x : x + width] for image, (y, x) in zip(padded, places, strict=True)])


def _fingerprint(vqvae: VQModel, split: Dataset, views: str) -> str:
    config = {name: value for name, value in vqvae.config.items() if not name.startswith("_")}  # _name_or_path, ...
    # The leading number is the cache's format; as JSON a model that was loaded has the config it was saved with.
    digest = hashlib.sha256(f"3 {views} {json.dumps(config, sort_keys=True)}".encode())
    for name, tensor in sorted(vqvae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for row in split.select_columns("image").cast_column("image", Image(decode=False)):
        digest.update(row["image"]["bytes"] or Path(row["image"]["path"]).read_bytes())
    return digest.hexdigest()[:32]
