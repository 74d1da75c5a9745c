"""Age, sex and diagnosis from the tables imaging studies come with.

Known are BIDS `participants.tsv`, ADNIMERGE and the collection tables of the ADNI archive, IXI and OASIS
tables. Other columns are dropped, so that no date, site or name reaches a published set.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from datasets import ClassLabel, Features, Value

from ..errors import InputError, naming

# Names of columns in lower case, the preferred one first.
SUBJECT = ("participant_id", "ptid", "subject", "mri id", "subject id", "subject_id", "oasisid", "ixi_id", "id")
SESSION = ("session_id", "session")
DATE = ("examdate", "acq date", "study date")
IMAGE_ID = ("image data id", "image id", "image_id")
DESCRIPTION = (("description",), ("modality",))
YEARS_SINCE_BASELINE = ("years_bl",)
COVARIATES = {
    "age": ("age",),
    "sex": ("sex", "ptgender", "gender", "m/f", "sex_id (1=m, 2=f)"),
    "diagnosis": ("diagnosis", "dx", "group", "research group", "dx_bl"),
    "cdr": ("cdr",),
}
MAX_DAYS = 365  # between a scan and the visit whose diagnosis and age it gets
MOST_DIAGNOSES = 20  # of a study: more are free text, which may hold dates and names
SEXES = {"f": "F", "female": "F", "2": "F", "m": "M", "male": "M", "1": "M"}  # numbers as in ISO/IEC 5218
CDR = ["0", "0.5", "1", "2", "3"]  # Clinical Dementia Rating
MAX_AGE = 120.0


def parse_age(text: str) -> float:
    """Years, as a number or as DICOM has them (061Y).

    A top-coded age, such as 90+ or >89, is its bound: the ages of the oldest are withheld in many studies.

    Raises:
        ValueError: no age of a person.
    """
    found = re.fullmatch(r"[>≥]?=?\s*(\d+\.?\d*|\.\d+)\s*(\+|Y)?", text.strip())
    if not found or float(found[1]) > MAX_AGE:
        raise ValueError(text)
    return float(found[1])


PARSERS = {
    "age": parse_age,
    "sex": lambda text: SEXES[text.strip().lower().removesuffix(".0")],
    "diagnosis": str.strip,
    "cdr": lambda text: CDR[[float(rating) for rating in CDR].index(float(text))],
}
MISSING = ["", "n/a", "N/A", "NA", "NaN", "nan"]


def read_table(path: Path) -> pd.DataFrame:
    """A CSV or TSV file as text without the spaces around it; its missing values become NA.

    Raises:
        InputError: the file is not there or no table.
    """
    with naming(f"the table {path}", "pass a CSV file, or one with tabs"):
        if not path.is_file():
            raise InputError("is no file; check its name.")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError:
            raise InputError("is not in UTF-8; save it as 'CSV UTF-8'.") from None
        heading = text.partition("\n")[0]
        if heading.count(";") > heading.count(","):
            raise InputError("is separated by semicolons; save it with commas between values and points in numbers.")
        # pandas shifts the columns where lines end with a comma, and drops what a line has too much.
        lines = list(csv.reader(io.StringIO(text), delimiter="\t" if "\t" in heading else ",", strict=True))
        if not lines:
            raise InputError("is empty; pass another one.")
        columns, *lines = lines
        for number, line in enumerate(lines, start=2):
            if any(map(str.strip, line[len(columns) :])):
                raise InputError(f"has more values than columns in line {number}; correct it.")
        width = len(columns)
        table = pd.DataFrame([(line + [""] * width)[:width] for line in lines], columns=columns, dtype=str)
        names = [name.strip().lower() for name in columns if name.strip()]
        if again := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"has the column {again[0]} twice, in upper or lower case; leave one of them.")
    table = table.apply(lambda column: column.str.strip())
    return table.mask(table.isin(MISSING)).dropna(how="all")


def read_study(path: Path) -> pd.DataFrame:
    """`read_table`; of a BIDS tree's participants.tsv with a row for each session that `sub-*_sessions.tsv` tell of.

    What the sessions' files leave out is the participant's.

    Raises:
        InputError: a file is no table, or holds a value that cannot be understood.
    """
    table = read_table(path)
    files = sorted(path.parent.glob("sub-*/sub-*_sessions.tsv")) if path.name == "participants.tsv" else []
    subject = find_column(table, SUBJECT)
    if not files or subject is None:
        return table
    named = {column.lower(): column for column in table.columns}
    sessions = []
    for file in files:
        rows = read_table(file)
        try:
            read_covariates(rows)  # here, where the lines are those of the file
        except InputError as error:
            raise InputError(f"{file}: {error}") from error
        rows = rows.rename(columns={column: named.get(column.lower(), column) for column in rows.columns})
        sessions.append(rows.assign(**{subject: file.parent.name}))
    study = table.merge(pd.concat(sessions), on=subject, how="outer", suffixes=(" of the participant", ""))
    for column in table.columns:
        if (of_participant := f"{column} of the participant") in study:
            study[column] = study[column].fillna(study.pop(of_participant))
    return study


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
        for row, text in table[column].items():
            try:
                values.append(None if pd.isna(text) or not text.strip() else parse(text))
            except (KeyError, ValueError):
                raise InputError(
                    f"column {column!r} of the table holds {text!r} in line {row + 2}, which is no {name}; correct it "
                    "or leave it empty."
                ) from None
        covariates[name] = pd.Series(values, index=table.index, dtype=object)
        if name == "diagnosis" and (count := covariates[name].nunique()) > MOST_DIAGNOSES:
            raise InputError(
                f"column {column!r} of the table holds {count} different values, more than a study has diagnoses; "
                "group them, or rename the column to leave it out."
            )
        if column.strip().lower() == "dx":  # ADNIMERGE has Dementia there, AD in DX_bl
            covariates[name] = covariates[name].replace("Dementia", "AD")
    years = find_column(table, YEARS_SINCE_BASELINE)
    if years and "age" in covariates:  # ADNIMERGE's AGE is that of the first visit
        covariates["age"] = covariates["age"].astype(float) + pd.to_numeric(table[years], errors="coerce").fillna(0)
    covariates = covariates.astype(object)
    return covariates.where(covariates.notna(), None)


def describe_columns(path: Path, table: pd.DataFrame, others: Sequence[str]) -> str:
    """Which columns of a table are taken as which covariate, and which are not: one may be there by another name.

    Args:
        others: columns with a use of their own.
    """
    taken = {find_column(table, names): name for name, names in COVARIATES.items()}
    unused = [column for column in table.columns if column not in (*taken, *others)]
    told = [name + f" ({column})" * (column != name) for column, name in taken.items() if column is not None]
    return (
        f"covariates of {path}: {', '.join(told) or 'none'}"
        + f"; not used: {', '.join(unused[:12])}" * bool(unused)
        + " ..." * (len(unused) > 12)
    )


def column_types(covariates: pd.DataFrame) -> Features:
    """Types of the columns of `read_covariates`."""
    types = {"age": Value("float32"), "sex": ClassLabel(names=["F", "M"]), "cdr": ClassLabel(names=CDR)}
    if "diagnosis" in covariates:
        types["diagnosis"] = ClassLabel(names=sorted(covariates["diagnosis"].dropna().unique()))
    return Features({name: types[name] for name in covariates})


def stratum(row: dict[str, Any]) -> str:
    """The label a subject's split is balanced by: the first known one of diagnosis, cdr and sex."""
    return next((str(row[name]) for name in ("diagnosis", "cdr", "sex") if row.get(name) is not None), "")


class ListedImage(NamedTuple):
    """What a table says of an image: its id, description and modality, as one text, and its ISO date."""

    text: str
    date: str


class CovariateTable:
    """A table of subjects, of their visits or of their images, to look scans up in.

    Args:
        path: CSV or TSV file with a column of subject ids, as `read_study` takes it.
        subject_pattern: regular expression; where it matches an id of the table, its group is the id.

    Raises:
        InputError: no table, no column of subjects, or a value that cannot be understood.
    """

    def __init__(self, path: Path, subject_pattern: str) -> None:
        table = read_study(path)
        column = find_column(table, SUBJECT)
        if column is None:
            raise InputError(f"the table {path} has no column of subjects; name one of them participant_id.")
        self.about = describe_columns(path, table, (column,))
        self.names = table[column].fillna("")  # as written: may hold the visit, too
        self.subjects = self.names.str.extract(subject_pattern, expand=False).fillna(self.names)
        self.covariates = read_covariates(table)
        self.features = column_types(self.covariates)
        self.image_ids = self._text(table, IMAGE_ID).str.upper().str.removeprefix("I")
        self.sessions = self._text(table, SESSION).str.removeprefix("ses-")
        self.dates = pd.to_datetime(self._text(table, DATE), errors="coerce", format="mixed")
        descriptions = self._text(table, DESCRIPTION[0]) + " " + self._text(table, DESCRIPTION[1])
        self.images = {
            image: ListedImage(f"I{image} {descriptions[row]}", "" if pd.isna(day) else day.date().isoformat())
            for row, (image, day) in enumerate(zip(self.image_ids, self.dates, strict=True))
            if image
        }

    @staticmethod
    def _text(table: pd.DataFrame, names: tuple[str, ...]) -> pd.Series:
        column = find_column(table, names)
        return table[column].fillna("") if column else pd.Series("", table.index)

    def lookup(
        self, subject: str, date: str = "", image_id: str = "", session: str = "", path: str = ""
    ) -> dict[str, Any]:
        """Covariates of one scan: of its image id, its session, its name in `path` or the visit nearest to its date.

        Args:
            subject: its id, as the pattern of the table finds it.
            date: ISO; empty where unknown, as are the others.
            path: of the scan; a row whose own id stands there, such as OAS1_0001_MR2, is meant.

        Raises:
            InputError: no row, rows of other sessions alone, none within `MAX_DAYS`, or rows that differ and nothing
                to choose by.
        """
        rows = self.subjects.index[self.subjects == subject]
        if rows.empty:
            raise InputError(
                f"has no row in the table of covariates; add one of {subject}, or tell ids by --subject_pattern."
            )
        is_named = False
        for known in (
            (self.image_ids[rows] == image_id.upper().removeprefix("I")) & (image_id != ""),
            (self.sessions[rows] == session) & (session != ""),
            self.names[rows].map(lambda name: name in path),
        ):
            matching = rows[known[rows]]
            if not matching.empty:
                rows, is_named = matching, True
        distances = (self.dates[rows] - pd.to_datetime(date or None, errors="coerce")).abs()
        if distances.notna().any():
            nearest = distances.min()
            if nearest.days > MAX_DAYS and not is_named:
                raise InputError(
                    f"is of {date}, {nearest.days} days from the nearest visit in the table of covariates; add its "
                    "visit, or leave dates out of the table where a row holds for all visits."
                )
            rows = rows[distances == nearest]
        elif session and not self.sessions[rows].isin(["", session]).any():
            raise InputError(f"has no row of session {session} in the table of covariates; add one.")
        found = self.covariates.loc[rows].drop_duplicates()
        if len(found) > 1:
            raise InputError("has several rows in the table of covariates; leave the one that belongs to it.")
        return found.iloc[0].to_dict()
