"""Token ids that are made again: checked against the text."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specdec.errors import ModelError
from specdec.synthesis import BaseTokens
from specdec.synthesis.answer import Answer, RowFailed

TEMPLATE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


@pytest.fixture(scope="module")
def tokens() -> BaseTokens:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(["</s>", "<a>", *alphabet])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="</s>", additional_special_tokens=["<a>"], chat_template=TEMPLATE
    )
    return BaseTokens(tokenizer)


def test_prompt_ids_follow_the_template(tokens: BaseTokens) -> None:
    ids = tokens.prompt_ids([{"role": "user", "content": "ab"}])
    assert ids[2:] == [0, 1]
    assert len(ids) == 4


def test_an_answer_that_stopped_ends_with_the_end_of_turn(tokens: BaseTokens) -> None:
    stopped = tokens.answer_ids(Answer("grün", "stop"))
    assert stopped[-1] == 0
    assert tokens.answer_ids(Answer("grün", "length")) == stopped[:-1]


@pytest.mark.parametrize("text", ["half a character \ufffd"])
def test_a_text_that_does_not_survive_fails(tokens: BaseTokens, text: str) -> None:
    with pytest.raises(RowFailed) as caught:
        tokens.answer_ids(Answer(text, "stop"))
    assert caught.value.kind == "retokenisation"


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no tokenizer"):
        BaseTokens.load(tmp_path)
