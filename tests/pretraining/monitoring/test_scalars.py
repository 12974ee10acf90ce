import torch

from pretraining.monitoring.scalars import UnreadScalars


def test_steps_are_read_at_once_in_order_and_then_forgotten():
    unread = UnreadScalars(every=2)
    unread.add(1, {"total": torch.tensor(1.5), "norm": torch.tensor(2.0, dtype=torch.float64)})
    assert not unread.due
    unread.add(2, {"total": torch.tensor(0.5, requires_grad=True)})
    assert unread.due
    assert unread.read() == [(1, {"total": 1.5, "norm": 2.0}), (2, {"total": 0.5})]
    assert unread.read() == []
    assert not unread.due


def test_adding_reads_nothing():
    # On the meta device there are no values: whatever read one would fail.
    unread = UnreadScalars(every=1)
    unread.add(1, {"total": torch.zeros((), device="meta")})
    assert unread.due
