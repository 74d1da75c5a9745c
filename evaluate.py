"""Measure generated images against the real ones: fidelity, diversity, memorisation, anatomy.

    python evaluate.py --pipeline checkpoints/vq-ihdm-oasis --dataset_name data/oasis --num_images 1000
    python evaluate.py --images samples/ --dataset_name data/oasis --output_dir reports/samples

Writes `report.json` (its schema stands in `vq_ihdm.evaluation.report`), `report.md` and pictures. Beside every figure
stand N, a 95 % interval, and what real images score at the same N. Some pictures show scans of real people: mind the
data's terms before the folder is passed on. A pipeline in a local folder gets the report without these pictures as its
`evaluation/`, from which publish.py takes the verdict, and a new card: but not where it was trained on other data than
--dataset_name (your own scans, say, for a model that was published), which the report then tells; nor of another
--split than test, by which something may have been chosen; nor where it draws otherwise than it does unless told so.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from vq_ihdm.arguments import HelpFormatter, positive_int, seed_int
from vq_ihdm.data.images import add_image_arguments
from vq_ihdm.errors import InputError, run
from vq_ihdm.evaluation.audit import NOTICED
from vq_ihdm.evaluation.evaluator import EvaluationSet, evaluate_images
from vq_ihdm.evaluation.features import load_networks
from vq_ihdm.evaluation.image_sets import read_data_set, read_image_folder
from vq_ihdm.evaluation.pipelines import evaluate_pipeline, tokenize
from vq_ihdm.files import check_replaceable, replacing
from vq_ihdm.hub.evaluated_data import drawn_otherwise, evaluated_data, is_of, of_splits
from vq_ihdm.hub.model_card import write_model_card
from vq_ihdm.hub.model_files import weights_digest
from vq_ihdm.hub.record import own_record, read_record, views_learnt_from
from vq_ihdm.pipelines import load_pipeline
from vq_ihdm.sampling_arguments import add_sampling_arguments, sampling_arguments

DRAWING = {"num_images": 1000, "seed": 0, "batch_size": 32}  # of --pipeline


def device(text: str) -> torch.device:
    """A device that PyTorch finds on this machine."""
    try:
        return torch.empty(0, device=text).device
    except (RuntimeError, AssertionError) as error:  # the latter from a PyTorch that was built without it
        raise argparse.ArgumentTypeError(f"{text} is no device of this machine") from error


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pipeline", help="folder or Hub id of a pipeline to draw images from")
    source.add_argument("--images", help="folder of generated images (grey PNG, or NIfTI slices)")
    add("--tokenizer", help="with --images: pipeline whose VQGAN decoded them; copies that went through it are found")
    add("--dataset_name", required=True, help="the set the system was trained on, or another one to compare it with: "
        "local folder or Hub id")  # fmt: skip
    add("--split", help="held-out splits, such as validation+test; by default test, or all but train")
    add_image_arguments(parser)
    add("--output_dir", type=Path, default="evaluation")
    add("--num_images", type=positive_int, help="images to draw from --pipeline, by default 1000")
    add("--seed", type=seed_int, help="of the draws, by default 0")
    add("--batch_size", type=positive_int, help="images that the pipeline works on at a time, by default 32")
    add("--feature_weights", help="Inception weights in a local file, instead of torch-fidelity's download")
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    add_sampling_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    drawing = {name: getattr(args, name) for name in DRAWING if getattr(args, name) is not None}
    sampling = sampling_arguments(args)
    check_replaceable(args.output_dir, "report.json")
    record, published = None, None
    if args.images:
        for name in drawing | sampling:
            raise InputError(f"--{name} applies to --pipeline; the images of --images are made already")
        generated = read_image_folder(args.images)
        tokenizer = load_tokenizer(args.tokenizer).to(args.device) if args.tokenizer else None
    elif args.tokenizer:
        raise InputError("--tokenizer belongs to --images; a pipeline has its own")
    else:
        pipe = load_pipeline(args.pipeline).to(args.device)
        weights = weights_digest(pipe.loaded_from)  # now: a training may replace them meanwhile
        sampling, record = sampling_arguments(args, pipe), read_record(pipe.loaded_from)
        folder = Path(args.pipeline)
        if folder.is_dir() and args.split in (None, "test") and not drawn_otherwise(sampling, folder):
            published = folder / "evaluation"
            check_replaceable(published, "report.json")
            if published.resolve() in args.output_dir.resolve().parents:
                raise InputError(f"{published} is replaced as a whole; name an --output_dir outside")

    reading = {name: getattr(args, name) for name in ("image_column", "resolution", "center_crop")}
    training, held_out = read_data_set(args.dataset_name, args.split.split("+") if args.split else None, **reading)
    reference = EvaluationSet(training, held_out, load_networks(args.feature_weights, args.device))
    if args.images:
        report = evaluate_images(generated, reference, tokenize(tokenizer, reference) if args.tokenizer else None)
    else:
        report = evaluate_pipeline(pipe, reference, views=views_learnt_from(record), **DRAWING | drawing, **sampling)

    about = report.about | {"data": evaluated_data(args.dataset_name, training, held_out)}
    if args.pipeline:
        about["weights"] = weights
    if record is not None and not is_of(about["data"], record["data"]):
        about["trained_on"] = of_splits(record["data"])
        published = None
    report = replace(report, about=about)

    if published is None or args.output_dir.resolve() != published.resolve():
        with replacing(args.output_dir) as temporary:
            report.save(temporary, scans=True)
    if published is not None:
        with replacing(published) as temporary:
            report.save(temporary, scans=False)
        if own_record(folder) is not None:
            write_model_card(folder)
    kid = report.figure("kid")
    print(f"KID {kid.generated.value:.4f} (real images: {kid.floor.value:.4f}), N = {kid.generated.num_images}")
    seen = [power.planted for power in report.audit.power if power.copies == "verbatim" and power.caught >= NOTICED]
    print(
        f"memorisation audit: {'failed' if report.audit.failures else 'passed'}"
        + f"; it notices verbatim copies from {100 * min(seen, default=1):g} % of the images on" * bool(seen)
    )
    if "trained_on" in about:
        print(f"{args.pipeline} was trained on other data than {args.dataset_name}: the audit says nothing about it")
    print(f"{args.output_dir / 'report.md'}")


def load_tokenizer(path: str) -> DiffusionPipeline:
    """A pipeline that has a VQGAN.

    Raises:
        InputError: it has none, or there is no pipeline.
    """
    pipe = load_pipeline(path)
    if "vqvae" not in pipe.components:
        raise InputError(f"{path} holds a {type(pipe).__name__}, which has no VQGAN; leave --tokenizer out")
    return pipe


if __name__ == "__main__":
    run(main)
