"""Paragraphs keep their width."""

from trainwright.report.wrapped import indented


def test_lines_are_set_off_and_no_wider_than_asked():
    text = indented("a word " * 30, 40)
    lines = text.splitlines()
    assert text.endswith("\n") and all(line.startswith(" " * 6) and len(line) <= 40 for line in lines)
    assert " ".join(text.split()) == " ".join(["a word"] * 30) and indented("", 40) == ""
