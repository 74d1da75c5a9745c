"""A sharper decoder for a pipeline that exists: `train_vqgan.py --train_decoder_only`, put where the old one was."""

from pathlib import Path

import torch

from .errors import InputError
from .files import check_replaceable, replacing
from .hub.model_card import write_model_card
from .hub.record import denoiser_stages, read_record, tokenizer_stages, under_all_terms, write_record
from .pictures import save_sheets
from .pipelines import load_pipeline
from .vqgan.model import load_vq_model

DECODING = ("post_quant_conv", "decoder")  # the parts of a VQModel that no code depends on


def exchange_decoder(pipeline: str, vqvae: str, output_dir: Path) -> None:
    """Save a pipeline with the decoder of another VQModel, with record, samples and card; an evaluation it has none.

    Args:
        pipeline: a folder or Hub id of a pipeline over codes.
        vqvae: a VQModel, of a folder or Hub id, that has the same codes: encoder and codebook.
        output_dir: new, or the pipeline of an earlier call.

    Raises:
        InputError: the codes are others, or something is not what it is named as.
    """
    check_replaceable(output_dir, "model_index.json")
    pipe, model = load_pipeline(pipeline), load_vq_model(vqvae)
    if "vqvae" not in pipe.components:
        raise InputError(f"{pipeline} holds a {type(pipe).__name__}, which has no decoder of codes")
    if not same_codes(pipe.vqvae, model):
        raise InputError(
            f"{vqvae} has other codes than {pipeline}, whose denoiser would be lost on them; train it with "
            "--train_decoder_only from the VQModel of that pipeline"
        )
    model.register_to_config(scaling_factor=pipe.vqvae.config.scaling_factor)  # of latent diffusion, for its codes
    pipe.register_modules(vqvae=model)
    with replacing(output_dir) as folder:
        pipe.save_pretrained(folder)
        save_sheets(pipe, 0, folder)
        if record := read_record(pipe.loaded_from):
            stages = tokenizer_stages(vqvae) + denoiser_stages(pipe.loaded_from)
            write_record(folder, under_all_terms(record["data"], stages), stages)
            write_model_card(folder, name=output_dir.name)


def same_codes(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two VQModels give every image the same codes: all but their decoders is equal."""
    first, second = (
        {name: value for name, value in model.state_dict().items() if name.split(".")[0] not in DECODING}
        for model in (one, other)
    )
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())
