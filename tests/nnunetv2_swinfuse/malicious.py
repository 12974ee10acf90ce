"""Checkpoints whose pickle runs code when it is read."""

import io

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
