import json

from pretraining.monitoring.log import RunLog, read_records


def test_records_are_kept_up_to_the_step_of_a_continuation(tmp_path):
    log = RunLog(tmp_path)
    for step in range(1, 6):
        log.record(step, "train", {"total": step / 2})
    assert RunLog(tmp_path, step=3) is not None
    assert [record["step"] for record in read_records(tmp_path)] == [1, 2, 3]
    RunLog(tmp_path)
    assert read_records(tmp_path) == []


def test_lines_are_json_even_for_values_that_are_none(tmp_path):
    RunLog(tmp_path).record(1, "train", {"total": float("nan"), "other": float("inf"), "fine": 2})
    line = (tmp_path / "losses.jsonl").read_text().strip()
    assert json.loads(line, parse_constant=lambda name: 1 / 0) == {
        "step": 1, "kind": "train", "total": None, "other": None, "fine": 2.0,
    }  # fmt: skip


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    RunLog(tmp_path).record(1, "train", {"total": 1})
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 2, "ki')
    assert [record["step"] for record in read_records(tmp_path)] == [1]


def test_text_goes_to_screen_and_log(tmp_path, capsys):
    RunLog(tmp_path).info("hello")
    assert "hello" in capsys.readouterr().out
    assert (tmp_path / "log.txt").read_text().endswith("  hello\n")
