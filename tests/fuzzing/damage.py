"""How a file is damaged: a list of steps, each a kind, a place as share of the file, and a number."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

Step = tuple[str, float, int]
BYTES = (0, 1, 0x7F, 0x80, 0xFF, 0x30, 0x0A)
JUNK: tuple[Any, ...] = (
    None, True, False, 0, -1, 3, 10**30, 0.5, -1e308, float("nan"), float("inf"), "", "a", "../../etc", "CT",
    ".nii.gz", "\x00", [], [None], [0], [[1]], [1, 2, 3], {}, {"a": 1}, {"0": "CT"}, ["a"] * 9,
)  # fmt: skip


def damage(content: bytes, steps: Sequence[Step]) -> bytes:
    """Flips a bit, sets a byte, cuts the rest off, inserts bytes or drops some, step by step."""
    data = bytearray(content)
    for kind, share, number in steps:
        if not data:
            break
        at = min(int(share * len(data)), len(data) - 1)
        if kind == "flip":
            data[at] ^= 1 << number
        elif kind == "set":
            data[at] = number
        elif kind == "cut":
            del data[at:]
        elif kind == "insert":
            data[at:at] = bytes(range(number))
        else:
            del data[at : at + number]
    return bytes(data)


def draw_steps(chance: random.Random) -> list[Step]:
    """One to four steps. A third of them in the first tenth: headers are a small part of a file and decide the most."""
    steps: list[Step] = []
    for _ in range(chance.choice((1, 1, 2, 4))):
        kind = chance.choice(("flip", "flip", "set", "set", "cut", "insert", "drop"))
        share = chance.random() * (0.1 if chance.random() < 1 / 3 else 1)
        number = {"flip": chance.randrange(8), "set": chance.choice((*BYTES, chance.randrange(256))), "cut": 0}.get(
            kind, chance.randint(1, 40)
        )
        steps.append((kind, share, number))
    return steps


def replace_value(content: Any, path: Sequence[int], value: Any) -> Any:
    """JSON with one part, chosen by numbers, replaced."""
    if not path or not isinstance(content, (dict, list)) or not content:
        return value
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key = keys[path[0] % len(keys)]
    copy = content.copy()
    copy[key] = replace_value(content[key], path[1:], value)
    return copy


def damage_json(content: bytes, chance: random.Random) -> bytes:
    """Sound JSON that says something else, or damaged bytes."""
    if chance.random() < 0.5:
        return damage(content, draw_steps(chance))
    path = [chance.randrange(10) for _ in range(chance.randint(0, 6))]
    return json.dumps(replace_value(json.loads(content), path, chance.choice(JUNK))).encode()
