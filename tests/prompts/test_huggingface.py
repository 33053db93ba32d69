"""Datasets that the tests make themselves; nothing comes from the hub."""

import pytest

from appo.prompts import DatasetQuestions

datasets = pytest.importorskip("datasets", reason="needs the extra `data`")

ROWS = [{"question": f"{i}?", "answer": {"value": str(i), "aliases": [str(i), f"no. {i}"]}} for i in range(10)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)


@pytest.fixture
def folder(tmp_path, write_rows):
    """A dataset as the hub has them: one file a split in a folder."""
    (tmp_path / "squares").mkdir()
    write_rows(ROWS, "squares/train.jsonl")
    write_rows(ROWS[:3], "squares/test.jsonl")
    return str(tmp_path / "squares")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_a_dataset(folder, streaming):
    source = DatasetQuestions(path=folder, test="test", answer_key="answer.aliases", streaming=streaming)
    questions = source.load("test")
    assert [question.text for question in questions] == ["0?", "1?", "2?"]
    assert questions[2].answers == ("2", "no. 2")
    assert (questions[2].id, questions[2].row, questions[2].origin) == ("2", 2, f"{folder}/test")
    assert source.splits == ("train", "test")


@pytest.mark.parametrize("streaming", [False, True])
def test_files_of_a_format_are_a_dataset(write_rows, streaming):
    files = {"train": write_rows(ROWS, "a.parquet"), "validation": write_rows(ROWS[:1], "b.parquet")}
    source = DatasetQuestions(
        path="parquet", data_files=files, validation="validation", answer_key="answer.value", streaming=streaming
    )
    assert [question.answers for question in source.rows("validation")] == [("0",)]
    _, *others = source.rows("train")
    assert [question.answers for question in others] == [(str(i),) for i in range(1, 10)]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_training_question_of_another_split_is_held_out(folder, streaming):
    source = DatasetQuestions(path=folder, test="test", answer_key="answer.value", streaming=streaming)
    rows = list(source.rows("train"))
    assert [getattr(row, "reason", "") for row in rows] == ["held_out"] * 3 + [""] * 7
    with pytest.raises(ValueError, match=r"train and test must share no question, got '0\?' in row 0 of .*/train"):
        source.load("train")


def test_parts_of_a_split_are_splits(folder):
    source = DatasetQuestions(path=folder, train="train[:8]", validation="train[80%:]", answer_key="answer.value")
    assert [question.text for question in source.load("train")] == [f"{i}?" for i in range(8)]
    assert [question.text for question in source.load("validation")] == ["8?", "9?"]


@pytest.mark.parametrize("streaming", [False, True])
def test_streaming_copies_nothing_to_disk(folder, tmp_path, streaming):
    DatasetQuestions(path=folder, answer_key="answer.value", streaming=streaming).load("train")
    assert any((tmp_path / "cache").glob("**/*.arrow")) is not streaming


@pytest.mark.parametrize("streaming", [False, True])
def test_rows_can_be_limited(folder, streaming):
    source = DatasetQuestions(path=folder, answer_key="answer.value", streaming=streaming, max_rows=2)
    assert len(source.load("train")) == 2


def test_a_saved_dataset_is_read_as_it_was_saved(tmp_path):
    train, test = datasets.Dataset.from_list(ROWS), datasets.Dataset.from_list(ROWS[:2])
    train.save_to_disk(tmp_path / "single")
    source = DatasetQuestions(path=str(tmp_path / "single"), answer_key="answer.value")
    assert len(source.load("train")) == 10
    with pytest.raises(ValueError, match=r"one of train, validation and test alone must be named, .* got train, test"):
        DatasetQuestions(path=str(tmp_path / "single"), test="test").load("test")
    datasets.DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "both")
    source = DatasetQuestions(path=str(tmp_path / "both"), train=None, test="test", answer_key="answer.value")
    assert len(source.load("test")) == 2
    with pytest.raises(ValueError, match=r"train must name a split of .*both: train, test, got 'dev'"):
        DatasetQuestions(path=str(tmp_path / "both"), train="dev").load("train")
    with pytest.raises(ValueError, match="streaming, config and data_files must be left out"):
        DatasetQuestions(path=str(tmp_path / "both"), streaming=True).load("train")


def test_columns_without_use_are_not_decoded(tmp_path):
    broken = [{**row, "image": {"bytes": b"no image", "path": None}} for row in ROWS]
    features = datasets.Features(
        {
            "question": datasets.Value("string"),
            "answer": {"value": datasets.Value("string"), "aliases": datasets.List(datasets.Value("string"))},
            "image": datasets.Image(),
        }
    )
    datasets.Dataset.from_list(broken, features=features).save_to_disk(tmp_path / "images")
    assert len(DatasetQuestions(path=str(tmp_path / "images"), answer_key="answer.value").load("train")) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [({"path": ""}, "path must name a dataset"), ({"path": "a/b", "max_rows": 0}, "max_rows must be positive, got 0")],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DatasetQuestions(**options)


def test_a_split_without_a_name_is_refused():
    with pytest.raises(ValueError, match="test must name a split of the dataset to load the test split, got None"):
        DatasetQuestions(path="a/b").load("test")
