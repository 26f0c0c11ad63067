"""docs/config.md says what the classes say today."""

from pictish.configs import shipped_names
from tools.write_config_doc import TARGET, document


def test_the_list_of_keys_is_current():
    assert TARGET.read_text("utf-8") == document(), "run: make docs"


def test_it_has_every_name_and_bounds_defaults_and_kinds():
    text = document()
    assert all(f"| `{name}` |" in text for name in shipped_names())
    assert "| `usage_alarm` | number, ≥ 0, ≤ 1 | `0.3` | warn when a smaller share" in text
    assert "| `base` | mapping of kind `new`, `pretrained` | required |" in text
    assert "### `model.base` of kind `pretrained` (lm)" in text
    assert "| `phases` | list of mappings | required |" in text
