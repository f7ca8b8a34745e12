import pytest

from freenergy.names import did_you_mean


@pytest.mark.parametrize(
    ("name", "known", "question"),
    [
        ("learning_rte", ["learning_rate"], "did you mean 'learning_rate'? "),
        ("SHRADS", ["shards", "Shares"], "did you mean 'shards' or 'Shares'? "),
        ("lr", ["learning_rate", "alpha"], ""),
        ("lr", [], ""),
    ],
)
def test_only_names_that_are_near_are_asked_about(name, known, question):
    assert did_you_mean(name, known) == question
