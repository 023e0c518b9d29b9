"""The recall of each class, as it is printed."""

from vitkit.reports.classes import by_name, lowest_first, print_lowest

FOUND = {"top1": 0.7, "class_recall": [0.9, None, 0.25], "class_images": [10, 0, 1234]}
NAMES = ["cat", "dog", "owl"]


def test_recalls_are_given_by_name_and_those_of_an_older_version_are_none():
    found = by_name(FOUND, NAMES)
    assert found["class_recall"] == {"cat": 0.9, "dog": None, "owl": 0.25}
    assert found["class_images"] == {"cat": 10, "dog": 0, "owl": 1234}
    assert by_name({"top1": 0.7}, NAMES) == {"class_recall": {}, "class_images": {}}
    assert lowest_first({}, {}) == []


def test_a_few_classes_are_all_printed_the_lowest_first(capsys):
    print_lowest(lowest_first(**by_name(FOUND, NAMES)), several=False)
    assert capsys.readouterr().out.splitlines() == [
        "class  recall  images",
        "owl    25.00%   1,234",
        "cat    90.00%      10",
    ]


def test_of_many_classes_the_five_lowest_are_printed(capsys):
    recall = {f"label {n}": n / 21843 for n in reversed(range(21843))}
    print_lowest(lowest_first(recall, dict.fromkeys(recall, 3)), several=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["label", "recall", "at", "0.5", "images"]
    assert [line[:7] for line in lines[1:6]] == [f"label {n}" for n in range(5)]
    assert lines[6:] == ["the lowest 5 of 21,843 classes; --json lists all"]


def test_names_command_no_terminal(capsys):
    print_lowest(lowest_first({"\x1b[31mred": 0.5}, {"\x1b[31mred": 2}), several=False)
    assert "\x1b" not in capsys.readouterr().out
