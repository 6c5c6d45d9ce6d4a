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
    assert [counted(n, "picture") for n in (0, 1, 2)] == ["0 pictures", "1 picture", "2 pictures"]
    assert [counted(n, "class", "classes") for n in (1, 2)] == ["1 class", "2 classes"]
