"""`params.yaml`: the shipped file loads, and every mistake is named by its key path."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from pipeline.errors import BadInput
from pipeline.judges.kinds import Judge
from pipeline.knobs import Knobs, blocks_in
from pipeline.pairs.strategies import Strategy
from pipeline.params import Params, entry, load_params
from pipeline.proposals.samplers import Sampler
from pipeline.reference.docstrings import docstrings

SHIPPED = Path(__file__).parents[1] / "params.yaml"
MANY = Path(__file__).parent / "fixtures/params.yaml"
GONE = object()


def changed(tmp_path: Path, **changes: Any) -> Path:
    """A file of many entries with other values at dotted keys (`__` for the dot), as JSON, which is YAML."""
    content = YAML(typ="safe").load(MANY)
    for path, value in changes.items():
        *above, last = path.split("__")
        at = content
        for key in above:
            at = at[key]
        if value is GONE:
            del at[last]
        else:
            at[last] = value
    (tmp_path / "params.yaml").write_text(json.dumps(content))
    return tmp_path / "params.yaml"


def problems(path: Path) -> list[str]:
    """Lines of the error, each of which starts with the file."""
    with pytest.raises(BadInput) as caught:
        load_params(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def kinds(union: Any) -> str:
    """The kinds of a family, as an error lists them."""
    return ", ".join(f"'{get_args(kind.model_fields['kind'].annotation)[0]}'" for kind in get_args(get_args(union)[0]))


# ---- the shipped file ------------------------------------------------------------------------------------------


def test_the_shipped_file_loads():
    """Its judges are those of the panel, and its knobs are frozen."""
    params = load_params(SHIPPED)
    assert params.judge_names == [*params.judges, *params.tables, *params.consensus]
    assert params.pairs["none"].strategy.kind == "none"
    assert all(student.pairs in params.pairs for student in params.students.values())
    with pytest.raises(ValidationError, match="frozen"):
        params.seed = 1


def test_numbers_without_a_dot_are_numbers(tmp_path):
    """YAML 1.1 reads 1e-4 as text; DVC and this file are YAML 1.2. A whole number may stand for a real one."""
    file = changed(tmp_path, training__optimisation__learning_rate=0.1234)
    text = file.read_text()
    assert text.count("0.1234") == 1
    file.write_text(text.replace("0.1234", "2e-4"))
    assert load_params(file).training.optimisation.learning_rate == 2e-4
    assert load_params(changed(tmp_path, evaluation__nsd_tolerance=2)).evaluation.nsd_tolerance == 2.0


def test_every_knob_says_what_it_means():
    """Each field of each block has a docstring, which is the description in the JSON Schema."""
    without = []
    seen: set[type[Knobs]] = set()

    def visit(block: type[Knobs]) -> None:
        if block in seen:
            return
        seen.add(block)
        described = docstrings(block)
        for name, field in block.model_fields.items():
            inner = list(blocks_in(field.annotation))
            class_says = block is Params and inner  # the class says what the block means
            if name != "kind" and not described.get(name) and not class_says:
                without.append(f"{block.__name__}.{name}")
            for each in inner:
                visit(each)

    visit(Params)
    assert len(seen) > 20
    assert without == []


# ---- mistakes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"jduges": {}}, "jduges: unknown key; remove it or correct its spelling; did you mean 'judges'?"),
        (
            {"base__batchsize": 4},
            "base.batchsize: unknown key; remove it or correct its spelling; did you mean 'batch'?",
        ),
        (
            {"propose__samplers__dropout__rate": 0.5},
            "propose.samplers.dropout.rate: unknown key; remove it or correct its spelling; did you mean 'rates'?",
        ),
        (
            {"students__rn_cdpo__objective__link__epsilon": 0.5},
            "students.rn_cdpo.objective.link.epsilon: unknown key; remove it or correct its spelling",
        ),
        ({"seed": GONE}, "seed: missing; add the key"),
        ({"base__optimisation__steps": GONE}, "base.optimisation.steps: missing; add the key"),
        ({"students__dpo__objective": GONE}, "students.dpo.objective: missing; add the key"),
        ({"judges__agreement__kind": GONE}, "judges.agreement.kind: missing; add the key"),
        ({"tables": {"qc": {"kind": "table"}}}, "tables.qc.path: missing; add the key"),
        ({"seed": "seven"}, 'seed: should be a valid integer, found "seven"'),
        ({"seed": "7"}, 'seed: should be a valid integer, found "7"'),
        ({"seed": 1.5}, "seed: should be a valid integer, found 1.5"),
        ({"base__batch": 0}, "base.batch: should be greater than 0, found 0"),
        ({"training__reference": "kept"}, "training.reference: should be 'cached' or 'recomputed', found \"kept\""),
        (
            {"propose__samplers__dropout__rates": [0.1, "half"]},
            'propose.samplers.dropout.rates.1: should be a valid number, found "half"',
        ),
        (
            {"propose__samplers__dropout__rates": 0.1},
            "propose.samplers.dropout.rates: should be a valid array, found 0.1",
        ),
        ({"propose": []}, "propose: should be an object, found []"),
        ({"judges__my-judge": {"kind": "agreement"}}, "judges.my-judge: should match pattern"),
        (
            {"judges__agreement__kind": "agrement"},
            f"judges.agreement.kind: found 'agrement', expected one of {kinds(Judge)}; did you mean 'agreement'?",
        ),
        (
            {"propose__samplers__flips__kind": "flip"},
            f"propose.samplers.flips.kind: found 'flip', expected one of {kinds(Sampler)}",
        ),
        (
            {"pairs__agreement__strategy__kind": "best"},
            f"pairs.agreement.strategy.kind: found 'best', expected one of {kinds(Strategy)}",
        ),
        (
            {"judges__mine": {"kind": "table", "path": "x.csv"}},
            "judges.mine: kind 'table' belongs under tables:, so that DVC watches its file; move the entry",
        ),
        (
            {"judges__mine": {"kind": "expert"}},
            "judges.mine: kind 'expert' belongs under experts:, so that DVC watches its file; move the entry",
        ),
        (
            {"experts": {"oracle": {"kind": "expert"}}},
            "experts.oracle: a judge or score table has the same name; choose another name",
        ),
        (
            {"pairs__agreement": {"judge": "oracle", "strategy": {"kind": "reviewed"}}},
            "pairs.agreement: found judge 'oracle', which strategy 'reviewed' does not ask without `otherwise`",
        ),
        (
            {"tables": {"oracle": {"kind": "table", "path": "x.csv"}}},
            "tables.oracle: a judge has the same name; choose another name",
        ),
        (
            {"pairs__agreement__judge": "agrement"},
            "pairs.agreement.judge: found 'agrement', expected one of ['agreement', 'expected_dice', "
            "'pairwise', 'oracle', 'together']",
        ),
        (
            {"pairs__agreement__judge": "none"},
            "pairs.agreement: expected judge 'none' and strategy 'none' together, found one without the other; change "
            "one of the two",
        ),
        (
            {"pairs__none__judge": "oracle"},
            "pairs.none: expected judge 'none' and strategy 'none' together, found one without the other; change one "
            "of the two",
        ),
        (
            {"students__dpo__pairs": "agrement"},
            "students.dpo.pairs: found 'agrement', expected one of ['none', 'agreement', 'agreement_top', 'oracle']",
        ),
        (
            {"students__dpo__pairs": "none"},
            "students.dpo.pairs: objective 'preference' expects a pair set with pairs, found 'none'",
        ),
        (
            {"students__supervised__pairs": "oracle"},
            "students.supervised.pairs: objective 'supervised' expects a pair set of strategy 'none', found 'oracle'",
        ),
        (
            {"students__dpo__anchor": GONE},
            "students.dpo: anchor: missing; set {supervised: 1.0}, or null for training without anchor, which is "
            "unsafe",
        ),
        (
            {"students__supervised__anchor": {"supervised": 1.0}},
            "students.supervised: anchor: objective 'supervised' takes no pool images; remove the key",
        ),
        (
            {"students__base": {"pairs": "none", "objective": {"kind": "supervised"}}},
            "students.base: the name 'base' belongs to the base segmenter; choose another name",
        ),
        (
            {"students__pseudo": {"pairs": "none", "objective": {"kind": "pseudo_label"}}},
            "students.pseudo: anchor: missing; set {supervised: 1.0}, or null for training without anchor, which is "
            "unsafe",
        ),
        (
            {"students__supervised__stopping": {"kl": 0.1}},
            "students.supervised: stopping: objective 'supervised' takes no pool images; remove the key",
        ),
        (
            {"students__full__average": 0.9},
            "students.full: average: objective 'full' does not train in the common loop; remove the key",
        ),
        (
            {"students__mt": {"pairs": "none", "objective": {"kind": "mean_teacher"}, "anchor": None, "average": 0.9}},
            "students.mt: average: objective 'mean_teacher' has its own moving average; remove the key",
        ),
        (
            {"students__sft__stopping": {"patience": 2}},
            "students.sft: stopping.patience: patience needs a reward accuracy on held-out pairs, and objective 'sft' "
            "has none; use kl or volume_ratio",
        ),
        (
            {"base": {"kind": "checkpont"}},
            "base.kind: found 'checkpont', expected one of 'trained', 'checkpoint', 'bundle', 'nnunet', 'program'",
        ),
        ({"base": {"kind": "checkpoint", "weigths": "last"}, "model": "m"}, "base.weigths: unknown key"),
        ({"base": {"kind": "program"}, "model": "m"}, "base.window: missing; add the key"),
        (
            {"base": {"kind": "program", "window": [32, 32]}, "model": "m", "students": {}},
            "propose.samplers.dropout: mc_dropout needs layers, and a base of kind 'program' has none; remove the "
            "sampler",
        ),
        (
            {"base": {"kind": "checkpoint"}},
            "model: expected the file or folder of a checkpoint, found raw/none; set the path",
        ),
        (
            {"model": "my.pt"},
            "model: found 'my.pt', but only a base of kind checkpoint, bundle, nnunet or program reads a model; set "
            "base.kind to one of these kinds, or set model to raw/none",
        ),
        (
            {"students__dpo__stopping": {"held_out": 0.2}},
            "students.dpo.stopping: names no rule; give kl, volume_ratio or patience",
        ),
        (
            {
                "propose__samplers": {
                    "mine": {"kind": "imported", "sources": {"a": {"path": "raw/m", "file": "mask.png"}}}
                }
            },
            "propose.samplers.mine.sources.a: file: expected a name with {case_id}, found 'mask.png'",
        ),
        (
            {"consensus": {"twice": {"kind": "rank_mean", "judges": ["oracle", "oracle"]}}},
            "consensus.twice.judges: expected different judges, found ['oracle', 'oracle']",
        ),
        ({"base": None}, "students: base is null, so there is no model to train; set students: {}"),
        (
            {"consensus": {"both": {"kind": "rank_mean", "judges": ["agreement", "expected"]}}},
            "consensus.both.judges: no judge 'expected'; there are ['agreement', 'expected_dice', "
            "'pairwise', 'oracle']",
        ),
        (
            {"consensus": {"oracle": {"kind": "rank_mean", "judges": ["agreement", "expected_dice"]}}},
            "consensus.oracle: a judge or score table has the same name; choose another",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mistake_is_named_by_its_key_path(tmp_path, changes, expected):
    found = problems(changed(tmp_path, **changes))
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_a_name_longer_than_a_file_name_is_a_mistake(tmp_path):
    """100 letters leave room for the names of the files of an entry."""
    entry_of = {"kind": "agreement"}
    load_params(changed(tmp_path, **{f"judges__{'x' * 100}": entry_of}))
    (found,) = problems(changed(tmp_path, **{f"judges__{'x' * 101}": entry_of}))
    assert found.startswith("judges.xxx")
    assert "at most 100 characters" in found


def test_all_mistakes_are_reported_together(tmp_path):
    found = problems(changed(tmp_path, seed=GONE, base__batch="many", judges__oracle__kind="truth"))
    assert [line.split(":")[0] for line in found] == ["seed", "base.batch", "judges.oracle.kind"]


def test_a_table_may_be_the_judge_of_pairs(tmp_path):
    table = {"kind": "table", "path": "qc.csv"}
    params = load_params(changed(tmp_path, tables={"expert": table}, pairs__agreement__judge="expert"))
    assert params.judge_names[-2:] == ["expert", "together"]
    assert params.tables["expert"].path == Path("qc.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "not valid YAML"),
        ("seed: 1\nseed: 2\n", "not valid YAML"),
        ("", "the file: should be an object, found null"),
        ("- a\n- b\n", 'the file: should be an object, found ["a", "b"]'),
    ],
)
def test_a_file_that_is_not_a_dictionary(tmp_path, text, message):
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        load_params(tmp_path / "params.yaml")
    assert str(caught.value).startswith(f"{tmp_path / 'params.yaml'}: {message}")


@pytest.mark.parametrize(("written", "found"), [("2026-01-31", '"2026-01-31"'), (".nan", "NaN")])
def test_values_that_only_yaml_knows_are_named(tmp_path, written, found):
    """A date and not-a-number where a whole number belongs."""
    file = changed(tmp_path)
    file.write_text(file.read_text().replace('"seed": 0', f'"seed": {written}', 1))
    (problem,) = problems(file)
    assert problem.startswith("seed: should be a ")
    assert problem.endswith(found)


def test_a_missing_file():
    with pytest.raises(BadInput, match=r"nowhere.yaml: no such file; run from the folder that holds params.yaml"):
        load_params(Path("nowhere.yaml"))


def test_an_entry_by_name():
    assert entry({"a": 1}, "a", "judges") == 1
    with pytest.raises(BadInput, match=r"params.yaml: judges has no entry 'b'; the entries are \['a'\]"):
        entry({"a": 1}, "b", "judges")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\ndata:\n\tkind: phantom\n", r"found character '\\t' .* \(line 3, column 1\); correct the line"),
        ("seed: 1\nseed: 2\n", r'found duplicate key "seed" .* \(line 2, column 1\); correct the line'),
        ("seed: &all\n  again: *all\n", "not valid YAML: expected .*, found an entry that holds itself; correct"),
        ("seed: 2020-13-45\n", "found month must be in 1..12; correct the key or the value"),
        ("2020-01-01: 3\n", "expected text as keys, .*; correct the key or the value"),
        ("seed: !!int abc\n", "found invalid literal for int.*; correct the key or the value"),
    ],
)
def test_broken_yaml_is_one_line(tmp_path, text, said):
    """Every line on the screen begins with the file, so a message has one line."""
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadInput) as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)
    assert re.search(said, str(caught.value))


def test_text_that_is_not_utf_8(tmp_path):
    (tmp_path / "params.yaml").write_bytes("# Größe\nseed: 0\n".encode("latin-1"))
    with pytest.raises(BadInput, match=r"params.yaml: not valid YAML: .*; save the file as UTF-8"):
        load_params(tmp_path / "params.yaml")


def test_the_alternatives_of_a_knob_are_one_mistake(tmp_path):
    assert problems(changed(tmp_path, splits__labelled=-1)) == [
        "splits.labelled: should be greater than or equal to 0, or greater than 0, or 'rest', found -1"
    ]


def test_the_plans_are_those_of_a_base_of_nnunet(tmp_path):
    """A word in place of the block, which only one kind of base can stand behind."""
    plans = {"preprocess": "plans", "model": "raw/A__B__2d", "students": {}}
    assert load_params(changed(tmp_path, **plans, base={"kind": "nnunet", "folds": [0]})).preprocess == "plans"
    to_do = "set base.kind to nnunet and model to the results folder, or give preprocess a block"
    for base, found in (({"kind": "bundle"}, "of kind bundle"), (None, "null")):
        more = {} if base else {"model": "raw/none"}
        assert problems(changed(tmp_path, **{**plans, **more}, base=base)) == [
            f"preprocess: 'plans' are those of a base of kind nnunet, found a base {found}; {to_do}"
        ]
    assert problems(changed(tmp_path, preprocess="plans")) == [
        f"preprocess: 'plans' are those of a base of kind nnunet, found a base of kind trained; {to_do}"
    ]
    without = changed(tmp_path, preprocess="plans", base={"kind": "nnunet", "folds": [0]})
    assert problems(without) == ["model: expected the file or folder of a nnunet, found raw/none; set the path"]


def test_another_word_than_plans_is_named_and_a_block_has_its_own_mistakes(tmp_path):
    (found,) = problems(changed(tmp_path, preprocess="plan"))
    assert found.endswith("""or 'plans', found "plan\"""")
    assert problems(changed(tmp_path, preprocess={"resise": [8, 8]})) == [
        "preprocess.resise: unknown key; remove it or correct its spelling; did you mean 'resize'?"
    ]
    assert problems(changed(tmp_path, preprocess={"spacing": [0.0]})) == [
        "preprocess.spacing.0: should be greater than 0, found 0.0"
    ]


def test_the_mistake_in_a_block_is_said_without_the_alternatives_of_the_block(tmp_path):
    file = changed(tmp_path, preprocess__normalise={"range": [1.0, 0.0]})
    assert problems(file) == ["preprocess.normalise: expected ranges from low to high, found [1.0, 0.0] to [0.0, 1.0]"]
