import fcntl
import json
import threading

import pytest

from nnunetv2_swinfuse.benchmark.files import locked, write_json, write_text


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half \ud800")
    assert json.loads(path.read_text()) == {"a": [1]}


def test_a_lock_is_held_by_one_at_a_time(tmp_path, capsys):
    path = tmp_path / "folder" / "lock"
    order = []

    def second():
        with locked(path, "Waiting for the first."):
            order.append("second")

    with locked(path):
        with open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]
    assert "held by another process. Waiting for the first." in capsys.readouterr().err
