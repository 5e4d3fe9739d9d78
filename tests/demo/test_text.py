import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from numwatch.demo.text import VOCABULARY, Windows, corpus, decode, encode, split

PRINTABLE = "\n" + "".join(map(chr, range(32, 127)))


def test_the_vocabulary_is_every_printable_character_once():
    assert encode(PRINTABLE).tolist() == list(range(VOCABULARY))


@given(st.text(alphabet=PRINTABLE))
def test_decode_inverts_encode(text):
    assert decode(encode(text)) == text


@given(st.text())
def test_what_is_not_in_the_vocabulary_becomes_a_question_mark(text):
    expected = "".join(c if c in PRINTABLE else "?" for c in text)
    assert decode(encode(text)) == expected


def test_split_is_disjoint_and_whole():
    codes = corpus()
    assert len(codes) > 300_000
    training, validation = split(codes)
    assert torch.equal(torch.cat([training, validation]), codes)
    assert len(validation) == pytest.approx(0.1 * len(codes), abs=1)


@given(st.integers(0, 70), st.integers(1, 9))
def test_windows_tile_the_text_and_targets_are_one_ahead(length, context):
    codes = torch.arange(length)
    windows = list(Windows(codes, context))
    assert len(windows) == max(length - 1, 0) // context
    for i, (inputs, targets) in enumerate(windows):
        assert inputs.tolist() == list(range(i * context, (i + 1) * context))
        assert torch.equal(targets, inputs + 1)


def test_batches():
    inputs, targets = next(iter(DataLoader(Windows(corpus(), 32), 8, shuffle=True)))
    assert inputs.shape == targets.shape == (8, 32)
    assert inputs.dtype is torch.int64
    assert 0 <= int(inputs.min()) <= int(inputs.max()) < VOCABULARY
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
