"""Tables of covariates as studies write them."""

import re
from pathlib import Path

import pytest

from vq_ihdm.data.covariates import CovariateTable, describe_columns, read_covariates, read_table, stratum
from vq_ihdm.errors import InputError


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "line", "expected"),
    [
        ("ID,M/F,Hand,Age,CDR", "OAS1_0001_MR1,F,R,74,0.5", {"sex": "F", "age": 74.0, "cdr": "0.5"}),
        ("Subject,Group,Sex,Age,Visit", "002_S_0295,MCI,M,84,1", {"diagnosis": "MCI", "sex": "M", "age": 84.0}),
        ("PTID,AGE,PTGENDER,DX,DX_bl", "x,70.5,Female,Dementia,LMCI", {"age": 70.5, "sex": "F", "diagnosis": "AD"}),
        ("participant_id,age,sex", "sub-1,n/a,", {"age": None, "sex": None}),
        ("participant_id,age,diagnosis", "sub-1,  , AD ", {"age": None, "diagnosis": "AD"}),
        ("subject,cdr,weight,birthday", "a,1.0,80,1950-01-01", {"cdr": "1"}),
        ("subject\tage\tsex", "a\t061Y\t2.0", {"age": 61.0, "sex": "F"}),
        ("subject,diagnosis", "a,Dementia,", {"diagnosis": "Dementia"}),
    ],
)
def test_known_columns(tmp_path: Path, header: str, line: str, expected: dict):
    covariates = read_covariates(read_table(table(tmp_path / "t.csv", header, line)))
    assert covariates.loc[0].to_dict() == expected


@pytest.mark.parametrize(
    ("column", "value"),
    [*(("age", text) for text in ("old", "-3", "inf", "nan years", "5000", "+")), ("sex", "0"), ("cdr", "0.7")],
)
def test_a_value_that_is_none_is_named(tmp_path: Path, column: str, value: str):
    path = table(tmp_path / "t.tsv", f"participant_id\t{column}", f"sub-1\t{value}")
    with pytest.raises(InputError, match=f"{column}.*{re.escape(value)}.*line 2"):
        CovariateTable(path, r"sub-(\w+)")


def test_unusable_tables(tmp_path: Path):
    for path in (tmp_path / "missing.csv", table(tmp_path / "none.csv", "name,age", "a,3")):
        with pytest.raises(InputError, match=path.name):
            CovariateTable(path, r"sub-(\w+)")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"subject;age\na;61\n", "semicolons; save it with commas"),
        ("subject,sex\nM\xfcller,M\n".encode("latin-1"), "'CSV UTF-8'"),
        (b'subject,age\na,"61', "unexpected end of data"),
        (b"Age,age\n1,2\n", "has the column age twice"),
        (b"subject,age\na,61,3,4\n", "line 2"),
        (b"", "is empty"),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, sentence: str):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"^the table .*{sentence}"):
        read_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="is no file; check its name"):
        read_table(tmp_path / "missing.csv")


def test_blank_lines_and_commas_at_the_end_change_nothing(tmp_path: Path):
    path = table(tmp_path / "t.csv", "\ufeffsubject,age", "a,61,", "", "b,old,")
    with pytest.raises(InputError, match="'old' in line 4"):
        read_covariates(read_table(path))


def test_the_columns_of_a_table_are_told(tmp_path: Path):
    path = table(tmp_path / "people.csv", "subject,PTGENDER,Age at scan", "a,Male,61")
    said = describe_columns(path, read_table(path), ("subject",))
    assert said.endswith("people.csv: sex (PTGENDER); not used: Age at scan")


def test_free_text_is_no_diagnosis(tmp_path: Path):
    path = table(tmp_path / "t.csv", "subject,diagnosis", *(f"{n},GBM operated by Dr {n}" for n in range(30)))
    with pytest.raises(InputError, match="holds 30 different values"):
        read_covariates(read_table(path))


def test_several_visits(tmp_path: Path):
    header = "Image Data ID,Subject,Age,Acq Date"
    rows = ["I1,s,70,1/20/2006", "I2,s,71,2/11/2007", "I3,s,72,3/02/2008"]
    visits = CovariateTable(table(tmp_path / "t.csv", header, *rows), r"sub-(\w+)")
    assert visits.lookup("s", "2006-12-24", "")["age"] == 71  # the nearest date
    with pytest.raises(InputError, match="is of 2016-12-24, .* days from the nearest visit"):
        visits.lookup("s", "2016-12-24", "")
    assert visits.lookup("s", "2006-12-24", "I3")["age"] == 72  # the image's own row
    with pytest.raises(InputError, match="several rows"):
        visits.lookup("s", "", "")
    with pytest.raises(InputError, match="no row"):
        visits.lookup("t", "2006-12-24", "")


def test_stratum_is_the_first_known_label():
    assert stratum({"age": 3.0, "sex": "F", "diagnosis": None, "cdr": "0"}) == "0"
    assert stratum({"age": 3.0}) == ""


def test_top_coded_ages_are_their_bound(tmp_path: Path):
    path = table(tmp_path / "t.csv", "subject,age", "a,90+", "b,>89", "c, >= 90 ", "d,0", "e,.5", "f,120")
    assert read_covariates(read_table(path))["age"].tolist() == [90, 89, 90, 0, 0.5, 120]


def test_a_missing_age_stays_missing_at_a_later_visit(tmp_path: Path):
    path = table(tmp_path / "t.csv", "PTID,AGE,Years_bl", "a,70,2.5", "b,,2.5", "c,70,")
    assert read_covariates(read_table(path))["age"].tolist() == [72.5, None, 70]


def test_the_row_is_that_of_session_or_name(tmp_path: Path):
    rows = ["OAS1_0001_MR1,74", "OAS1_0001_MR2,75", "OAS1_0002_MR1,60"]
    oasis = CovariateTable(table(tmp_path / "o.csv", "ID,Age", *rows), r"OAS1_(\d{4})")
    assert oasis.lookup("0001", path="disc1/OAS1_0001_MR2/x.img")["age"] == 75
    rows = ["sub-01\tses-a\t20", "sub-01\tses-b\t22", "sub-02\tses-a\t30", "sub-03\t\t40"]
    bids = CovariateTable(table(tmp_path / "p.tsv", "participant_id\tsession_id\tage", *rows), r"sub-(\w+)")
    assert bids.lookup("01", session="b", path="sub-01/ses-b/sub-01_ses-b_T1w.nii.gz")["age"] == 22
    with pytest.raises(InputError, match="has no row of session b in the table"):
        bids.lookup("02", session="b")
    assert bids.lookup("03", session="b")["age"] == 40  # its row is of no session


def test_images_a_table_lists(tmp_path: Path):
    header = '"Image Data ID","Subject","Sex","Age","Modality","Description","Acq Date"'
    rows = ['"I12","s","F","70","MRI","MPR; N3; Scaled","3/02/2008"', '"I13","s","F","71","MRI","FLAIR",""']
    images = CovariateTable(table(tmp_path / "t.csv", header, *rows), r"(\w+)").images
    assert images == {"12": ("I12 MPR; N3; Scaled MRI", "2008-03-02"), "13": ("I13 FLAIR MRI", "")}


def test_the_sessions_of_a_bids_tree_have_their_own_ages(tmp_path: Path):
    people = table(tmp_path / "participants.tsv", "participant_id\tAge\tsex", "sub-01\t60\tF", "sub-02\t70\tM")
    (tmp_path / "sub-01").mkdir()
    sessions = tmp_path / "sub-01" / "sub-01_sessions.tsv"
    table(sessions, "session_id\tage\tdiagnosis", "ses-M00\t61.5\tCN", "ses-M12\t\tMCI")
    study = CovariateTable(people, r"sub-(\w+)")
    assert study.lookup("01", session="M00") == {"age": 61.5, "sex": "F", "diagnosis": "CN"}
    assert study.lookup("01", session="M12") == {"age": 60, "sex": "F", "diagnosis": "MCI"}  # of the participant
    assert study.lookup("02", session="M00") == {"age": 70, "sex": "M", "diagnosis": None}
    with pytest.raises(InputError, match="has no row of session M24"):
        study.lookup("01", session="M24")
    table(sessions, "session_id\tage", "ses-M00\t61", "ses-M12\told")
    with pytest.raises(InputError, match="sub-01_sessions.tsv: column 'age' of the table holds 'old' in line 3"):
        CovariateTable(people, r"sub-(\w+)")
