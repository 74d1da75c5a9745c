"""Publish a model, a data set or the demonstration page on the Hugging Face Hub.

    python publish.py checkpoints/vq-ihdm-oasis --repo_id account/vq-ihdm-oasis --dry_run   # what would be uploaded
    python publish.py checkpoints/vq-ihdm-oasis --repo_id account/vq-ihdm-oasis
    python publish.py checkpoints/vq-ihdm-oasis --repo_id account/vq-ihdm-demo --as_space
    python publish.py data/oasis --repo_id account/oasis-slices

The repository is private unless --no-private is given, and changes in a single commit or not at all. A model's card is
written anew from the folder's records, and whatever this package did not write into the folder is not uploaded; what an
existing repository holds beside is removed, and stays in its history. Refused, unless an option says otherwise: images,
or a prior made of blurred training images, of a data set that must not be passed on; a model that was not evaluated on
the data it was trained on, drawn as it draws unless told otherwise; one whose memorisation audit failed.
"""

import argparse
from pathlib import Path

from vq_ihdm.arguments import HelpFormatter
from vq_ihdm.errors import run
from vq_ihdm.hub.publishing import publish, publish_space

CHECKS = ("restricted_images", "unevaluated", "failed_audit")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("folder", type=Path, help="a pipeline, a VQModel, or a set built by dataset_scripts/")
    add("--repo_id", required=True, help="account/name on the Hub")
    add("--private", action=argparse.BooleanOptionalAction, default=True)
    add("--dry_run", action="store_true", help="check and list what would be uploaded, and leave the Hub alone")
    add("--as_space", action="store_true", help="publish app.py around the pipeline, as a Space")
    add("--allow_restricted_images", action="store_true", help="although the data's licence forbids it")
    add("--allow_unevaluated", action="store_true", help="although nothing is known about its quality")
    add("--allow_failed_audit", action="store_true", help="although it seems to have memorised training subjects")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    allow = [check for check in CHECKS if getattr(args, f"allow_{check}")]
    if args.as_space:
        url = publish_space(Path(__file__).parent, args.folder, args.repo_id, args.private, allow, args.dry_run)
    else:
        url = publish(args.folder, args.repo_id, args.private, allow, args.dry_run)
    print(url)


if __name__ == "__main__":
    run(main)
