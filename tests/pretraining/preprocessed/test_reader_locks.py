import pytest
from filelock import FileLock

from nnunetv2_swinfuse.errors import InputError
from pretraining.preprocessed.reader_locks import hold_volumes, without_readers


def test_volumes_have_any_number_of_readers_and_are_deleted_without_any(tmp_path):
    folder = tmp_path / "swinfuse"
    with hold_volumes(folder), hold_volumes(folder):
        with pytest.raises(InputError, match=r"swinfuse: a run is training on these volumes.*--train_only"):
            with without_readers(folder):
                pass
    with without_readers(folder):
        pass
    with hold_volumes(folder):
        pass
    # Each takes the first that is free.
    assert len(list(tmp_path.iterdir())) == 2


def test_volumes_are_read_where_their_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with hold_volumes(tmp_path / "file" / "swinfuse"), without_readers(tmp_path / "file" / "swinfuse"):
        pass


def test_a_file_system_without_locks_has_none(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise NotImplementedError

    monkeypatch.setattr(FileLock, "acquire", refuse)
    (tmp_path / "swinfuse.reader0.lock").touch()
    with hold_volumes(tmp_path / "swinfuse"), without_readers(tmp_path / "swinfuse"):
        pass
