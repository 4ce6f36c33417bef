"""Tokens and text, whole and one token at a time."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as CoreTokenizer
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.fake_tokenizer import END, byte_tokenizer, save_byte_tokenizer
from sparkwell.engine.tokenizer import MAX_PENDING, Tokenizer
from sparkwell.errors import BadCheckpoint, BadInput

TOKENIZER = Tokenizer(byte_tokenizer(), frozenset({258}))


@pytest.fixture
def tokenizer() -> Tokenizer:
    return TOKENIZER


def spaced_tokenizer() -> Tokenizer:
    """SentencePiece's ways: a space is part of the word behind it, unknown characters are bytes."""
    words = ["▁", "▁a", "▁b", "c", "▁€"]
    vocab = {"<unk>": 0} | {f"<0x{i:02X}>": 1 + i for i in range(256)}
    vocab |= {word: 257 + i for i, word in enumerate(words)}
    core = CoreTokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    core.add_special_tokens([END])
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=core), frozenset())


def pieces(tokenizer: Tokenizer, ids: list[int], context: tuple[int, ...] = ()) -> list[str]:
    detokenizer = tokenizer.detokenizer(context)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


# ---------------------------------------------------------------- whole texts


def test_text_to_tokens_and_back(tokenizer: Tokenizer) -> None:
    text = "the hen é 🙂"
    ids = tokenizer.encode(text)
    assert ids[0] == 257 and 256 in ids and len(ids) == 12  # "the", "he", n, 3 spaces, 2 + 4 bytes
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode("") == [] and tokenizer.decode([]) == ""
    assert tokenizer.vocab_size == 261


def test_special_tokens_have_no_text_and_are_added_on_demand(tokenizer: Tokenizer) -> None:
    assert tokenizer.special_ids == {258, 259, 260}
    assert tokenizer.decode([258, *tokenizer.encode("a"), 260]) == "a"
    backend = byte_tokenizer()
    from tokenizers.processors import TemplateProcessing

    backend.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, 258)]
    )
    bos = Tokenizer(backend, frozenset())
    assert bos.encode("a")[0] == 258 and bos.encode("a", special=False)[0] != 258


def test_spaces_before_punctuation_survive(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a , b .")) == "a , b ."
    words = CoreTokenizer(models.WordLevel({"a": 0, ",": 1, "?": 2}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tidy = PreTrainedTokenizerFast(tokenizer_object=words, clean_up_tokenization_spaces=True)
    assert Tokenizer(tidy, frozenset()).decode([0, 1, 0]) == "a , a"


# ---------------------------------------------------------------- one token at a time


def test_a_character_over_several_tokens_comes_at_once(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, tokenizer.encode("a🙂b")) == ["a", "", "", "", "🙂", "b", ""]


def test_half_a_character_at_the_end_comes_with_flush(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂")[:-1]
    assert pieces(tokenizer, ids) == ["a", "", "", "", "\ufffd"]


def test_special_tokens_are_skipped_between(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("é")
    assert pieces(tokenizer, [258, ids[0], 259, ids[1], 260]) == ["", "", "", "é", "", ""]


def test_an_unknown_token_has_no_text(tokenizer: Tokenizer) -> None:
    assert pieces(tokenizer, [*tokenizer.encode("a"), 100_000, *tokenizer.encode("b")]) == [
        "a", "", "b", "",
    ]  # fmt: skip


def test_bytes_that_are_no_character_do_not_hold_the_text_back_for_ever(
    tokenizer: Tokenizer,
) -> None:
    byte = tokenizer.encode("é")[1]  # a continuation without a beginning
    out = pieces(tokenizer, [byte] * (3 * MAX_PENDING))
    assert "".join(out) == "\ufffd" * (3 * MAX_PENDING)
    assert max(map(len, out)) <= MAX_PENDING + 1
    follow = pieces(tokenizer, [byte] * MAX_PENDING + tokenizer.encode("ok"))
    assert "".join(follow) == "\ufffd" * MAX_PENDING + "ok"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_comes_out_whole_and_in_whole_characters(text: str) -> None:
    out = pieces(TOKENIZER, TOKENIZER.encode(text))
    assert "".join(out) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in out)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 260), max_size=MAX_PENDING))
def test_any_tokens_come_out_as_decoding_them_together(ids: list[int]) -> None:
    assert "".join(pieces(TOKENIZER, ids)) == TOKENIZER.decode(ids)


def test_long_outputs_are_decoded_in_a_short_window(tokenizer: Tokenizer) -> None:
    detokenizer = tokenizer.detokenizer()
    longest = 0
    for token in tokenizer.encode("the é🙂 " * 50):
        detokenizer.push(token)
        longest = max(longest, len(detokenizer._window))
    assert longest <= 8


def test_a_leading_space_is_kept_behind_a_prompt_only() -> None:
    spaced = spaced_tokenizer()
    a, b, c = 258, 259, 260
    assert spaced.decode([a, b, c]) == "a bc"
    assert pieces(spaced, [a, b, c]) == ["a", " b", "c", ""]
    assert pieces(spaced, [a, b], context=(c,)) == [" a", " b", ""]
    # A special token before the word does not make it the first one.
    assert pieces(spaced, [a, 262, b]) == ["a", "", " b", ""]
    assert pieces(spaced, [a, b], context=(c, 262)) == [" a", " b", ""]


def test_runs_of_bytes_wait_for_the_whole_character() -> None:
    spaced = spaced_tokenizer()
    euro = [1 + byte for byte in "€".encode()]
    assert pieces(spaced, [258, *euro, *euro, 259]) == ["a", "", "", "€", "", "", "€", " b", ""]


def test_a_prompt_that_ends_within_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a🙂b")
    assert pieces(tokenizer, ids[3:], context=tuple(ids[:3])) == ["", "🙂", "b", ""]
    whole = tokenizer.encode("long prompt " * 20)
    assert pieces(tokenizer, ids, context=tuple(whole))[0] == "a"


# ---------------------------------------------------------------- folders


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(value if isinstance(value, str) else json.dumps(value))


def test_end_tokens_are_gathered_from_every_file(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    assert Tokenizer.load(tmp_path).eos_ids == {258}
    write(tmp_path, "config.json", {"model_type": "llama", "eos_token_id": 259})
    write(tmp_path, "generation_config.json", {"eos_token_id": [260, 7]})
    loaded = Tokenizer.load(str(tmp_path))
    assert loaded.eos_ids == {258, 259, 260, 7}
    assert loaded.encode("the") == [257]
    write(tmp_path, "generation_config.json", {"eos_token_id": None})
    assert Tokenizer.load(tmp_path).eos_ids == {258, 259}


@pytest.mark.parametrize(
    ("name", "value", "came"),
    [
        ("tokenizer.json", '{"mod', "came    JSONDecodeError"),
        ("tokenizer.json", {"added_tokens": [], "model": {"type": "Nope"}}, "came    Exception"),
        ("generation_config.json", "[1", "generation_config.json is not valid JSON"),
        ("generation_config.json", [1], "came    a JSON list"),
        ("generation_config.json", {"eos_token_id": "x"}, "came    eos_token_id 'x'"),
        ("generation_config.json", {"eos_token_id": [1, "x"]}, "wanted  a token id or a list"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, value: Any, came: str) -> None:
    save_byte_tokenizer(tmp_path)
    write(tmp_path, name, value)
    with pytest.raises(BadCheckpoint, match=came):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("name", ["", "missing"])
def test_a_folder_without_a_tokenizer(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadCheckpoint, match="came    none of tokenizer.json, tokenizer.model"):
        Tokenizer.load(tmp_path / name)


# ---------------------------------------------------------------- chat


def test_a_conversation_ends_where_the_answer_begins(tokenizer: Tokenizer) -> None:
    ids = tokenizer.chat([{"role": "user", "content": "he"}])
    assert ids == [259, 256, 260]


def test_conversations_that_cannot_be_written_down(tokenizer: Tokenizer) -> None:
    plain = Tokenizer(byte_tokenizer(template=None), frozenset())
    message = {"role": "user", "content": "x"}
    with pytest.raises(BadInput, match="this model has no chat template; give it plain text"):
        plain.chat([message])
    with pytest.raises(BadInput, match="chat: messages is empty"):
        tokenizer.chat([])
    with pytest.raises(BadInput, match="chat: a message is {'content': 'x'}, want"):
        tokenizer.chat([{"content": "x"}])
    with pytest.raises(BadInput, match="chat: a message is 'hi', want"):
        tokenizer.chat(["hi"])  # type: ignore[list-item]
    with pytest.raises(BadInput, match="template refuses these messages: who is judge"):
        tokenizer.chat([{"role": "judge", "content": "x"}])


def test_threads_may_encode_and_decode_together() -> None:
    shared = Tokenizer(byte_tokenizer(), frozenset())
    text, failures = "the é🙂 " * 20, []

    def work() -> None:
        for _ in range(50):
            if shared.decode(shared.encode(text)) != text:
                failures.append(text)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
