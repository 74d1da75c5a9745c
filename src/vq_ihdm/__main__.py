"""`python -m vq_ihdm`: `--version`; `card FOLDER` writes a model card anew, say with notes; `decoder` puts one that was
trained further into a pipeline."""

import argparse
from pathlib import Path

from vq_ihdm._version import __version__
from vq_ihdm.errors import run
from vq_ihdm.hub.model_card import write_model_card
from vq_ihdm.new_decoder import exchange_decoder


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m vq_ihdm")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    card = commands.add_parser("card", help="write the model card of a pipeline or VQModel from its records")
    card.add_argument("folder", type=Path)
    card.add_argument(
        "--name", help="Hub id or folder by which its examples load the model; by default the folder's name"
    )
    decoder = commands.add_parser("decoder", help="save a pipeline with a decoder that was trained further")
    decoder.add_argument("--pipeline", required=True, help="folder or Hub id")
    decoder.add_argument(
        "--vqvae", required=True, help="of train_vqgan.py --train_decoder_only, such as runs/decoder/last"
    )
    decoder.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    if args.command == "card":
        write_model_card(args.folder, args.name)
        print(args.folder / "README.md")
    else:
        exchange_decoder(args.pipeline, args.vqvae, args.output_dir)
        print(args.output_dir)


if __name__ == "__main__":
    run(main)
