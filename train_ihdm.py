"""Stage 2: train the denoiser on code indices, fit the blurry prior, and write a complete pipeline.

    accelerate launch train_ihdm.py --config oasis --dataset_name data/oasis --vqvae runs/vqgan/last \\
        --output_dir runs/ihdm

The loss is the cross-entropy of the true codes given the blurred embeddings (`vq_ihdm.denoising_loss`). Under
--output_dir the script leaves `checkpoint-<step>/` to resume from, `best/` (the averaged denoiser with the lowest
held-out cross-entropy), `pipeline/` (the `VQIHDMPipeline` around it, with its model card), `samples.png`,
`config.json` and the trackers' `logs/`.
"""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch
from accelerate.utils import set_seed

from vq_ihdm import HeatDissipationScheduler, VQIHDMDenoiser, VQIHDMDenoiserConfig, VQIHDMPipeline
from vq_ihdm.arguments import (
    HelpFormatter,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    positive_probability,
    probability,
    share_below_one,
)
from vq_ihdm.covariates import Covariate
from vq_ihdm.data.conditioning import (
    askable,
    covariate_table,
    describe_vocabulary,
    find_vocabulary,
    slice_subjects,
    withhold,
)
from vq_ihdm.data.tokens import MAX_SHIFT, draw_views, load_tokens
from vq_ihdm.denoising_loss import denoising_loss
from vq_ihdm.errors import InputError
from vq_ihdm.errors import run as run_script
from vq_ihdm.fit_prior import fit_prior
from vq_ihdm.pictures import sample_sheet
from vq_ihdm.training.config import (
    add_covariate_arguments,
    add_prior_arguments,
    add_training_arguments,
    add_transformer_arguments,
    check_prior_arguments,
    parse_args,
)
from vq_ihdm.training.describe import save_trained_pipeline, tell_other_set
from vq_ihdm.training.held_out import held_out_mean
from vq_ihdm.training.preparation import clip_gradients, make_accelerator, prepare_network, read_splits
from vq_ihdm.training.run import TrainingRun
from vq_ihdm.weights import load_component

SMALLEST_SIGMA = 0.5  # cells; what blurs less hides next to nothing


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    add_training_arguments(parser)
    add_transformer_arguments(parser)
    add_covariate_arguments(parser)
    add = parser.add_argument
    add("--pretrained_model_name_or_path", help="start from this denoiser or pipeline (folder or Hub id)")
    add(
        "--pretrained_share",
        type=share_below_one,
        default=0.0,
        help="of its weights in what is validated and kept: their mean with what was learnt here",
    )
    add(
        "--shifted_views",
        type=non_negative_int,
        default=0,
        help=f"of each slice, moved by up to {MAX_SHIFT} pixels, for the denoiser to learn from as well; encoded first",
    )
    add("--gradient_checkpointing", action="store_true", help="less memory for a second forward pass")
    # the forward process
    add("--sigma_max", type=positive_float, default=24.0, help="in cells of the code grid")
    add("--delta", type=non_negative_float, default=0.0, help="noise on u_T, in deviations of the embeddings")
    add("--reveal_probability", type=probability, default=0.5, help="share of examples with some codes revealed")
    # the prior and what sampling does unless told otherwise
    add_prior_arguments(parser)
    add("--temperature", type=non_negative_float, default=1.0)
    add("--top_p", type=positive_probability, default=1.0)
    add("--num_inference_steps", type=positive_int, default=1, help="codes are revealed in so many")
    parser.set_defaults(max_train_steps=75_000, train_batch_size=20)
    return parser


def main() -> None:
    args = parse_args(build_parser(), "ihdm")
    check_prior_arguments(args)
    if args.sigma_max < SMALLEST_SIGMA:
        raise InputError(f"--sigma_max {args.sigma_max} hides next to nothing; take {SMALLEST_SIGMA} cells or more")
    if args.num_inference_steps > 1 and args.reveal_probability == 0:
        raise InputError("--reveal_probability 0 trains for one step of sampling only; leave --num_inference_steps out")
    if args.pretrained_share and args.pretrained_model_name_or_path is None:
        raise InputError("--pretrained_share needs --pretrained_model_name_or_path, the denoiser whose share it is")
    accelerator = make_accelerator(args)
    device = accelerator.device
    set_seed(args.seed, device_specific=True)

    # ---- data -------------------------------------------------------------------------------------------------
    splits = read_splits(args, accelerator)
    source = args.dataset_name or args.train_data_dir
    vqvae, train_codes, held_out_codes = load_tokens(args, splits, accelerator, args.shifted_views)
    tell_other_set(args, splits, accelerator)
    unshifted_codes = train_codes[:, : 1 + args.random_flip]

    # ---- denoiser, scheduler, prior ---------------------------------------------------------------------------
    known_covariates = find_vocabulary(splits["train"], args.covariates, source)
    denoiser = make_denoiser(args, vqvae.quantize.embedding.weight.detach().cpu(), unshifted_codes, known_covariates)
    check_covariates(args, denoiser, splits["train"].column_names, source)
    embed_codes = denoiser.embed_codes
    known_covariates = denoiser.known_covariates  # a denoiser that is trained further brings its own
    accelerator.print(describe_vocabulary(known_covariates, splits["train"]))
    args.covariates = [covariate.name for covariate in known_covariates]
    covariates, held_out_covariates = (
        askable(known_covariates, covariate_table(known_covariates, splits[name])) for name in ("train", "validation")
    )
    scheduler = HeatDissipationScheduler(
        sigma_min=SMALLEST_SIGMA,
        sigma_max=args.sigma_max,
        delta=args.delta,
        temperature=args.temperature,
        top_p=args.top_p,
        num_inference_steps=args.num_inference_steps,
    )
    prior = fit_prior(
        unshifted_codes.flatten(0, 1),  # slices stand where u_T stands
        args.sigma_max,
        args.prior,
        args.prior_rank,
        args.prior_components,
        args.seed,
        embed=embed_codes,
        subjects=np.repeat(slice_subjects(splits["train"]), unshifted_codes.shape[1]),  # views of a slice: one subject
        known_covariates=known_covariates,
        covariates=covariates.repeat_interleave(unshifted_codes.shape[1], 0),
    )
    prior.allow_saving_images = args.allow_training_image_prior

    def one_step_loss(network: VQIHDMDenoiser, z_0: torch.LongTensor, told: torch.Tensor) -> torch.Tensor:
        return denoising_loss(network, scheduler, embed_codes, z_0, 0.0, told)  # no code is revealed

    held_out = held_out_codes, held_out_covariates.to(device)

    # ---- training ---------------------------------------------------------------------------------------------
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=args.learning_rate)
    denoiser, optimizer, lr_scheduler, ema = prepare_network(
        args, accelerator, denoiser, optimizer, start_share=args.pretrained_share
    )
    unwrapped = accelerator.unwrap_model(denoiser)
    parts = {"network": unwrapped, "ema": ema, "optimizer": optimizer, "scheduler": lr_scheduler}
    run = TrainingRun(args, accelerator, "denoiser", range(len(train_codes)), parts, ema)
    for _ in run:
        for indices in run.batches():
            with accelerator.accumulate(denoiser):
                z_0 = draw_views(train_codes, indices).to(device)
                told = withhold(covariates[indices], args.covariate_dropout).to(device)
                loss = denoising_loss(denoiser, scheduler, embed_codes, z_0, args.reveal_probability, told)
                accelerator.backward(loss)
                run.add(loss=loss)
                if accelerator.sync_gradients:
                    clip_gradients(accelerator, optimizer, args.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
        lr_scheduler.step()
        ema.update(unwrapped)
        run.log(lr=lr_scheduler.get_last_lr()[0])
        if run.validation_due:
            measures = {"cross_entropy": held_out_mean(partial(one_step_loss, ema.module), args.seed, *held_out)}
            pipeline = VQIHDMPipeline(vqvae, ema.module, prior.to(device), scheduler)
            run.keep(measures, {"samples": sample_sheet(pipeline, args.seed)})

    if accelerator.is_main_process:
        best = load_component(VQIHDMDenoiser, run.best_folder)
        save_trained_pipeline(VQIHDMPipeline(vqvae, best, prior, scheduler), args, splits)


def check_covariates(args: argparse.Namespace, denoiser: VQIHDMDenoiser, columns: list[str], source: str) -> None:
    """A denoiser that is trained further brings its covariates, which --covariates cannot change.

    Raises:
        InputError: others were asked for, or the set lacks one.
    """
    names = [covariate.name for covariate in denoiser.known_covariates]
    if args.covariates is not None and set(args.covariates) != set(names):
        raise InputError(
            f"the denoiser knows {', '.join(names) or 'no covariates'}; leave --covariates out, or train a new one "
            "without --pretrained_model_name_or_path"
        )
    if missing := [name for name in names if name not in columns]:
        raise InputError(
            f"{source} lacks {', '.join(missing)}, which the denoiser was trained with; add what is known of it, or "
            "train a new one without --pretrained_model_name_or_path"
        )


def make_denoiser(
    args: argparse.Namespace,
    codebook: torch.Tensor,
    train_codes: torch.LongTensor,
    known_covariates: Sequence[Covariate],
) -> VQIHDMDenoiser:
    """A denoiser for codes (N, V, h, w) of a codebook (K, D): new, or as far as another training brought it.

    Embeddings are standardised with the statistics of the training tokens, not of the codebook: codes that are used
    often count as often, and delta means the same for every VQGAN. A denoiser that is trained further keeps the
    standardisation it learnt by, whatever the new tokens' statistics.
    """
    if args.pretrained_model_name_or_path is not None:
        denoiser = load_denoiser(args.pretrained_model_name_or_path, dropout=args.dropout)
        config, embeddings = denoiser.config, None
        if (config.num_codes, config.code_dim) == codebook.shape:
            embeddings = restandardised(codebook, denoiser.code_embeddings)
        if embeddings is None or (config.height, config.width) != train_codes.shape[-2:]:
            raise InputError(
                f"{args.pretrained_model_name_or_path} is a denoiser of other codes than those of {args.vqvae}; "
                "name the VQGAN it was trained on, or one that learnt on from there"
            )
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "neighbourhood_size"):
            setattr(args, name, getattr(config, name))  # what counts, whatever a preset says, and is recorded
    else:
        config = VQIHDMDenoiserConfig(
            num_codes=len(codebook),
            code_dim=codebook.shape[1],
            height=train_codes.shape[-2],
            width=train_codes.shape[-1],
            hidden_size=args.hidden_size,
            num_hidden_layers=args.num_hidden_layers,
            num_attention_heads=args.num_attention_heads,
            dropout=args.dropout,
            neighbourhood_size=args.neighbourhood_size,
            covariates=[asdict(covariate) for covariate in known_covariates],
        )
        denoiser = VQIHDMDenoiser(config)
        frequency = train_codes.flatten().bincount(minlength=len(codebook))[:, None] / train_codes.numel()
        mean = (frequency * codebook).sum(0)
        std = (frequency * (codebook - mean) ** 2).sum(0).sqrt()
        embeddings = (codebook - mean) / std.clamp_min(1e-6)
    denoiser.code_embeddings.copy_(embeddings)
    if args.gradient_checkpointing:
        denoiser.bert.gradient_checkpointing_enable()
    return denoiser


def restandardised(codebook: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor | None:
    """A codebook (K, D) by the standardisation of the embeddings that a denoiser has of it, or of one it came from.

    That is, in each dimension, the line through embeddings over codebook: exact for the same codebook.

    Returns:
        (K, D), or None where the line leaves more than half of the embeddings' variance: they are of other codes.
    """
    centred, target = codebook - codebook.mean(0), embeddings - embeddings.mean(0)
    slope = (centred * target).sum(0) / centred.square().sum(0).clamp_min(1e-12)
    line = slope * centred
    of_other_codes = (target - line).square().sum() > target.square().sum() / 2
    return None if of_other_codes else line + embeddings.mean(0)


def load_denoiser(path: str, **config: Any) -> VQIHDMDenoiser:
    """The denoiser of a folder or Hub repository, of its own or inside a pipeline, in float32, its config so changed.

    Raises:
        InputError: there is none.
    """
    for subfolder in ("", "denoiser"):
        try:
            return load_component(VQIHDMDenoiser, path, subfolder=subfolder, **config).float().train()
        except ValueError as error:
            reason = str(error).splitlines()[0]
    raise InputError(f"{path} holds no denoiser ({reason}); train one with train_ihdm.py")


if __name__ == "__main__":
    run_script(main)
