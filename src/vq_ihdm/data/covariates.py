"""Age, sex and diagnosis from the tables imaging studies come with.

Known are BIDS `participants.tsv`, ADNIMERGE and the collection tables of the ADNI archive, IXI and OASIS tables; other
columns are dropped, so that no date, site or name reaches a published set.
"""

from pathlib import Path

import pandas as pd
from datasets import ClassLabel, Features, Value

from vq_ihdm.errors import InputError

# Column names in lower case, the preferred one first.
SUBJECT_COLUMNS = ("participant_id", "ptid", "subject", "subject id", "subject_id", "ixi_id", "id")
COVARIATE_COLUMNS = {
    "age": ("age",),
    "sex": ("sex", "ptgender", "gender", "m/f", "sex_id (1=m, 2=f)"),
    "diagnosis": ("diagnosis", "dx", "group", "dx_bl"),
    "cdr": ("cdr",),
}
SEXES = {"f": "F", "female": "F", "2": "F", "m": "M", "male": "M", "1": "M"}  # numbers as in ISO/IEC 5218
CDR = ["0", "0.5", "1", "2", "3"]  # Clinical Dementia Rating
MISSING = ["", "n/a", "N/A", "NA", "NaN", "nan"]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV file as text; its missing values become NA.

    Raises:
        InputError: the file is not there or not a table.
    """
    try:
        return pd.read_csv(
            path,
            sep="\t" if path.suffix == ".tsv" else ",",
            dtype=str,
            keep_default_na=False,
            na_values=MISSING,
        )
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"the table {path} cannot be read ({reason}); pass a CSV file or a .tsv file."
        ) from error


def find_column(table: pd.DataFrame, names: tuple[str, ...]) -> str | None:
    """The table's column with the first of `names` it has, upper or lower case."""
    lower = {column.strip().lower(): column for column in table.columns}
    return next((lower[name] for name in names if name in lower), None)


def read_covariates(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """The known covariates of `table`, row by row: `age` in years, `sex` F or M, `diagnosis`, `cdr`; None if missing.

    Args:
        table: from `read_table`.
        path: of the table, for messages.

    Raises:
        InputError: a value that cannot be understood.
    """

    def number(text: str) -> float:
        return float(text)

    def sex(text: str) -> str:
        return SEXES[text.strip().lower()]

    def diagnosis(text: str) -> str:
        return "AD" if text == "Dementia" else text  # ADNIMERGE's word in DX; DX_bl says AD

    def rating(text: str) -> str:
        return CDR[[float(grade) for grade in CDR].index(float(text))]

    covariates = {}
    for name, parse in {"age": number, "sex": sex, "diagnosis": diagnosis, "cdr": rating}.items():
        column = find_column(table, COVARIATE_COLUMNS[name])
        if column is None:
            continue
        try:
            covariates[name] = [None if pd.isna(text) else parse(text) for text in table[column]]
        except (KeyError, ValueError):
            bad = next(text for text in table[column] if not pd.isna(text) and not _parses(parse, text))
            raise InputError(
                f"column {column!r} of {path} holds {bad!r}, which is no {name}; correct it or leave it empty."
            ) from None
    return pd.DataFrame(covariates, dtype=object, index=table.index)


def _parses(parse, text: str) -> bool:
    try:
        parse(text)
    except (KeyError, ValueError):
        return False
    return True


def covariate_features(covariates: pd.DataFrame) -> Features:
    """Types of the columns of `read_covariates`."""
    types = {"age": Value("float32"), "sex": ClassLabel(names=["F", "M"]), "cdr": ClassLabel(names=CDR)}
    if "diagnosis" in covariates:
        types["diagnosis"] = ClassLabel(names=sorted(covariates["diagnosis"].dropna().unique()))
    return Features({name: types[name] for name in covariates})


def stratum(row: dict) -> str:
    """The label a subject's split is balanced by: the first known one of diagnosis, cdr and sex."""
    return next((str(row[name]) for name in ("diagnosis", "cdr", "sex") if row.get(name) is not None), "")
