"""A task file is read, overridden, checked and written back; what is wrong with it is told by line and nearest key."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest

from burnish import kinds, taskfile
from burnish.errors import TaskError
from burnish.task import SECTIONS, keys, rung_names

TEXT = """\
goal:
  task: classify
base: my-model
train:
  epochs: 2
  learning_rate: 1e-3
rungs: [zero-shot, lora, lora]
lora:
  rank: 4
"""


def refused(text: str, *overrides: str) -> TaskError:
    with pytest.raises(TaskError) as caught:
        taskfile.parse(text, overrides, "task.yaml")
    return caught.value


def test_what_is_written_counts_and_the_rest_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "reviews" / "task.yaml"
    path.parent.mkdir()
    path.write_text(TEXT)
    task = taskfile.read(path)
    assert (task.goal.task, task.base.name, task.train.epochs, task.train.learning_rate) == (
        *("classify", "my-model", 2.0, 1e-3),
    )
    assert task.train.batch_size == 16
    assert (task.rungs, task.rung_settings["lora"]["rank"]) == (("zero-shot", "lora"), 4)
    assert (task.name, task.folder) == ("reviews", str(path.parent))
    assert set(task.rung_settings) == set(rung_names())


def test_what_is_written_back_reads_the_same_with_every_key_explained() -> None:
    columns, asked = "data.columns={text: a, label: [b, c]}", "data.instruction='a: b # c'"
    task = taskfile.parse(TEXT, ["method.kind=dpo", columns, asked, "goal.target=0.9"])
    text = taskfile.write(task, "one note\nin two lines")
    assert text.startswith("# one note\n# in two lines\n")
    again = taskfile.parse(text)
    assert again.to_json() == task.to_json()
    assert again.fingerprint() == task.fingerprint() != taskfile.parse(TEXT).fingerprint()
    told = {line.strip().partition(":")[0]: line for line in text.splitlines()}
    assert all(item.doc in told[item.name] for section, item in keys() if section in SECTIONS and item.name != "seed")


def test_an_override_wins_and_knows_the_types() -> None:
    task = taskfile.parse(TEXT, ["train.epochs=5", "base=1e5", "rungs=[full]", "goal.target=", "data.files=a.csv"])
    assert (task.train.epochs, task.base.name) == (5.0, "1e5")
    assert (task.rungs, task.goal.target, task.data.files) == (("full",), None, ["a.csv"])


def test_numbers_that_yaml_takes_for_text_are_numbers() -> None:
    task = taskfile.parse("train: {betas: [9e-1, 0.999]}", ["train.learning_rate=1e-5", "train.batch_size=1e2"])
    assert (task.train.betas, task.train.learning_rate, task.train.batch_size) == ([0.9, 0.999], 1e-5, 100)


def test_two_tasks_share_no_list_of_defaults() -> None:
    one, other = taskfile.resolve({}), taskfile.resolve({})
    one.data.files.append("a.csv")
    one.train.betas[0] = 0.5
    assert other.data.files == []
    assert other.train.betas == [0.9, 0.999]


@pytest.mark.parametrize(
    ("text", "what", "where", "do"),
    [
        ("train:\n  epoch: 2\n", 'Unknown key "train.epoch"', "line 2", "nearest: train.epochs"),
        ("trian: {}\n", 'Unknown key "trian"', "line 1", "nearest: train"),
        ("train: 3\n", '"train" is a section', "line 1", "indented"),
        ("train:\n  epochs: 1\n  epochs: 2\n", 'Key "train.epochs" is given twice', "lines 2 and 3", "keep one"),
        ("goal:\n\n  task: clasify\n", 'Unknown value of goal.task "clasify"', "line 3", "nearest: classify"),
        ("goal: {metric: acuracy}\n", 'Unknown goal.metric "acuracy"', "line 1", "nearest: accuracy"),
        ("data: {shape: label}\n", 'Unknown data.shape "label"', "line 1", "nearest: labelled"),
        ("rungs: lora\n", "rungs is a list", "line 1", "[zero-shot"),
        ("rungs: [loar]\n", 'Unknown rung "loar"', "line 1", "nearest: lora"),
        ("rungs: [lora+few-shot]\n", 'Unknown rung "lora+few-shot"', "line 1", "few-shot+lora"),
        ("method: {kind: spt}\n", 'Unknown method.kind "spt"', "line 1", "nearest: sft"),
        ("method: {beta: 1}\n", 'method.beta needs method.kind, which is "auto"', "line 1", "set method.kind"),
        ("data: {validation: 0.5, test: 0.5}\n", "leave no rows to train on", "line 1", "less than 1"),
        ("train: {betas: [0.9, 1.0]}\n", "train.betas must be two numbers", "line 1", "e.g."),
        ("train: {epochs: two}\n", "train.epochs must be a number, not 'two'", "line 1", "default is 3.0"),
        ("train: {epochs: .inf}\n", "train.epochs must be a number", "line 1", ""),
        ("train: {epochs: true}\n", "train.epochs must be a number", "line 1", ""),
        ("train: {batch_size: 1.5}\n", "train.batch_size must be a whole number", "line 1", ""),
        ("train: {batch_size: 0}\n", "train.batch_size must be at least 1, not 0", "line 1", "raise it"),
        ("data: {test: 0.95}\n", "data.test must be at most 0.9, not 0.95", "line 1", "lower it"),
        ("data: {columns: text}\n", "data.columns must be a mapping", "line 1", ""),
        ("data: {files: {a: b}}\n", "data.files must be a list", "line 1", ""),
        ("few-shot: {shots: [a]}\n", "few-shot.shots must be a list of numbers", "line 1", ""),
        ("lora: {use_dora: 1}\n", "lora.use_dora must be true or false", "line 1", ""),
        ("goal: {metric: [a]}\n", "goal.metric must be text", "line 1", ""),
        ("- 1\n", "A task file is a mapping", "task.yaml", "burnish init"),
        ("goal: {task: classify\n", "Not valid YAML", "line 2", "mend the line"),
        ("goal: &a {}\ntrain: *a\n", "no use for YAML anchors", "task.yaml", "write the values out"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_by_line_with_what_to_do(text: str, what: str, where: str, do: str) -> None:
    told = refused(text)
    assert what in told.what
    assert where in told.where
    assert do in told.do


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("train.epochs", '"train.epochs" is not key=value'),
        ("name.first=x", '"name" is not a section'),
        ("train.epoch=1", 'Unknown key "train.epoch"'),
    ],
)
def test_an_override_that_cannot_be_is_refused(override: str, what: str) -> None:
    assert what in refused("name: mine\n", override).what


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="No such file"):
        taskfile.read(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(TaskError, match="not UTF-8"):
        taskfile.read(tmp_path / "latin.yaml")


def test_a_place_is_the_key_or_what_it_stands_in() -> None:
    task = taskfile.parse(TEXT, path="a/task.yaml")
    assert task.where("train.epochs") == "a/task.yaml line 5"
    assert task.where("train.batch_size") == "a/task.yaml line 4"
    assert task.where("evaluate.samples") == "a/task.yaml"


@pytest.mark.parametrize(("section", "item"), list(keys()), ids=lambda value: getattr(value, "name", value))
def test_every_default_is_a_value_that_may_be_written(section: str, item: kinds.Setting) -> None:
    if section in ("", "method"):
        return
    values: dict[str, Any] = {section: {item.name: item.default}}
    assert taskfile.resolve(values).to_json()[section][item.name] == item.default


def test_the_goals_named_in_the_help_are_those_there_are() -> None:
    doc = next(item.doc for section, item in keys() if (section, item.name) == ("goal", "task"))
    assert all(goal in doc for goal in typing.get_args(typing.get_type_hints(SECTIONS["goal"])["task"]))
