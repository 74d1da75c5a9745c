"""`python -m vq_ihdm --version`, and `python -m vq_ihdm card FOLDER` to write a model card anew, say with notes."""

import argparse
from pathlib import Path

from vq_ihdm._version import __version__
from vq_ihdm.errors import run
from vq_ihdm.hub.model_card import write_model_card


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vq_ihdm")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("card", help="write the model card of a pipeline or VQModel from its records")
    card.add_argument("folder", type=Path)
    card.add_argument(
        "--name", help="Hub id or folder by which its examples load the model; by default the folder's name"
    )
    args = parser.parse_args()
    write_model_card(args.folder, args.name)
    print(args.folder / "README.md")


if __name__ == "__main__":
    run(main)
