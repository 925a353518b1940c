from __future__ import annotations

from typing import Any

import pytest

from bnbench.data.corpus import Conversation, Example
from bnbench.errors import CorpusError, PromptError
from bnbench.finetune.engine.collate import IGNORED, Row, check_rows, make_rows, rows_sha256
from bnbench.models.prompts import Prompter

EXAMPLE = Example("ক-১", "ঘুম", "রাত জাগা", "আমার ঘুম আসে না।", "আপনার কষ্টটা বুঝতে পারছি।")


def check(rows: list[Row], max_tokens: int = 10, pad: int = 0) -> None:
    check_rows(rows, max_tokens=max_tokens, stops=(9,), pad=pad)


def row(labels: list[int], name: str = "a") -> Row:
    return Row(name, tuple(label if label != IGNORED else 5 for label in labels), tuple(labels))


def test_completion_rows_supervise_reply_and_end_alone(tiny_tokenizer: Any) -> None:
    prompts = Prompter.of(tiny_tokenizer)
    made = make_rows([EXAMPLE], prompts, "completion")[0]
    start = len(prompts.prompt(EXAMPLE).ids)
    assert set(made.labels[:start]) == {IGNORED} and made.labels[start:] == made.ids[start:]
    assert made.labels[-1] == tiny_tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert tiny_tokenizer.decode(made.labels[start:-1]) == EXAMPLE.reference
    assert made.supervised == len(made.ids) - start


def test_rows_of_a_conversation_supervise_each_reply(tiny_tokenizer: Any) -> None:
    prompts, turns = Prompter.of(tiny_tokenizer), ("মন খারাপ।", "কী হয়েছে?", "চাকরি গেছে।")
    made = make_rows([Conversation(**vars(EXAMPLE), turns=turns)], prompts, "completion", "all")[0]
    supervised = tiny_tokenizer.decode([label for label in made.labels if label != IGNORED])
    assert supervised == f"কী হয়েছে?<|eot_id|>{EXAMPLE.reference}<|eot_id|>"
    assert all(label in (IGNORED, token) for label, token in zip(made.labels, made.ids, strict=True))
    shown = tiny_tokenizer.decode(made.ids)
    assert [shown.index(text) for text in turns] == sorted(shown.index(text) for text in turns)
    full = make_rows([Conversation(**vars(EXAMPLE), turns=turns)], prompts, "full-text", "all")[0]
    assert full.labels == full.ids == made.ids


def test_full_text_rows_supervise_all_but_the_first(tiny_tokenizer: Any) -> None:
    made = make_rows([EXAMPLE], Prompter.of(tiny_tokenizer), "full-text")[0]
    assert made.labels == made.ids and made.supervised == len(made.ids) - 1


def test_good_rows_pass() -> None:
    check([row([IGNORED, 3, 9]), row([1, 2, 9])])


def test_rows_that_would_be_cut_are_counted() -> None:
    long = [row([IGNORED] * 10 + [9], "long"), row([3] * 12 + [9], "longer")]
    with pytest.raises(
        CorpusError, match=r"2 of 3 rows \(the first has the id long\): longer than max_tokens = 10 .*has 13"
    ):
        check([row([IGNORED, 9]), *long])


def test_row_without_supervision() -> None:
    with pytest.raises(CorpusError, match=r"1 of 2 rows \(the first has the id mute\): without a supervised token"):
        check([row([IGNORED, 9]), row([IGNORED, IGNORED], "mute")])
    with pytest.raises(CorpusError, match="without a supervised token"):
        check([row([9, IGNORED])])  # the first token is predicted from nothing


def test_row_that_does_not_end() -> None:
    with pytest.raises(CorpusError, match="last supervised token is no end token"):
        check([row([IGNORED, 9, 4])])


def test_no_rows_and_pad_that_ends() -> None:
    with pytest.raises(CorpusError, match="no example"):
        check([])
    with pytest.raises(PromptError, match="pad token 9 is an end token"):
        check([row([IGNORED, 9])], pad=9)


def test_hash_sees_ids_labels_and_order() -> None:
    one, two = row([IGNORED, 9], "a"), row([5, 9], "a")
    assert one.ids == two.ids
    assert len({rows_sha256(r) for r in ([one], [two], [one, two], [two, one], [row([IGNORED, 9], "b")])}) == 5
