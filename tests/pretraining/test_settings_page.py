from pathlib import Path

from pretraining.settings_page import main, settings_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_in_docs_is_up_to_date(tmp_path):
    assert PAGE.read_text() == settings_page(), "run: python -m pretraining.settings_page"
    main([str(tmp_path / "settings.md")])
    assert (tmp_path / "settings.md").read_text() == PAGE.read_text()


def test_settings_are_listed_with_the_values_of_all_presets():
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in settings_page().splitlines()]
    table = {row[0]: row[1:] for row in rows if len(row) == 5}
    assert table["setting"] == ["base", "small", "tiny", "meaning"]
    assert table["`crop_size`"][:3] == ["96 96 96", "64 64 64", "32 32 32"]
    assert table["`learning_rate`"][:3] == ["0.0004", "0.0004", "0.001"]
    assert "(`kde_jsd`, `mmd`, `coral`, `sliced_wasserstein`)" in table["`density_loss`"][3]


def test_recipes_are_listed_with_what_they_change():
    assert "| `ct` | `modalities` CT |" in settings_page()
    assert "| `swinfuse` | nothing |" in settings_page()
