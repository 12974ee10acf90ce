"""Checkpoints that run code when they are read."""

import io
import pickle
import struct
import tarfile

import torch


class Malicious:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (exec, (f"open({str(self.target)!r}, 'w').close()",))


def checkpoint_with(value, protocol=2):
    buffer = io.BytesIO()
    torch.save({"network_weights": {}, "trainer_name": value}, buffer, pickle_protocol=protocol)
    return buffer.getvalue()


def tar_before(archive, target):
    """A file that begins as a checkpoint of PyTorch before 1.6 and ends with an archive.

    `torch.load(weights_only=False)` decides by the first bytes: it reads a tar, whose part `storages` is a pickle. Its
    first part has a name that begins with the pickles of the format that followed: from a buffer, which PyTorch does
    not read as a tar, that format is read.

    Args:
        archive: content of a checkpoint as PyTorch saves it.
        target: file that the code in the tar creates.
    """
    code = f"cbuiltins\nexec\n(Vopen({str(target)!r}, 'w').close()\ntR.".encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("x" * 90))
        part = tarfile.TarInfo("storages")
        part.size = len(code)
        tar.addfile(part, io.BytesIO(code))
    content = bytearray(buffer.getvalue())
    magic, version = torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION
    # Two pickles, then one that is a text: the rest of the tar.
    start = pickle.dumps(magic, 2) + pickle.dumps(version, 2) + b"\x80\x02X"
    start += struct.pack("<I", len(content) - len(start) - 4)
    content[:100] = start.ljust(100, b"\0")
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    checkpoint = {"network_weights": {}, "trainer_name": "nnUNetTrainer", "init_args": {"configuration": "3d_fullres"}}
    return bytes(content) + b"." + pickle.dumps(checkpoint, 2) + pickle.dumps([], 2) + archive
