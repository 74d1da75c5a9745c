"""Build a set of synthetic subjects derived from the MNI152 template, for demonstrations and tests.

    python dataset_scripts/template.py --image_size 64 --output_dir data/template64

It needs no scan and no download, and says nothing about patients: see `vq_ihdm.data.template`.
"""

import argparse

from datasets import Features

from vq_ihdm.arguments import HelpFormatter, positive_int
from vq_ihdm.data.building import add_build_arguments, build_set, check_build_arguments
from vq_ihdm.data.pixels import encode_png
from vq_ihdm.data.rejections import Rejections
from vq_ihdm.data.sources import TEMPLATE
from vq_ihdm.data.template import FIELD_OF_VIEW_MM, MIN_SIZE, template_subject
from vq_ihdm.errors import InputError, run


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("--num_subjects", type=positive_int, default=60)
    parser.add_argument("--slices_per_subject", type=positive_int, default=16)
    add_build_arguments(parser)
    return parser


def main() -> None:
    args = build_parser().parse_args()
    check_build_arguments(args)
    if min(args.image_size) < MIN_SIZE:
        raise InputError(
            f"the template shows no ventricles at --image_size {min(args.image_size)}; pass {MIN_SIZE} or more."
        )
    numbers = {f"template-{number:04d}": number for number in range(args.num_subjects)}

    def rows_of(subject: str):
        images = template_subject(
            numbers[subject],
            num_slices=args.slices_per_subject,
            image_size=args.image_size,
            seed=args.seed,
        )
        for index, image in enumerate(images):
            yield {"image": encode_png(image, args.bit_depth), "slice": index}

    build_set(
        args,
        source=TEMPLATE,
        strata=dict.fromkeys(numbers, ""),
        rows_of=rows_of,
        covariates=Features(),
        spacing_mm=[FIELD_OF_VIEW_MM / min(args.image_size)] * 2,
        settings={"synthetic subjects": args.num_subjects, "slices per subject": args.slices_per_subject},
        rejections=Rejections(args.strict),
    )


if __name__ == "__main__":
    run(main)
