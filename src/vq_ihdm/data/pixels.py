"""Pixels as files hold them, as grey levels, and as networks see them."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..errors import InputError

PIXEL_TYPES = {8: ("L", np.uint8), 16: ("I;16", np.uint16)}  # by bit depth: Pillow's mode, NumPy's type


def grey_levels(image: Image.Image) -> np.ndarray:
    """A grey PIL image -> (H, W), uint8 or uint16. One that is grey in all its channels of colour is grey.

    Raises:
        InputError: the image has colours, or levels that 16 bits do not hold; its name has to go in front.
    """
    if image.mode == "L":
        return np.asarray(image)
    if image.mode in ("I;16", "I;16B", "I"):
        levels = np.asarray(image)
        if levels.min() >= 0 and levels.max() <= 65535:
            return levels.astype(np.uint16)
    elif image.mode in ("1", "P", "LA", "PA", "RGB", "RGBA"):
        channels = np.asarray(image.convert("RGB"))
        if (channels == channels[..., :1]).all():
            return channels[..., 0]
    raise InputError(f"has other pixels than grey levels of 8 or 16 bits (mode {image.mode}); convert it to grey.")


def levels_to_tensor(levels: np.ndarray) -> torch.Tensor:
    """(..., H, W) grey levels, uint8 or uint16 -> (..., 1, H, W) float32 in [-1, 1]."""
    pixels = torch.from_numpy(levels.astype(np.float32)).unsqueeze(-3)
    return pixels * (2 / np.iinfo(levels.dtype).max) - 1


def tensor_to_uint8(images: torch.Tensor) -> np.ndarray:
    """(B, 1, H, W) in [-1, 1] -> (B, H, W) uint8, as the pipelines' images are."""
    return ((images.squeeze(1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def encode_png(image: np.ndarray, bit_depth: int) -> bytes:
    """PNG of a grey image (H, W) in [0, 1]."""
    dtype = PIXEL_TYPES[bit_depth][1]
    levels = np.rint(np.clip(image, 0, 1) * np.iinfo(dtype).max).astype(dtype)
    buffer = io.BytesIO()
    Image.fromarray(levels).save(buffer, format="PNG")
    return buffer.getvalue()


def crop_or_pad(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Cut or fill with zeros the last two axes, about their centre, to `size` (H, W)."""
    for axis, wanted in zip((-2, -1), size, strict=True):
        excess = image.shape[axis] - wanted
        if excess > 0:
            image = np.take(image, range(excess // 2, excess // 2 + wanted), axis=axis)
        else:
            before = -excess // 2
            padding = [(0, 0)] * image.ndim
            padding[axis] = (before, -excess - before)
            image = np.pad(image, padding)
    return image
