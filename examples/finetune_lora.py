"""Fine-tunes the language model with LoRA on images with captions, in a plain PyTorch loop.

    pip install 'pictish[lora]'                    # peft
    pictish tokenize RAW_SHARDS TOKENS             # samples NAME.png, NAME.txt become NAME.tokens, NAME.txt
    python examples/finetune_lora.py TOKENS OUT [MODEL] [STEPS]

OUT becomes a whole model: `pictish generate "..." --model OUT`. `pictish train lm` adds
schedules, validation, exact resuming and several processes.
"""

import shutil
import sys
from functools import partial
from pathlib import Path

import peft
import torch

import pictish
from pictish.io.model_folder import locate_model
from pictish.lm.packing import pack
from pictish.lm.sequence import Codes, build, drawing
from pictish.lm.vocabulary import text_ids


def main(shards: str, out: str, model: str = "starter", steps: str = "200") -> None:
    shutil.copytree(locate_model(model, "lm").parent, out, ignore=shutil.ignore_patterns("lm", "__*"))
    lm = pictish.LanguageModel.from_folder(model).train()
    # Freezes all weights and adds small trainable matrices beside every linear layer.
    lm.language = peft.get_peft_model(lm.language, peft.LoraConfig(r=8, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in lm.language.parameters() if p.requires_grad], lr=1e-3)
    dataset = pictish.token_dataset(shards, tokenizer=lm.image_tokens.fingerprint, shardshuffle=100)
    batches = dataset.shuffle(1000).to_tuple("txt", "tokens").repeat().batched(8, collation_fn=list)
    make = partial(build, vocabulary=lm.vocabulary, encode=partial(text_ids, lm.text_tokenizer), eos=lm.eos)
    for step, batch in zip(range(int(steps)), batches, strict=False):
        # A document is the caption, then the image's codes; the loss counts the codes alone.
        rows = [make("drawing", drawing(text, Codes(image.ids, image.cells))) for text, image in batch]
        packed = pack([[row] for row in rows], max(map(len, rows)))
        loss = torch.nn.functional.cross_entropy(lm(packed).logits.flatten(0, 1), packed.targets.flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss:.3f}")
    lm.save(Path(out, "lm"))  # with the adapters merged into the weights


if __name__ == "__main__":
    main(*sys.argv[1:])
