"""Character data from the text that ships with Python: the language reference behind `help()`."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

# "\n" is 0, the printable ASCII characters are 1 to 95. Fixed, so that every Python version's
# text fits, and a multiple of 16, so that the head's GEMM may run in FP8.
VOCABULARY = 96
_FIRST_PRINTABLE = ord(" ")


def encode(text: str) -> Tensor:
    """Returns the codes of `text`, int64 [len(text)] in [0, VOCABULARY).

    What is neither printable ASCII nor a newline becomes `?`.
    """
    codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64)
    printable = (codes >= _FIRST_PRINTABLE) & (codes < _FIRST_PRINTABLE + VOCABULARY - 1)
    codes = torch.where(printable | (codes == ord("\n")), codes, ord("?"))
    return (codes - (_FIRST_PRINTABLE - 1)).clamp(min=0)


def decode(codes: Tensor) -> str:
    """Returns the text of `codes`; the inverse of `encode` on what it keeps."""
    return "".join(chr(c + _FIRST_PRINTABLE - 1) if c else "\n" for c in codes.tolist())


def corpus() -> Tensor:
    """Returns the codes of Python's help topics, some 460 000 characters."""
    from pydoc_data.topics import topics

    return encode("\n".join(topics.values()))


def split(codes: Tensor, validation: float = 0.1) -> tuple[Tensor, Tensor]:
    """Returns the leading part of `codes` for training and the rest for validation."""
    cut = int(len(codes) * (1 - validation))
    return codes[:cut], codes[cut:]


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """Consecutive windows of a text, each with its successor characters as targets.

    Item i is `codes[i*context : (i+1)*context]` and the same range moved by one, both [context].
    """

    def __init__(self, codes: Tensor, context: int) -> None:
        self.codes = codes
        self.context = context

    def __len__(self) -> int:
        return max(len(self.codes) - 1, 0) // self.context

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.context
        window = self.codes[start : start + self.context + 1]
        return window[:-1], window[1:]
