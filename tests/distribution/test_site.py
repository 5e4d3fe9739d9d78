"""The documentation site says what the code says; that it is built, `make docs` sees in CI."""

import importlib.util
import re
from pathlib import Path

import numwatch
import numwatch.callbacks

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_commands_page_is_what_the_commands_say():
    spec = importlib.util.spec_from_file_location("write_commands", DOCS / "write_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.page(), "run `make docs`"


def test_every_failure_of_the_faq_is_told_in_its_own_words():
    sources = "\n".join(
        path.read_text()
        for folder in ("numwatch", "callbacks")
        for path in (ROOT / folder).rglob("*.py")
    )
    whole = re.sub(r'"\s+f?"', "", sources)  # texts that lines cut in two
    quoted = re.findall(r"^## `(.+)`$", (DOCS / "faq.md").read_text(), re.MULTILINE)
    assert len(quoted) > 5
    assert [words for words in quoted if words not in whole] == []


def test_every_public_name_is_in_the_reference():
    reference = (DOCS / "api.md").read_text() + (DOCS / "callbacks.md").read_text()
    for name in {*numwatch.__all__, *numwatch.callbacks.__all__} - {"__version__"}:
        assert re.search(rf"auto\w+:: (numwatch\.callbacks\.)?{name}$", reference, re.MULTILINE), (
            name
        )
