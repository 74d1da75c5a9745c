"""Export the one-step sampler of a VQIHDMPipeline to ONNX.

    python export.py --pipeline checkpoints/vq-ihdm-oasis --output_dir onnx

Under --output_dir stand `prior.onnx` and `sampler.onnx` (see `vq_ihdm.exporting`). They draw as the pipeline does when
it is asked for no covariates. Whoever draws slices from them, as examples/sample_onnx.py does, needs numpy and
onnxruntime, and nothing of this package. They hold the pipeline's weights: its licence and its model card apply.
"""

import argparse
from pathlib import Path

from vq_ihdm import VQIHDMPipeline, load_pipeline
from vq_ihdm.arguments import HelpFormatter, non_negative_float, positive_probability
from vq_ihdm.errors import InputError, run
from vq_ihdm.exporting import export_onnx


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--pipeline", required=True, help="a VQIHDMPipeline's folder or Hub id")
    add("--output_dir", type=Path, required=True)
    add("--temperature", type=non_negative_float, help="of the draw of codes; by default the pipeline's own")
    add("--top_p", type=positive_probability, help="of the draw of codes; by default the pipeline's own")
    return parser


def main() -> None:
    args = build_parser().parse_args()
    pipeline = load_pipeline(args.pipeline)
    if not isinstance(pipeline, VQIHDMPipeline):
        raise InputError(f"{args.pipeline} holds a {type(pipeline).__name__}; only a VQIHDMPipeline can be exported")
    export_onnx(pipeline, args.output_dir, args.temperature, args.top_p)
    if (steps := pipeline.scheduler.config.num_inference_steps) > 1:
        print(f"{args.pipeline} draws in {steps} steps, what is exported in one: its images are worse")
    print(
        f"{args.output_dir} holds prior.onnx and sampler.onnx; draw from them with python examples/sample_onnx.py "
        f"--folder {args.output_dir} --num_images 8 --output_dir samples"
    )


if __name__ == "__main__":
    run(main)
