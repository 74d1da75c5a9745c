"""The card of a synthetic data set: what it is, which model made it and with which seed, audit, terms."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ..data.data_card import size_category
from ..files import replacing
from ..hub.evaluated_data import drawn_otherwise, own_report
from ..hub.model_card import describe_audit, describe_terms
from ..hub.record import read_record
from .provenance import Provenance


def write_images_card(folder: Path, provenance: Provenance, pipeline: Path, num_images: int) -> None:
    """Write `folder/README.md` for the shards of `num_images` images.

    Args:
        pipeline: the folder of the pipeline that drew them, with its record and evaluation where it has them.
    """
    record = read_record(pipeline)
    # `load_dataset` finds its cached copy of a folder by the folder's last name and this header, not by the content.
    version = f"{num_images} images, {hashlib.sha256(json.dumps(asdict(provenance)).encode()).hexdigest()[:16]}"
    files = [{"split": "train", "path": "data/train-*.parquet"}]
    data = DatasetCardData(
        pretty_name="Synthetic axial brain slices",
        license=provenance.licence,
        task_categories=["unconditional-image-generation"],
        size_categories=size_category(num_images),
        tags=["synthetic", "medical", "mri", "brain", "vq-ihdm"],
        configs=[{"config_name": "default", "description": version, "data_files": files}],
    )
    terms = "It is unknown on which data, and under which terms, the model was trained."
    if record is not None:
        terms = f"The model was trained on {record['data']['source']}, whose terms hold for what it draws. "
        terms += describe_terms(record)
    audit = describe_audit(own_report(pipeline, record["data"]) if record else None, provenance.pipeline)
    if drawn_otherwise(provenance.sampling, pipeline):
        audit = f"**These images were drawn otherwise than those that were audited.**\n\n{audit}"
    text = f"""---
{data.to_yaml()}
---

# Synthetic axial brain slices

{num_images:,} images drawn by a model. **No person was scanned for any of them.** For research, not for diagnosis: what
looks like a finding is none, and slices do not make up volumes.

```python
from datasets import load_dataset

images = load_dataset("NAME_OF_THIS_REPOSITORY_OR_FOLDER", split="train")
```

`index` numbers the images. The pipeline below draws the image of a `row` again, but for rounding:

```python
{call_of_an_image(provenance.sampling)}
```

Each PNG tells how it was made in a text chunk.

## How they were made

| | |
|---|---|
| model | {provenance.model} |
| pipeline | `{provenance.pipeline}`, {provenance.torch_dtype} |
| digest of its weights | `{provenance.weights}` |
| seed | {provenance.seed} |
| height and width of a pixel | {size_of_a_pixel(provenance)} |
| sampling | {json.dumps(provenance.sampling) if provenance.sampling else "the pipeline's defaults"} |

Made by `generate.py` of vq-ihdm; the versions of the libraries stand in `manifest.json`.

## Memorisation audit of the model

{audit}

## Terms

{terms}
"""
    with replacing(folder / "README.md") as temporary:
        DatasetCard(text).save(temporary)


def size_of_a_pixel(provenance: Provenance) -> str:
    return " x ".join(f"{mm:g}" for mm in provenance.spacing_mm) + " mm" if provenance.spacing_mm else "unknown"


def call_of_an_image(sampling: dict[str, Any]) -> str:
    """The call by which a pipeline draws the image of a `row` of the set again.

    Covariates that nobody asked for are left out, although the row tells them: given, they would be another condition.
    """
    arguments = ['generator=[torch.Generator().manual_seed(row["image_seed"])]']
    arguments += [f"{name}={value!r}" for name, value in sampling.items() if name != "covariates"]
    if asked := sampling.get("covariates"):
        values = ", ".join(f'"{name}": row["{name}"]' for name in asked)
        arguments.append(f"covariates={{{values}}}")
    return f"pipe({', '.join(arguments)})"
