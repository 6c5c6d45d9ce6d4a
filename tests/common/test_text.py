"""Numbers and names as sentences have them."""

from common.text import counted, listed


def test_names_are_listed_up_to_a_bound_and_shown_so_that_no_terminal_obeys_them():
    assert [listed(names) for names in ([], ["a"], ["a", "b"], "abc")] == [
        *("", "a", "a and b", "a, b and c")
    ]
    assert listed(range(10)) == "0, 1, 2, 3, 4, 5, 6, 7, 8 and 9"
    assert listed(range(11), most=3) == "0, 1 and 9 more"
    assert listed(["\x1b[2J"]) == r"\x1b[2J"


def test_one_thing_is_no_things():
    words = "class|classes is|are new, as of 2 or more"
    assert [counted(n, words) for n in (0, 1, 2)] == [
        "0 classes are new, as of 2 or more",
        "1 class is new, as of 2 or more",
        "2 classes are new, as of 2 or more",
    ]
