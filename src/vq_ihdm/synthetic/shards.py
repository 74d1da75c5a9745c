"""Drawn images as parquet shards with a card: what `load_dataset(folder)` reads, at any number of images."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Features, Value
from datasets import Image as ImageFeature
from PIL import Image

from ..covariates import Covariate
from ..files import replacing
from .image_files import COLUMNS
from .provenance import Provenance, png_bytes

FEATURES = Features({"image": ImageFeature(mode="L"), "index": Value("int64"), "image_seed": Value("int64")})
IMAGES_PER_ROW_GROUP = 100  # what a reader of a single image has to fetch


class ParquetShards:
    """`data/train-00000.parquet`, `data/train-00001.parquet`, ... of `images_per_shard` images each, the last of fewer.

    A shard is there whole or not at all, and what it holds depends on its number alone: processes share the work by
    shards, and a killed one loses no more than the shard it was at.
    """

    def __init__(
        self,
        folder: Path,
        provenance: Provenance,
        images_per_shard: int,
        known_covariates: Sequence[Covariate] = (),
    ):
        self.folder, self.provenance, self.images_per_part = folder, provenance, images_per_shard
        types = {c.name: Value("string" if c.kind == "category" else "float32") for c in known_covariates}
        self.features = Features({**FEATURES, **types})

    def holds(self, part: range) -> bool:
        """Whether the shard of the images `part` is there with all of them, and whole by its pages' checksums."""
        file = self._file_of(part)
        if not file.is_file():
            return False
        try:
            table = pq.read_table(file, page_checksum_verification=True)
        except Exception:  # of a reader of foreign bytes: anything from OSError to UnicodeDecodeError
            return False
        return table.schema == self.features.arrow_schema and table.num_rows >= len(part)

    def write(self, part: range, images: Iterable[tuple[np.ndarray, dict[str, Any]]]) -> None:
        """Write the shard of the images (H, W) uint8 of `part` with their covariates."""
        rows = []
        for i, (pixels, covariates) in zip(part, images, strict=True):
            about = self.provenance.of_image(i, covariates)
            image = {"bytes": png_bytes(pixels, about), "path": f"{i:06d}.png"}
            rows.append({"image": image, **{name: about[name] for name in COLUMNS}, **covariates})
        table = pa.Table.from_pylist(rows, schema=self.features.arrow_schema)
        with replacing(self._file_of(part)) as temporary:
            pq.write_table(table, temporary, row_group_size=IMAGES_PER_ROW_GROUP, write_page_checksum=True)

    def read(self, count: int) -> list[np.ndarray]:
        """The first `count` images, (H, W) uint8."""
        images = []
        for start in range(0, count, self.images_per_part):
            column = pq.read_table(self._file_of(range(start, count)), columns=["image"])["image"]
            images += [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for image in column.to_pylist()]
        return images[:count]

    def finish(self) -> None:
        """A set of shards is complete with its last shard; its card is there from the beginning."""

    def _file_of(self, part: range) -> Path:
        return self.folder / "data" / f"train-{part.start // self.images_per_part:05d}.parquet"
