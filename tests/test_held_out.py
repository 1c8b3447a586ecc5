"""Reviews on which a run was trained are left out of its scores, or named (data/held_out.py)."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from data import Source, Splits
from data.held_out import check_start, files_of, held_out, trained_parts, warn_trained, without_trained
from data.options import COLUMNS, Options
from data.runs import Run


def test_training_reviews_are_found_in_another_spelling_and_few_are_no_warning(capsys):
    """Files differ in quotes, white space and case. A hundredth of the reviews may be duplicates."""
    run, own = SimpleNamespace(folder="r"), SimpleNamespace(train=pd.DataFrame({"review": ['A "good"  film', "Bad!"]}))
    others = [f"film {number}" for number in range(98)]
    for reviews, warned in ((["a GOOD film", "x"], False), (['a good\\" film', "BAD!"], True)):
        warn_trained(run, pd.DataFrame({"review": [*reviews, *others]}), lambda: own)
        message = "warning: 2 of 100 reviews were training reviews of r; their score is no measurement\n"
        assert capsys.readouterr().out == (message if warned else "")


def run_on(files: dict[str, str], **options) -> SimpleNamespace:
    """Returns a run that recorded these files and options."""
    return SimpleNamespace(folder="r", config={"options": options, "files": files})


def splits_of(files: dict[str, str], validation: list[str], test: list[str] = ()) -> Splits:
    """Returns the splits of a folder with these files and reviews."""
    return Splits(*(pd.DataFrame({"review": x}, dtype=str) for x in (["x"], validation, test, [])), files=files)


def test_the_parts_of_a_run_are_those_of_its_options_and_numbered_files_are_in_their_order():
    assert files_of(run_on({"/d/r.csv": "1", "/d/test.csv": "2"}, data="/d/r.csv")) == {"train": "1", "test": "2"}
    numbered = {f"/d/train-0000{n}-of-00002.parquet": str(n) for n in (1, 0)}
    assert files_of(run_on(numbered, data="/d")) == {"train": "01"}


def test_runs_that_split_one_file_hold_out_the_same_reviews():
    splits = run_on({"/d/x.csv": "1"}, data="/d/x.csv")
    final = run_on({"/d/x.csv": "1"}, data="/d/x.csv", train_on_validation=True)
    whole = run_on({"/d/x.csv": "1", "/v.csv": "2"}, data="/d/x.csv", validation="/v.csv")
    assert trained_parts(splits, splits) == trained_parts(whole, whole) == set()
    assert trained_parts(splits, final) == trained_parts(splits, whole) == {"validation"}
    assert trained_parts(final, whole) == set()  # has no validation reviews
    assert trained_parts(run_on({"/d/x.csv": "1"}, test="/d/x.csv"), splits) == {"test"}


def test_a_run_may_start_from_pretraining_on_its_validation_reviews(tmp_path: Path):
    options = {"weights": "none", "data": "/d/x.csv", "train_on_validation": True}
    Run.create(tmp_path / "a", {"options": options, "files": {"/d/x.csv": "1"}}).log("step", step=1)
    run = run_on({"/d/x.csv": "1"}, data="/d/x.csv", weights=f"{tmp_path}/a/best")
    check_start(run, lambda before: True)
    with pytest.raises(ValueError, match="a was trained on the validation reviews of this run"):
        check_start(run, lambda before: False)


@pytest.mark.parametrize(
    "files",
    [
        {"/b/train.csv": "1", "/b/validation.csv": "2", "/b/test.csv": "7"},  # the test reviews are others
        {"/b/train.csv": "1", "/b/validation.csv": "2"},
    ],
)
def test_a_folder_with_the_files_of_the_run_has_its_validation_reviews(files: dict[str, str]):
    run, options = run_on({"/a/train.csv": "1", "/v.csv": "2"}), Options(data="/a", validation="/v.csv")
    splits = splits_of(files, ["seen", "new"])
    source = Source(data="/b", of_run=COLUMNS)
    assert held_out(run, options, source, splits, lambda: pytest.fail("compares texts")) is splits
    del files["/b/validation.csv"]
    with pytest.raises(ValueError, match=r"all training reviews of /b/train\.csv were training reviews of r"):
        held_out(run, options, source, splits_of(files, ["new"]), lambda: splits)


def test_a_folder_whose_training_file_was_replaced_has_new_reviews():
    run, options = run_on({"/a/train.csv": "1", "/v.csv": "2"}), Options(data="/a", validation="/v.csv")
    splits = splits_of({"/a/train.csv": "8"}, ["seen", "new"])
    own = splits._replace(train=pd.DataFrame({"review": ["seen"]}))
    found = held_out(run, options, Source(data="/a", of_run=COLUMNS), splits, lambda: own)
    assert found.validation["review"].tolist() == ["new"]


def test_files_that_the_run_held_out_were_no_training_reviews(capsys):
    run = run_on({"/a/train.csv": "1", "/v.csv": "2", "/t.csv": "3"})
    options = Options(train="/a/train.csv", validation="/v.csv", test="/t.csv")
    own = splits_of({}, [])
    for digest in "23":
        splits = splits_of({"/b/x.csv": digest}, ["new"])
        found = held_out(run, options, Source(data="/b", of_run=COLUMNS), splits, lambda: own)
        assert found.validation["review"].tolist() == ["new"]
    demo = Options(data="demo", train="/a/train.csv", validation="/v.csv")  # was not trained on the built-in reviews
    held_out(run, demo, Source(data="demo", of_run=COLUMNS), splits_of({}, ["new"]), lambda: own)
    assert capsys.readouterr().out == ""
    older, splits = run_on({}), splits_of({"demo": "5"}, ["new"])  # recorded no digest of the built-in reviews
    with pytest.raises(ValueError, match="all training reviews of demo were training reviews of r"):
        held_out(older, Options(data="demo", validation="/v.csv"), Source(data="demo"), splits, lambda: own)


@pytest.mark.parametrize("column", COLUMNS)
def test_a_folder_with_a_column_of_its_own_has_other_validation_reviews(column: str):
    run, splits = run_on({"/a/train.csv": "1"}), splits_of({"/b/train.csv": "1"}, ["a", "x", "b"])
    source = Source(data="/b", of_run=tuple(name for name in COLUMNS if name != column))
    found = held_out(run, Options(data="/a"), source, splits, lambda: splits).validation
    assert found["review"].to_dict() == {0: "a", 1: "b"}


def test_training_reviews_of_a_validation_file_and_of_test_are_scored_and_named(capsys):
    run, splits = run_on({}), splits_of({}, ["x", "new"], ["x", "a", "b"])
    found = without_trained(run, splits, has_own=True, read_own=lambda: splits)
    assert found.validation["review"].tolist() == ["x", "new"]
    assert found.test["review"].tolist() == ["x", "a", "b"]
    assert capsys.readouterr().out.splitlines() == [
        "warning: 1 of 2 validation reviews were training reviews of r",
        "warning: 1 of 3 test reviews were training reviews of r",
    ]
    few = splits_of({}, ["x", *(f"film {n}" for n in range(99))])  # a hundredth
    assert len(without_trained(run, few, has_own=False, read_own=lambda: splits).validation) == 100
    assert capsys.readouterr().out == "warning: 1 of 100 validation reviews were training reviews of r\n"


@pytest.mark.parametrize("kind", [FileNotFoundError, ValueError])
def test_training_reviews_that_cannot_be_read_are_no_error(kind: type, capsys):
    def fail() -> Splits:
        raise kind("gone; restore it")

    splits = splits_of({}, ["x"])
    assert without_trained(run_on({}), splits, has_own=False, read_own=fail) is splits
    assert capsys.readouterr().out == "warning: it is not known on which of these reviews r was trained: gone\n"


@pytest.mark.parametrize("skips", [False, True])
def test_a_folder_that_is_read_in_another_way_has_other_validation_reviews(skips: bool, capsys):
    """The same file has a split of its own if broken rows are skipped: training reviews are left out by their text."""
    run = SimpleNamespace(folder="r", config={"files": {"/a/train.csv": "1"}})
    source = Source(data="/b", skip_bad_rows=skips, of_run=COLUMNS)
    texts = (["x"], ["seen", "new"], [], [])  # training, validation, test, unlabelled
    frames = [pd.DataFrame({"review": reviews}, dtype=str) for reviews in texts]
    splits = Splits(*frames, files={"/b/train.csv": "1"})
    own = splits._replace(train=pd.DataFrame({"review": ["seen"]}))
    found = held_out(run, Options(data="/a"), source, splits, lambda: own)
    assert found.validation["review"].tolist() == (["new"] if skips else ["seen", "new"])
    warning = "1 of 2 validation reviews were training reviews of r and are not scored"
    assert (warning in capsys.readouterr().out) == skips
