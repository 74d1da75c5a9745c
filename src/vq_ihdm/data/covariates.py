"""Age, sex and diagnosis from the tables imaging studies come with.

Known are BIDS `participants.tsv`, ADNIMERGE and the collection tables of the ADNI archive, IXI and OASIS
tables. Other columns are dropped, so that no date, site or name reaches a published set.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from datasets import ClassLabel, Features, Value

from vq_ihdm.errors import InputError

# Names of columns in lower case, the preferred one first.
SUBJECT = ("participant_id", "ptid", "subject", "subject id", "subject_id", "ixi_id", "id")
DATE = ("examdate", "acq date")
IMAGE_ID = ("image data id",)
YEARS_SINCE_BASELINE = ("years_bl",)
COVARIATES = {
    "age": ("age",),
    "sex": ("sex", "ptgender", "gender", "m/f", "sex_id (1=m, 2=f)"),
    "diagnosis": ("diagnosis", "dx", "group", "dx_bl"),
    "cdr": ("cdr",),
}
SEXES = {"f": "F", "female": "F", "2": "F", "m": "M", "male": "M", "1": "M"}  # numbers as in ISO/IEC 5218
CDR = ["0", "0.5", "1", "2", "3"]  # Clinical Dementia Rating
PARSERS = {
    "age": float,
    "sex": lambda text: SEXES[text.strip().lower()],
    "diagnosis": lambda text: "AD" if text == "Dementia" else text,  # ADNIMERGE: Dementia in DX, AD in DX_bl
    "cdr": lambda text: CDR[[float(rating) for rating in CDR].index(float(text))],
}
MISSING = ["", "n/a", "N/A", "NA", "NaN", "nan"]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV file as text; its missing values become NA.

    Raises:
        InputError: the file is not there or no table.
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=MISSING)
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError):
        raise InputError(f"the table {path} cannot be read; pass a CSV file, or a .tsv file.") from None


def find_column(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    """The column of `table` that has the first of `names` it knows, in upper or lower case."""
    columns = {column.strip().lower(): column for column in table.columns}
    return next((columns[name] for name in names if name in columns), None)


def read_covariates(table: pd.DataFrame) -> pd.DataFrame:
    """The known covariates row by row: `age` in years, `sex` F or M, `diagnosis`, `cdr`; None where missing.

    Raises:
        InputError: a value that cannot be understood.
    """
    covariates = pd.DataFrame(index=table.index)
    for name, parse in PARSERS.items():
        column = find_column(table, COVARIATES[name])
        if column is None:
            continue
        values = []
        for text in table[column]:
            try:
                values.append(None if pd.isna(text) else parse(text))
            except (KeyError, ValueError):
                raise InputError(
                    f"column {column!r} of the table holds {text!r}, which is no {name}; correct it or leave it empty."
                ) from None
        covariates[name] = pd.Series(values, index=table.index, dtype=object)
    years = find_column(table, YEARS_SINCE_BASELINE)
    if years and "age" in covariates:  # ADNIMERGE's AGE is that of the first visit
        covariates["age"] += pd.to_numeric(table[years], errors="coerce").fillna(0)
    return covariates.where(covariates.notna(), None)


def covariate_features(covariates: pd.DataFrame) -> Features:
    """Types of the columns of `read_covariates`."""
    types = {"age": Value("float32"), "sex": ClassLabel(names=["F", "M"]), "cdr": ClassLabel(names=CDR)}
    if "diagnosis" in covariates:
        types["diagnosis"] = ClassLabel(names=sorted(covariates["diagnosis"].dropna().unique()))
    return Features({name: types[name] for name in covariates})


def stratum(row: dict[str, Any]) -> str:
    """The label a subject's split is balanced by: the first known one of diagnosis, cdr and sex."""
    return next((str(row[name]) for name in ("diagnosis", "cdr", "sex") if row.get(name) is not None), "")


class CovariateTable:
    """A table of subjects, or of their visits, to look scans up in.

    Args:
        path: CSV or TSV file with a column of subject ids.
        subject_pattern: regular expression; where it matches an id of the table, its group is the id.

    Raises:
        InputError: no table, no column of subjects, or a value that cannot be understood.
    """

    def __init__(self, path: Path, subject_pattern: str) -> None:
        self.table = read_table(path)
        column = find_column(self.table, SUBJECT)
        if column is None:
            raise InputError(f"the table {path} has no column of subjects; name one of them participant_id.")
        found = self.table[column].str.extract(subject_pattern)[0]
        self.subjects = found.fillna(self.table[column])
        self.covariates = read_covariates(self.table)
        self.features = covariate_features(self.covariates)

    def lookup(self, subject: str, date: str, image_id: str) -> dict[str, Any]:
        """Covariates of one scan: of its image id, else of the visit nearest to its date, else of its subject.

        Raises:
            InputError: no row, or rows that differ and nothing to choose by.
        """
        rows = self.table[self.subjects == subject]
        images, dates = find_column(rows, IMAGE_ID), find_column(rows, DATE)
        if rows.empty:
            raise InputError("has no row in the table of covariates; add one for its subject.")
        if images and image_id in set(rows[images]):
            rows = rows[rows[images] == image_id]
        elif dates and date and rows[dates].notna().any():
            distance = (pd.to_datetime(rows[dates], errors="coerce") - pd.Timestamp(date)).abs()
            rows = rows[distance == distance.min()]
        found = self.covariates.loc[rows.index].drop_duplicates()
        if len(found) > 1:
            raise InputError("has several rows in the table of covariates; leave the one that belongs to it.")
        return found.iloc[0].to_dict()
