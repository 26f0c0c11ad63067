"""Ids to text, and the starter's text tokenizer: byte-level BPE, trained on the captions it will read."""

from collections.abc import Iterable, Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

EOS = "<|end|>"
PAD = "<|pad|>"


def decode_text(
    tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], *, skip_special_tokens: bool = False
) -> str:
    """The text of ids, without the rest of a letter of several bytes that was cut at its end."""
    text = str(tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens))
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


def train_text_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of `vocab_size` strings, EOS and PAD among them; any text can be written with it.

    The same texts give the same tokenizer, in whatever order they come. Raises ValueError for too few pieces.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + 2:
        raise ValueError(
            f"{vocab_size} pieces were asked for; bytes and markers alone are {len(alphabet) + 2}"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(sorted(texts), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD)
