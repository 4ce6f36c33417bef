"""A small byte-level tokenizer, built without files or a network."""

from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

END, USER, ASSISTANT = "<|end|>", "<|user|>", "<|assistant|>"
TEMPLATE = (
    "{% for m in messages %}"
    "{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('who is ' + m['role']) }}"
    "{% endif %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_tokenizer(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token for each byte (its id is not the byte), "he" and "the" merged, three special ones.

    Ids 0-255 bytes, 256 "he", 257 "the", 258 <|end|>, 259 <|user|>, 260 <|assistant|>.
    """
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {letter: i for i, letter in enumerate(letters)} | {"he": 256, "the": 257}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("h", "e"), ("t", "he")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(t, special=True) for t in (END, USER, ASSISTANT)])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, chat_template=template)


def save_byte_tokenizer(folder: Path, *, template: str | None = TEMPLATE) -> Path:
    """The same as a model folder's tokenizer files."""
    byte_tokenizer(template=template).save_pretrained(str(folder))
    return folder
