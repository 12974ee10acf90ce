from pretraining.markdown import markdown_table


def test_tables_have_an_aligned_line_for_each_row():
    table = markdown_table(["arm", "b"], [["x", 0.12345], ["longer", None]])
    assert table.splitlines() == [
        "| arm    | b     |",
        "| ------ | ----- |",
        "| x      | 0.123 |",
        "| longer |       |",
    ]


def test_a_table_may_have_no_line():
    assert markdown_table(["a"], []) == "| a   |\n| --- |"
