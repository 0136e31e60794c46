"""Checks of every reader: case ids, paths below the data root, DICOM, shapes and classes of labels."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.store.schema import UNKNOWN

_CASE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_DICOM_PREAMBLE = 128
_LONGEST = 230
"""Bytes of a case id. File systems take 255, and endings and prefixes of files in work are added."""
_ROUNDING = 1e-4
_CLASS_NUMBERS = 32
"""Greys below this number look black: they are class numbers, not shades."""


def case_id_of(name: str) -> str:
    """Case id of a case that is called `name`: letters, digits, `_`, `.` and `-`, and no dot in front.

    Accents are left out, other letters become their code points, and all other characters become one `_`. A name that
    is a case id stays as it is. Two names may have one id.
    """
    if _CASE_ID.fullmatch(name):
        return name
    plain = "".join(one for one in unicodedata.normalize("NFKD", name) if not unicodedata.combining(one))
    coded = "".join(f"u{ord(one):04x}" if ord(one) > 127 and one.isalnum() else one for one in plain)
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", coded).rstrip("_").lstrip(".")


def check_case_id(case_id: str, file: object) -> None:
    """Refuse an unsafe or long case id. Case ids become file names, keys of tables and text of the report."""
    refuse_long_name(case_id, file)
    if not _CASE_ID.fullmatch(case_id):
        raise BadInput(
            f"{file}: expected a name with letters or digits, from which a case id can be made, found {case_id!r}; "
            "rename the file"
        )


def refuse_long_name(case_id: str, file: object) -> None:
    """Refuse a case id that is too long for the names of files that are made of it."""
    if (found := len(os.fsencode(case_id))) > _LONGEST:
        raise BadInput(
            f"{file}: expected a case id of at most {_LONGEST} bytes, found {found}, as files are named by it; rename "
            "the file"
        )


def inside(root: Path, relative: str, named_by: object) -> Path:
    """Path of a file below the data root. `named_by` says in messages where the path comes from.

    Absolute paths and `..` are refused, because DVC watches the data root only.
    """
    parts = PurePosixPath(relative)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise BadInput(f"{named_by}: expected a path below {root}, found {relative!r}; move the file there")
    return root / parts


def refuse_dicom(path: Path) -> None:
    """Refuse a DICOM file, recognised by the suffix or by the letters DICM after the preamble.

    A missing file passes, unless the suffix is that of DICOM.
    """
    found = path.suffix.lower() in (".dcm", ".dicom")
    if not found and path.is_file():
        with path.open("rb") as file:
            found = file.read(_DICOM_PREAMBLE + 4)[_DICOM_PREAMBLE:] == b"DICM"
    if found:
        raise BadInput(f"{path}: found DICOM, expected NIfTI or pictures; convert the series, e.g. with dcm2niix")


def json_object(file: Path) -> dict[str, Any]:
    """Content of a JSON file that describes a data set.

    Raises `BadInput` for a missing or broken file, and for a key that is there twice, of which one would be lost.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        counts = Counter(key for key, _ in pairs)
        if twice := [key for key, count in counts.items() if count > 1]:
            raise BadInput(f"{file}: expected every key once, found '{twice[0]}' twice; remove one of them")
        return dict(pairs)

    content = json_content(file, "the JSON index of the data set", "check `path`", once)
    if not isinstance(content, dict):
        raise BadInput(f"{file}: expected a JSON object, found {type(content).__name__}; check the file")
    return content


def json_content(
    file: Path, what: str, advice: str, pairs: Callable[[list[tuple[str, Any]]], dict[str, Any]] = dict
) -> Any:
    """Content of a JSON file of the user, with or without a byte order mark.

    `what` names the content in messages, and `advice` says what to do about a missing file. `pairs` makes an object of
    its keys and values. Raises `BadInput` for a missing or damaged file.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BadInput(f"{file}: expected {what}, found {error}; correct it, or fetch it again") from error
    except OSError as error:
        found = "no file" if isinstance(error, FileNotFoundError) else error.strerror
        raise BadInput(f"{file}: expected {what}, found {found}; {advice}") from error


def refuse_no_file(file: Path) -> None:
    """Refuse a folder, and a link to nothing, in a folder of images."""
    if file.is_dir():
        raise BadInput(f"{file}: expected a file, found a folder; move it")
    if not file.is_file():
        raise BadInput(f"{file}: expected a file, found a link to nothing; mend the link, or remove it")


def stated_number(content: Mapping[str, Any], key: str, file: Path) -> int | None:
    """A number of cases that an index states, or None. Raises `BadInput` for anything but a whole number."""
    found = content.get(key)
    if found is not None and type(found) is not int:
        raise BadInput(f"{file}: `{key}` expected a number without quotes, found {found!r}; correct it")
    return found


def present(file: Path, case_id: str) -> None:
    """Refuse a missing file."""
    if not file.is_file():
        raise BadInput(f"{file}: case '{case_id}': expected a file, found none; add it, or remove the case")


def refuse_other_shape(found: tuple[int, ...], expected: tuple[int, ...], file: Path, case_id: str) -> None:
    """Refuse a label or channel whose shape differs from the shape of the image."""
    if found != expected:
        raise BadInput(
            f"{file}: case '{case_id}': expected the image's shape {expected}, found {found}; resample the file to the "
            "image's grid"
        )


def refuse_inverted(values: np.ndarray, colours: np.ndarray, file: Path, case_id: str) -> None:
    """Refuse a colour table that contradicts the indices of a mask.

    `values`: indices `[*space]`. `colours`: u8 `[entry, 3 or 4]`, red, green, blue and perhaps alpha. Refused are three
    kinds of table: greys of which index 0 is the brightest, greys that are class numbers in another order, and tables
    in which index 0 is less transparent than another index. Index 0 may be white beside colours.
    """
    shown = np.union1d(np.unique(values), [0, 1])
    shown = shown[shown < len(colours)]
    entries = colours[shown].astype(int)
    grey, alpha = entries[:, 0], entries[:, 3:]
    greys_only = bool((entries[:, :3] == grey[:, None]).all())
    white = greys_only and grey[0] == grey.max() > 0
    renumbered = greys_only and grey.max() < _CLASS_NUMBERS and grey.any() and (grey != shown).any()
    if white or renumbered or (alpha[:1] > alpha).any():
        table = ", ".join(f"{index}: {entry}" for index, entry in zip(shown[:4], entries.tolist(), strict=False))
        raise BadInput(
            f"{file}: case '{case_id}': expected a colour table in which index 0 is the background, found {table}; "
            "save the class indices as grey values, without a colour table"
        )


def brighter(values: np.ndarray, above: int, file: Path, case_id: str) -> np.ndarray:
    """Label u8 of the same shape: 1 where `values` exceed `above`, else 0.

    If `above` is at least 1, a mask of 0 and 1 is refused, because its label would be background only. NaN and infinite
    values are refused.
    """
    if not np.isfinite(values).all():
        raise BadInput(
            f"{file}: case '{case_id}': expected finite values, found {int((~np.isfinite(values)).sum())} NaN or "
            "infinite voxels; correct the mask"
        )
    if above >= 1 and values.max(initial=0) == 1:
        raise BadInput(
            f"{file}: case '{case_id}': expected a mask of 0 and 255 (foreground_above: {above}), found 0 and 1; "
            "the mask holds class indices: remove foreground_above"
        )
    return (values > above).astype(np.uint8)


def rounded(values: np.ndarray) -> np.ndarray:
    """The values, with those within 1e-4 of a whole number as the whole number: NIfTI's scale factor rounds."""
    if not np.issubdtype(values.dtype, np.floating):
        return values
    whole = np.round(values)
    return np.where(np.abs(values - whole) < _ROUNDING, whole, values)


def whole_numbers(values: np.ndarray, file: Path, case_id: str) -> np.ndarray:
    """The values of a mask, rounded. Raises `BadInput` for fractions, NaN and infinity."""
    values = rounded(values)
    fractions = ~np.isfinite(values) | (values != np.round(values))
    if fractions.any():
        wrong = ", ".join(f"{value:g}" for value in np.unique(values[fractions])[:5])
        raise BadInput(f"{file}: case '{case_id}': expected whole numbers, found {wrong}; correct the mask")
    return values


def class_indices(
    values: np.ndarray, classes: int, file: Path, case_id: str, ignore: int | None = UNKNOWN
) -> np.ndarray:
    """Label u8 of the same shape: class indices below `classes`, and 255 for voxels that hold `ignore`.

    Raises `BadInput` for fractions, NaN, infinity and values outside the declared classes.
    """
    values = rounded(values)
    found = np.unique(values)
    wrong = [value for value in found.tolist() if value != ignore and value not in range(classes)]
    if wrong:
        also = "" if ignore is None else f" (and {ignore} for ignore)"
        raise BadInput(
            f"{file}: case '{case_id}': expected labels 0 to {classes - 1}{also}, "
            f"found {', '.join(f'{value:g}' for value in wrong[:5])}; declare the classes, or correct the label"
        )
    if ignore in (None, UNKNOWN):
        return values.astype(np.uint8)
    return np.where(values == ignore, UNKNOWN, values).astype(np.uint8)
