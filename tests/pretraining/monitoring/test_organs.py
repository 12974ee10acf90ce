from pretraining.monitoring.curves import PANELS, panels
from pretraining.monitoring.health import WARM_UP_SHARE, health_warnings
from pretraining.monitoring.organs import BEST_RANDOM, COORDINATES, DICE, HANDMADE, RANDOM, organ_tasks, organ_warnings


def measures(dice, random=0.6, best=0.7, task="501_2"):
    values = {DICE: dice, RANDOM: random, BEST_RANDOM: best, HANDMADE: 0.5, COORDINATES: 0.4}
    return {f"{name}_{task}": value for name, value in values.items()}


def test_features_poorer_than_those_of_random_encoders_give_a_warning_in_words():
    means = {**measures(0.55), **measures(0.65, task="Tumours_a_4"), **measures(0.6, task="511_4")}
    assert organ_tasks(means) == ["501_2", "511_4", "Tumours_a_4"]
    (warning,) = organ_warnings(means)
    assert "poorer than a random encoder's" in warning
    assert "2 labelled cases of 501 reaches a Dice of 0.55 on others, with random encoders 0.60 (best 0.70)" in warning


def test_the_warning_waits_for_the_warm_up():
    assert not health_warnings(measures(0.5), WARM_UP_SHARE / 2)
    assert len(health_warnings(measures(0.5), WARM_UP_SHARE)) == 1


def test_each_task_has_a_panel_with_its_floors():
    records = [{"step": 10, "kind": "validation", **measures(0.5)}, {"step": 10, "kind": "train", "total": 1.0}]
    *others, organs = panels(records)
    assert tuple(others) == PANELS == panels(records[1:])
    assert organs.title == "organs of 501, 2 labelled cases: Dice"
    assert organs.names[0] == f"{DICE}_501_2"
    assert len(organs.names) == 5
