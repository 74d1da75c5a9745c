"""Networks as they were saved, complete: the libraries fill a tensor that a file lacks with random numbers."""

import os
import re
from typing import Any

import torch
from transformers import PreTrainedModel


def load_component(cls: type, path: str | os.PathLike, **kwargs: Any) -> Any:
    """`cls.from_pretrained`; of a network, from safetensors alone and in evaluation mode.

    Args:
        cls: a scheduler, or a model of diffusers or transformers.
        path: folder or Hub id.
        kwargs: of `from_pretrained`.

    Raises:
        ValueError: there is nothing that can be read, or the weights lack a tensor, have one too many, or one of
            another shape than their config's.
    """
    is_network = issubclass(cls, torch.nn.Module)
    if is_network:
        kwargs |= {"use_safetensors": True, "output_loading_info": True}
    if issubclass(cls, PreTrainedModel):
        kwargs["ignore_mismatched_sizes"] = True  # they are named below; diffusers names them in an error of its own
    try:
        loaded = cls.from_pretrained(path, **kwargs)
    except Exception as error:  # of diffusers, transformers, safetensors, torch or a config's class
        reason = re.split(r"\n|\.\s", str(error).strip() or type(error).__name__)[0]  # its first sentence
        raise ValueError(f"{path} cannot be read as {cls.__name__} ({reason}); save it again") from error
    if not is_network:
        return loaded
    model, info = loaded
    problems = {"lack": info["missing_keys"], "have no place for": info["unexpected_keys"]}
    problems["have another shape of"] = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
    for problem, names in problems.items():
        if names:
            raise ValueError(f"the weights of {path} {problem} {sorted(names)[0]}; save them again")
    return model.eval()
