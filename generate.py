"""Draw many images from a pipeline into files that say they are synthetic.

    accelerate launch generate.py --pipeline checkpoints/vq-ihdm-oasis --num_images 1000 --output_dir images
    accelerate launch generate.py --pipeline runs/ihdm/pipeline --num_images 1000 --output_dir women \\
        --covariates age=60:85 sex=F
    accelerate launch generate.py --pipeline checkpoints/vq-ihdm-oasis --num_images 100000 --output_dir images \\
        --format parquet --push_to_hub account/synthetic-brains

Under --output_dir stand `000000.png`, ... (or `000000.nii.gz`, ...) and `metadata.csv`, or with --format parquet a data
set of shards with its card; and `manifest.json` with the seed, the settings and the versions of the libraries. Both
forms are read by `datasets.load_dataset`. Every file tells model, weights, seed and licence.

--covariates asks a conditional model: a value, a range low:high (uniformly drawn), or `population`, as in the training
set, which holds for what is left out too. `metadata.csv` tells what each image was asked to be.

Image i depends on the seed and on i alone, however many processes share the work. Interrupted, the same command goes
on with what is missing or damaged; --num_images may have grown, not shrunk. Another --batch_size gives the same images
but for rounding: a few pixels may differ by one grey level.
"""

import argparse
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import gather_object
from diffusers import DiffusionPipeline
from tqdm.auto import tqdm

from vq_ihdm import load_pipeline
from vq_ihdm.arguments import HelpFormatter, positive_float, positive_int, seed_int
from vq_ihdm.errors import InputError, run
from vq_ihdm.pictures import contact_sheet, save_picture
from vq_ihdm.sampling_arguments import add_sampling_arguments, sampling_arguments
from vq_ihdm.synthetic.asked import covariates_of_images, parse_covariates
from vq_ihdm.synthetic.image_files import SUFFIXES, ImageFiles
from vq_ihdm.synthetic.manifest import read_manifest, write_manifest
from vq_ihdm.synthetic.provenance import Provenance, describe, seed_of_image

if TYPE_CHECKING:
    from vq_ihdm.synthetic.upload import ShardUpload


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--pipeline", required=True, help="a pipeline's folder or Hub id")
    add("--output_dir", type=Path, required=True)
    add("--num_images", type=positive_int, required=True)
    add("--seed", type=seed_int, default=0)
    add("--batch_size", type=positive_int, default=32, help="images a process works on at a time")
    add("--format", choices=[*SUFFIXES, "parquet"], default="png")
    add("--images_per_shard", type=positive_int, help="of --format parquet, by default 1000")
    add("--spacing_mm", type=positive_float, nargs="+", help="height and width of a pixel, or one number, "
        "where the pipeline's training.json does not say; NIfTI needs it")  # fmt: skip
    add("--contact_sheet", type=Path, help="picture of the first 64 images, outside --output_dir")
    add("--torch_dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add("--covariates", nargs="+", default=[], metavar="NAME=VALUE", help="age=75, age=60:85, sex=F, cdr=population")
    add_sampling_arguments(parser)
    group = parser.add_argument_group("publishing the shards of --format parquet")
    group.add_argument("--push_to_hub", metavar="REPO_ID", help="data set on the Hub; a shard is sent when it is whole")
    group.add_argument("--private", action=argparse.BooleanOptionalAction, default=True)
    group.add_argument("--allow_unevaluated", action="store_true", help="although nothing is known about the model")
    group.add_argument("--allow_failed_audit", action="store_true", help="although it seems to have memorised people")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_arguments(args)
    # A process that has finished waits for the slowest one.
    accelerator = Accelerator(kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))])
    pipeline = load_pipeline(args.pipeline, torch_dtype=getattr(torch, args.torch_dtype)).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    known_covariates = pipeline.known_covariates
    sampling = sampling_arguments(args, pipeline)
    if asked := parse_covariates(args.covariates, known_covariates):
        sampling["covariates"] = asked
    provenance = describe(args.pipeline, pipeline, args.torch_dtype, sampling, args.seed, args.spacing_mm)
    if args.format == "parquet":
        from vq_ihdm.synthetic.shards import ParquetShards  # brings `datasets`, which image files do without

        layout = {"images_per_shard": args.images_per_shard or 1000}
        output = ParquetShards(args.output_dir, provenance, **layout, known_covariates=known_covariates)
    else:
        if args.format != "png" and provenance.spacing_mm is None:
            raise InputError(f"{args.pipeline} has no record of its voxel size, which NIfTI needs; give --spacing_mm")
        layout = {}
        output = ImageFiles(args.output_dir, SUFFIXES[args.format], provenance, args.batch_size, known_covariates)

    settings = {**asdict(provenance), "format": args.format, **layout}
    begun = read_manifest(args.output_dir, settings).get("num_images", 0)
    if args.num_images < begun:
        raise InputError(f"{args.output_dir} is to hold {begun} images; ask for as many, or name a new --output_dir")
    accelerator.wait_for_everyone()  # until every process has read what the first one is about to write
    upload = None
    if accelerator.is_main_process:
        write_manifest(args.output_dir, args.num_images, settings)
        if args.format == "parquet":
            upload = begin_set(args, provenance, pipeline.loaded_from)

    # A part is the same images whoever draws it and whatever exists of it: the arithmetic of some kernels depends on
    # the size of a batch.
    parts = ranges(0, args.num_images, output.images_per_part)
    rank, processes = accelerator.process_index, accelerator.num_processes
    missing = gather_object([part for part in parts[rank::processes] if not output.holds(part)])
    mine = sorted(missing, key=lambda part: part.start)[rank::processes]
    progress = tqdm(total=sum(map(len, mine)), desc="drawing", disable=not accelerator.is_local_main_process)
    for part in mine:
        output.write(part, draw(pipeline, part, args.batch_size, provenance, progress))
        if upload is not None:
            upload.send()
    progress.close()

    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        output.finish()
        if upload is not None:
            upload.send()
        if args.contact_sheet is not None:
            shown = output.read(min(args.num_images, 64))
            save_picture(contact_sheet(np.stack(shown), columns=8), args.contact_sheet)
        print(f"{args.num_images} images are in {args.output_dir}")
    accelerator.end_training()


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is loaded.

    Raises:
        InputError: as it says.
    """
    if args.spacing_mm is not None and len(args.spacing_mm) > 2:
        raise InputError("--spacing_mm takes one or two numbers: height and width of a pixel in mm")
    if args.images_per_shard is not None and args.format != "parquet":
        raise InputError("--images_per_shard belongs to --format parquet; leave it out")
    if args.push_to_hub is not None and args.format != "parquet":
        raise InputError("--push_to_hub sends shards; add --format parquet")
    if args.push_to_hub is None and (not args.private or args.allow_unevaluated or args.allow_failed_audit):
        raise InputError("--no-private, --allow_unevaluated and --allow_failed_audit belong to --push_to_hub")
    if args.contact_sheet is not None and args.output_dir.resolve() in args.contact_sheet.resolve().parents:
        raise InputError("--contact_sheet would count as one of the images; name a file outside --output_dir")


def ranges(start: int, stop: int, size: int) -> list[range]:
    """start..stop - 1 cut into pieces of `size`, the last one shorter."""
    return [range(i, min(i + size, stop)) for i in range(start, stop, size)]


def draw(
    pipeline: DiffusionPipeline, part: range, batch_size: int, provenance: Provenance, progress: tqdm
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """The images of `part`, (H, W) uint8, one after the other, each with the covariates it was asked to have."""
    sampling = dict(provenance.sampling)
    asked = sampling.pop("covariates", {})
    for batch in ranges(part.start, part.stop, batch_size):
        seeds = [seed_of_image(provenance.seed, i) for i in batch]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        if asked:
            sampling["covariates"] = covariates_of_images(asked, seeds)
        try:
            output = pipeline(len(batch), generator=generators, chunk_size=batch_size, **sampling)
        except ValueError as error:  # an argument outside the pipeline's range
            raise InputError(str(error)) from error
        told = getattr(output, "covariates", None) or {}
        for i, image in enumerate(output.images):
            yield np.asarray(image), {name: values[i] for name, values in told.items()}
        progress.update(len(batch))


def begin_set(args: argparse.Namespace, provenance: Provenance, folder: Path) -> "ShardUpload | None":
    """Write the card of a data set, and open its repository where it is to be published.

    Args:
        folder: of the pipeline.

    Raises:
        InputError: something speaks against publishing images of this model.
    """
    from vq_ihdm.hub.checks import refuse_drawn
    from vq_ihdm.synthetic.images_card import write_images_card
    from vq_ihdm.synthetic.upload import ShardUpload

    if args.push_to_hub is not None:
        overruled = [name for name in ("unevaluated", "failed_audit") if getattr(args, f"allow_{name}")]
        refuse_drawn(folder, overruled, provenance.sampling)
    write_images_card(args.output_dir, provenance, folder, args.num_images)
    return ShardUpload(args.output_dir, args.push_to_hub, args.private) if args.push_to_hub is not None else None


if __name__ == "__main__":
    run(main)
