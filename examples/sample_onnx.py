"""Draw slices from what export.py wrote, without this package: pip install numpy onnxruntime pillow

python examples/sample_onnx.py --folder onnx --num_images 8 --seed 0 --output_dir images
"""

import argparse
from pathlib import Path

import numpy as np
from onnxruntime import InferenceSession
from PIL import Image


def draw(folder: Path, num_images: int, seed: int) -> np.ndarray:
    """Slices (num_images, H, W), uint8."""
    prior, sampler = (InferenceSession(folder / f"{name}.onnx") for name in ("prior", "sampler"))
    rng = np.random.default_rng(seed)
    numbers = {}
    for tensor in prior.get_inputs():
        shape = (num_images, *tensor.shape[1:])
        numbers[tensor.name] = (
            rng.random(shape) if tensor.name == "uniform" else rng.standard_normal(shape, dtype=np.float32)
        )
    names = [tensor.name for tensor in prior.get_outputs()]  # u_T and, of a model that knows any, covariates
    start = dict(zip(names, prior.run(None, numbers), strict=True))
    start["uniform"] = rng.random((num_images, *start["u_T"].shape[2:]))
    (images,) = sampler.run(None, start)
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--num_images", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for index, pixels in enumerate(draw(args.folder, args.num_images, args.seed)):
        Image.fromarray(pixels).save(args.output_dir / f"{index:06d}.png")


if __name__ == "__main__":
    main()
