"""Lines that begin with a label, as a summary's lines do."""

from collections.abc import Iterable

from rich.text import Text

_WIDTH = 12


def labelled(label: str, text: Text, style: str = "dim") -> Text:
    """Returns the label and, in a column of its own, the text; an empty label goes on."""
    return Text().append(f"{label} ".ljust(_WIDTH), style=style).append_text(text)


def labelled_all(label: str, texts: Iterable[Text]) -> list[Text]:
    """Returns a line for each text, the label before the first one alone."""
    return [labelled("" if i else label, text) for i, text in enumerate(texts)]
