"""The README and the pages of docs/ repeat the code; these tests keep both true."""

from __future__ import annotations

import importlib.util
import inspect
import re
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import polars as pl
import pytest
from pydantic import BaseModel
from ruamel.yaml import YAML

from pipeline.cases.readers import Reader
from pipeline.exports.pair_rows import COLUMNS
from pipeline.judges.judge import Evidence
from pipeline.judges.kinds import Judge
from pipeline.pairs.strategies import Strategy
from pipeline.params import Params, load_params
from pipeline.proposals.samplers import Sampler
from pipeline.store import schema
from pipeline.store.proposals import ProposalStore
from pipeline.students.links import Link
from pipeline.students.objectives import Objective
from tests.fixtures.phantoms import disc
from tests.fixtures.reporting import build

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ALL = [ROOT / "README.md", *PAGES]
README = (ROOT / "README.md").read_text()
CONTRACT = (DOCS / "contract.md").read_text()
EXTENDING = (DOCS / "extending.md").read_text()
PAGE_OF: dict[str, list[Any]] = {
    "data.md": [Reader],
    "models.md": [Params.model_fields["base"].annotation],
    "proposals-and-judges.md": [Sampler, Judge, Params.model_fields["consensus"].annotation],
    "pairs-and-audit.md": [Strategy],
    "students.md": [Objective, Link],
}
"""The page that lists the kinds of a family."""
MADE_BY_THE_READER = {"kinds/compactness.py"}
"""Files of which a page says that the reader writes them."""
LARGEST_DRAWING = 200_000
every_page = pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())


def marked(name: str, language: str) -> str:
    """The one block of the README behind this marker."""
    (block,) = re.findall(rf"<!-- {name} -->\n```{language}\n(.*?)```", README, re.S)
    return str(block)


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^ *```.*?^ *```$", "", text, flags=re.S | re.M))


def kinds_of(annotation: Any) -> Iterator[str]:
    """Names of the kinds of a union, at any depth of the annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if kind := annotation.model_fields.get("kind"):
            yield from get_args(kind.annotation)
        return
    for part in get_args(annotation):
        yield from kinds_of(part)


# ---- the data contract -------------------------------------------------------------------------------------------


def test_every_table_and_column_is_in_the_contract() -> None:
    assert f"version {schema.VERSION}" in CONTRACT.splitlines()[0]
    for table in schema.TABLES:
        (row,) = re.findall(rf"^\| `{table.name}` \|.*$", CONTRACT, re.M)
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells[2] == table.row
        assert re.findall(r"`(\w+)`", cells[3]) == list(table.key)
        named = re.findall(r"`([\w.]+)`(±?)", cells[4])
        columns = {f"{name}{end}" for name, ends in named for end in (("", "_low", "_high") if ends else ("",))}
        assert columns == set(table.columns) - set(table.key), table.name


def test_every_array_is_in_the_contract() -> None:
    for array in schema.ARRAYS:
        axes = re.escape(", ".join(array.axes))
        assert re.search(
            rf"^\| `{array.name}` \|[^|]*\| {array.dtype} \| `\[{axes}\]` \| {array.fill:g} \|$", CONTRACT, re.M
        )


def test_every_column_of_exported_pairs_is_in_the_contract() -> None:
    section = CONTRACT.partition("## Exported pairs")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| (.*) \|$", section, re.M))
    assert rows == {name: column.meaning for name, column in COLUMNS.items()}


# ---- what a reader copies ----------------------------------------------------------------------------------------


def test_both_commands_are_one_line() -> None:
    for name in ("run", "test"):
        assert len(marked(f"{name} command", "bash").strip().splitlines()) == 1


def test_the_example_judge_scores_masks(tmp_path: Path) -> None:
    """A bar of 2x20 is all boundary, a disc is not. The score of an empty mask is that of a mask without inside.

    255 is unknown and changes nothing. Volumes have scores too.
    """
    path = tmp_path / "compactness.py"
    path.write_text(marked("example judge", "python"))
    spec = importlib.util.spec_from_file_location("compactness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    bar = np.zeros((20, 20), np.uint8)
    bar[9:11] = 1
    known = disc((20, 20), 6)
    masks = np.stack([known, np.where(known == 0, 255, known), bar, np.zeros_like(bar)])
    judge = module.Compactness(kind="compactness")
    scores = judge.score(SimpleNamespace(masks=masks))
    assert scores[0] == scores[1] > scores[2] == scores[3] == -1
    # 26 of the 27 voxels of a cube lie on its surface.
    cube = np.pad(np.ones((1, 3, 3, 3), np.uint8), [(0, 0), (1, 1), (1, 1), (1, 1)])
    assert judge.score(SimpleNamespace(masks=cube)).tolist() == [-26 / 27]
    assert module.Compactness.research is False


def test_the_example_evidence_is_that_of_the_first_pool_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bars of 3, 5, 10 and again 5 pixels. Their mean is the bar of 5, so those of 5 agree most, and equally."""
    build(tmp_path, students={})
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"<!-- example evidence -->\n```python\n(.*?)```", EXTENDING, re.S)
    found = runpy.run_path(str(write(tmp_path / "try.py", block)))
    assert found["evidence"].case.case_id == "c1"
    scores = [float(number) for number in capsys.readouterr().out.strip("[]\n").split()]
    assert scores[1] == scores[3] > max(scores[0], scores[2])


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize("shown", [Evidence, ProposalStore])
def test_every_part_of_the_evidence_is_documented(shown: type) -> None:
    table = EXTENDING.partition(f"| attribute of `{shown.__name__}` |")[2].partition("\n\n")[0]
    documented = re.findall(r"^\| `(\w+)(\(.*?\))?` \|", table, re.M)
    public = {name for name in {**vars(shown), **shown.__annotations__} if not name.startswith("_")}
    assert {name for name, _ in documented} == public
    for name, arguments in documented:
        method = getattr(shown, name, None)
        if callable(method):
            named = [parameter for parameter in inspect.signature(method).parameters if parameter != "self"]
            assert arguments == f"({', '.join(named)})", name


def test_the_example_parameters_replace_blocks_of_the_shipped_ones(tmp_path: Path) -> None:
    yaml = YAML(typ="safe")
    blocks = yaml.load(marked("example params", "yaml"))
    content = yaml.load(ROOT / "params.yaml")
    assert set(blocks) <= set(content)
    path = tmp_path / "params.yaml"
    YAML().dump({**content, **blocks}, path)
    assert load_params(path).data.kind == "nnunet"


def test_the_example_reads_tables_of_the_contract(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.py").write_text(marked("example result", "python"))
    tables = {"audit/judges": schema.AUDIT_JUDGES}
    for file, table in (tables | dict.fromkeys(("evaluation/base", "evaluation/rn_dpo"), schema.EVALUATION)).items():
        path = tmp_path / f"{file}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Two patients, one with two cases: the student gains .1, .3 and .6.
        dice = [0.6, 0.8, 1.0] if "rn_dpo" in file else [0.5, 0.5, 0.4]
        known = {"case_id": list("abc"), "class": [1, 1, 1], "group": list("ppq"), "dice": dice}
        rows = {name: values for name, values in known.items() if table is schema.EVALUATION}
        frame = pl.DataFrame(rows, schema_overrides={name: table.columns[name] for name in rows})
        missing = [pl.lit(None, dtype).alias(name) for name, dtype in table.columns.items() if name not in rows]
        (frame.with_columns(missing) if rows else pl.DataFrame(schema=table.columns)).write_parquet(path)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("result.py")
    printed = capsys.readouterr().out
    assert "lift_low" in printed
    assert float(printed.splitlines()[-1]) == pytest.approx((0.2 + 0.6) / 2), "a mean over patients, not over cases"


def test_the_overrides_shown_are_accepted_by_dvc(tmp_path: Path) -> None:
    from dvc.utils.hydra import apply_overrides

    found = [override for page in ALL for override in re.findall(r"-S ('[^']+'|[^\s`]+)", page.read_text())]
    overrides = [override.strip("'") for override in found]
    assert len(overrides) >= 4
    path = tmp_path / "params.yaml"
    shutil.copy(ROOT / "params.yaml", path)
    apply_overrides(path, overrides)
    assert load_params(path).pairs["favourite"].judge == "agreement"


# ---- what the pages name -----------------------------------------------------------------------------------------


def test_the_tree_names_every_room() -> None:
    (tree,) = re.findall(r"^## Tree\n+```\n(.*?)```", README, re.S | re.M)
    starts = re.findall(r"^ +((?:\w+/ )+)", tree, re.M)
    shown = {name.removesuffix("/") for start in starts for name in start.split()}
    on_disk = {path.parent.name for path in (ROOT / "pipeline").rglob("__init__.py")} - {"pipeline"}
    assert shown == on_disk
    loose = {path.stem for path in (ROOT / "pipeline").glob("[a-z]*.py")}
    assert not {name for name in loose if not re.search(rf"\b{name}\b", tree)}


@pytest.mark.parametrize("name", PAGE_OF)
def test_the_page_of_a_family_names_every_kind(name: str) -> None:
    text = (DOCS / name).read_text()
    kinds = [list(kinds_of(family)) for family in PAGE_OF[name]]
    assert all(kinds)
    assert not [kind for family in kinds for kind in family if f"`{kind}`" not in text]


@every_page
def test_code_that_a_page_names_is_there(page: Path) -> None:
    text = page.read_text()
    paths = set(re.findall(r"(?<![\w./-])((?:pipeline|stages|tests|benchmarks|examples)/[\w./]*\w)", text))
    modules = re.findall(r"python -m ((?:stages|benchmarks)\.\w+)", text)
    paths |= {f"{module.replace('.', '/')}.py" for module in modules}
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    commands = re.findall(r"`segpref ([a-z-]+)", text) + re.findall(r"(?:^|&& )segpref ([a-z-]+)", shell, re.M)
    paths |= {f"stages/{command.replace('-', '_')}.py" for command in commands}
    assert not {path for path in paths - MADE_BY_THE_READER if not (ROOT / path).exists()}


# ---- the form of the pages ---------------------------------------------------------------------------------------


def test_the_readme_is_a_signpost() -> None:
    assert len(README.splitlines()) <= 175


@every_page
def test_every_relative_link_has_a_target(page: Path) -> None:
    """A file, and a heading where the link has a fragment."""
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text())):
        if "://" in link:
            continue
        name, _, fragment = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.is_file() or (fragment and fragment not in fragments(target)):
            broken.append(link)
    assert not broken


def fragments(page: Path) -> list[str]:
    """The anchors that GitHub makes of the headings."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(), flags=re.S | re.M)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return [re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_page_states_its_kind(page: Path) -> None:
    """Below the title, and in the README as well."""
    title, empty, kind = page.read_text().splitlines()[:3]
    assert title.startswith("# ")
    assert not empty
    stated = re.match(r"\*(How-to|Reference|Explanation): .+\.\*$", kind)
    assert stated, kind
    rows = re.findall(rf"^\|.*\(docs/{page.relative_to(DOCS).as_posix()}\).*\| ([\w-]+) \|.*\|$", README, re.M)
    assert rows == [stated[1].lower()]


def test_drawings_and_tables_are_small() -> None:
    """A table of cases outlives the models of a study. It holds measures and no data."""
    drawings = [path for path in DOCS.rglob("*") if path.is_file() and path.suffix not in (".md", ".csv", ".ipynb")]
    assert {path.suffix for path in drawings} <= {".png", ".parquet"}
    assert not [path for path in drawings if path.stat().st_size > LARGEST_DRAWING]
