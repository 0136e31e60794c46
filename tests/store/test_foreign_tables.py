"""Tables of other tools: cells as written, rows as a spreadsheet counts them, and other formats by their names."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import polars as pl
import pytest

from pipeline.errors import BadInput
from pipeline.store.tables import read_foreign_table

TEXT = "case,score\na,0.5\nb,-1\n"
ROWS = {"case": ["a", "b"], "score": ["0.5", "-1"]}


def found(file: Path, content: bytes | str) -> pl.DataFrame:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_foreign_table(file)


@pytest.mark.parametrize(
    "content",
    [
        TEXT,
        TEXT[:-1],
        TEXT + "\n\n",
        TEXT + " \n,\n , \n\r\n",
        "\n\n" + TEXT,
        TEXT.replace("b,", "\n,\nb,"),
        TEXT.replace("\n", "\r\n"),
        "\ufeff" + TEXT,
        'case,score\n"a",0.5\n"b","-1"\n',
        " case , score\n a, 0.5 \nb ,-1\n",
        "case,score,,\na,0.5,,\nb,-1,,\n",
    ],
)
def test_cells_are_text_without_spaces_and_empty_rows_are_left_out(tmp_path: Path, content: str) -> None:
    assert found(tmp_path / "a.csv", content).to_dict(as_series=False) == ROWS


def test_text_stays_text_and_empty_cells_are_null(tmp_path: Path) -> None:
    """`007` and `NA` are names here. Quotes keep commas and line breaks."""
    table = found(tmp_path / "a.csv", 'case,note,score\n007,"x, ""y""\nz",NA\n1e3,,\n')
    assert table.rows() == [("007", 'x, "y"\nz', "NA"), ("1e3", None, None)]


def test_rows_are_those_of_a_spreadsheet(tmp_path: Path) -> None:
    """The header is row 1, and empty rows and rows of two lines count."""
    (tmp_path / "a.csv").write_text('case,score\na,"0\n5"\n,\nb,1\n\n')
    assert read_foreign_table(tmp_path / "a.csv", "at")["at"].to_list() == [2, 4]
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    assert read_foreign_table(tmp_path / "a.parquet", "at")["at"].to_list() == [1, 2]
    assert read_foreign_table(tmp_path / "a.parquet").columns == ["case", "score"]


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    table = found(tmp_path / "a.csv", "case,score\n")
    assert (table.columns, table.height) == (["case", "score"], 0)
    assert table.schema["case"] == pl.String


def workbook(file: Path) -> bytes:
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("xl/workbook.xml", "<workbook/>")
    return file.read_bytes()


@pytest.mark.parametrize("name", ["a.csv", "a.xlsx", "a.txt"])
@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (TEXT.encode("utf-16"), "text in UTF-16"),
        (TEXT.encode("utf-16-le"), "text in UTF-16, or a damaged file"),
        (TEXT.encode("utf-16-be"), "text in UTF-16, or a damaged file"),
        (TEXT.encode() + bytes(20), "text in UTF-16, or a damaged file"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "text in UTF-16"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(20), r"a workbook \(\.xls\)"),
        (gzip.compress(TEXT.encode(), mtime=0), "a compressed file"),
    ],
)
def test_other_formats_are_named_as_what_they_are(tmp_path: Path, name: str, content: bytes, kind: str) -> None:
    with pytest.raises(
        BadInput, match=rf"{name}: expected a CSV file in UTF-8, found {kind}; save it as CSV in UTF-8 .*with commas"
    ):
        found(tmp_path / name, content)


def test_workbooks_and_parquet_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"found a workbook \(\.xlsx\) or another ZIP archive; save it as CSV"):
        found(tmp_path / "a.csv", workbook(tmp_path / "b.xlsx"))
    pl.DataFrame(ROWS).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(BadInput, match=r"a.csv: expected a CSV file in UTF-8, found a Parquet file; name it .parquet"):
        found(tmp_path / "a.csv", (tmp_path / "a.parquet").read_bytes())
    with pytest.raises(BadInput, match=r"a.parquet: not a readable Parquet file"):
        found(tmp_path / "a.parquet", TEXT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"case,score\na,0.5\nM\xfcller,1\n", r"expected a CSV file in UTF-8, found the byte 0xfc in line 3; save it"),
        (
            "case;score\na;0,5\n",
            r"expected commas between the columns, found semicolons in 'case;score'; .* with commas",
        ),
        ("case;a, b;score\na;0,5;1\n", "expected commas between the columns, found semicolons"),
        ("case\tscore\na\t0.5\n", "expected commas between the columns, found tabs"),
        ("case|score\na|0.5\n", r"expected commas between the columns, found '\|'"),
        (
            "case,score,score\na,0.5,1\n",
            "expected different names of columns, found 'score' twice; rename or remove one",
        ),
        ("case,score, score\na,0.5,1\n", ".* found 'score' twice"),
        ("a|b,score\nx\n", "row 2: expected 2 cells"),
        ("case,score\na,0,5\n", r"row 2: expected 2 cells as in the header, found 3 \(a, 0, 5\); correct the row"),
        ("case,score\n\na,0.5\nb\n", r"row 4: expected 2 cells as in the header, found 1 \(b\); correct the row"),
        ('case,score\na,"0.5\n', r"expected a CSV file in UTF-8, found unexpected end of data in line 2"),
        ("", "expected a CSV file in UTF-8 with a header, found an empty file"),
        ("\n \n", "expected a CSV file in UTF-8 with a header, found an empty file"),
    ],
)
def test_tables_that_would_be_read_otherwise_than_meant(tmp_path: Path, content: bytes | str, message: str) -> None:
    with pytest.raises(BadInput, match=f"a.csv: {message}"):
        found(tmp_path / "a.csv", content)


def test_a_missing_table(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"a.csv: no such file; paths are relative to the folder of params.yaml"):
        read_foreign_table(tmp_path / "a.csv")


def test_many_rows_keep_their_order(tmp_path: Path) -> None:
    """More rows than are read at once."""
    rows = 150_000
    table = found(tmp_path / "a.csv", "case,score\n" + "".join(f"c{row},{row}\n" for row in range(rows)))
    assert table["score"].cast(pl.Int64).to_list() == list(range(rows))
