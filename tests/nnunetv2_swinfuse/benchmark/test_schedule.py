from nnunetv2_swinfuse.benchmark.cells import Cell
from nnunetv2_swinfuse.benchmark.experiment import PretrainingRun
from nnunetv2_swinfuse.benchmark.schedule import Schedule

SWINFUSE, CT = (PretrainingRun(recipe, {}, {}, 0) for recipe in ("swinfuse", "ct"))


def cell(arm, dataset="Dataset901_A"):
    return Cell(arm, dataset, 4, 0, 0)


def make_schedule(*cells, pretrained=()):
    runs = {"swinfuse": SWINFUSE, "gated": SWINFUSE, "ct": CT}
    return Schedule(cells, {cell: runs[cell.arm] for cell in cells if cell.arm in runs}, pretrained)


def test_cells_pass_one_whose_encoder_is_being_pretrained():
    schedule = make_schedule(cell("swinfuse"), cell("gated"), cell("ct"), cell("scratch"))
    assert [schedule.take() for _ in range(4)] == [SWINFUSE, CT, cell("scratch"), None]
    schedule.mark_pretrained(SWINFUSE)
    # Two arms begin with the same encoder; the third still waits for its own.
    assert [schedule.take() for _ in range(3)] == [cell("swinfuse"), cell("gated"), None]
    assert schedule.waiting == [cell("ct")]
    schedule.mark_pretrained(CT)
    assert [schedule.take() for _ in range(2)] == [cell("ct"), None]


def test_what_is_pretrained_already_is_not_pretrained_again():
    schedule = make_schedule(cell("ct"), cell("swinfuse"), pretrained=["ct__seed_0"])
    assert [schedule.take() for _ in range(2)] == [cell("ct"), SWINFUSE]


def test_a_failed_pretraining_takes_its_cells_along_and_no_others():
    schedule = make_schedule(cell("swinfuse"), cell("ct"), cell("swinfuse", "Dataset902_B"), cell("scratch"))
    schedule.take()
    assert schedule.give_up(SWINFUSE) == [cell("swinfuse"), cell("swinfuse", "Dataset902_B")]
    assert [schedule.take() for _ in range(3)] == [CT, cell("scratch"), None]


def test_a_job_that_does_not_fit_lets_others_pass_and_stays():
    schedule = make_schedule(cell("swinfuse"), cell("ct"), cell("scratch"))
    assert schedule.take(lambda job: job != SWINFUSE) == CT
    assert schedule.take(lambda job: isinstance(job, Cell)) == cell("scratch")
    assert schedule.take(lambda job: False) is None
    assert schedule.waiting == [cell("swinfuse"), cell("ct")]
    assert schedule.take() == SWINFUSE


def test_cells_of_a_pretraining_that_fails_are_lost_also_when_nothing_fits_any_more():
    schedule = make_schedule(cell("swinfuse"), cell("gated"), cell("ct"))
    assert schedule.take() == SWINFUSE
    assert schedule.take(lambda job: False) is None
    assert schedule.give_up(SWINFUSE) == [cell("swinfuse"), cell("gated")]
    assert schedule.waiting == [cell("ct")]
