"""Small random checkpoints of reward models as they are published, with tokenizers of their kinds, and what is asked of them.

Imported by test modules (``tests/conftest.py`` puts this folder on the path). Not a test.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from forethought.schema import Problem

QUESTION = "Mia has 3 boxes of 12 apples and eats 5. How many are left?"
PROBLEM = Problem("p", QUESTION, "31")
SOLUTIONS = [
    "<think>\n3 boxes of 12: 3 * 12 = 36.\n\nShe eats 5: 36 - 5 = 31.\n</think>\nSo the answer is \\boxed{31}.",
    "<think>\n3 boxes of 12: 3 * 12 = 36.\n\nShe eats 5: 36 - 5 = 30.\n\nWait.\n\n36 - 5 = 31, not 30.\n</think>\nSo 31.",
    "<think>\n3 boxes of 12:\n3 * 12 = 32.\n\nShe eats 5: 32 - 5 = 27.\n\nIt is 27",
    "31",
    "Step 1: 3 + 12 = 15 + ки.\n\n\n  Step 2: 15 - 5 = 10 apples — \u00e9t\u00e9 😀.\n\n",
    "<think>\n3 boxes of 12: 3 * 12 = 36.\n\nShe eats 5: 36 - 5 = 31.\n</think>\nSo the answer is \\boxed{31}.",
    "",
]

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 1024, "initializer_range": 0.3,
}  # fmt: skip
QWEN_CHAT = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
QWEN_SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<extra_0>"]
LLAMA_SPECIALS = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


def byte_level(specials: list[str], **named: Any) -> Any:
    """Byte-level BPE behind a GPT regular expression, as Qwen's and Llama 3's. No BOS of its own."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=specials, show_progress=False)
    tokenizer.train_from_iterator([QUESTION, *SOLUTIONS], trainer)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **named)


def metaspace() -> Any:
    """BPE over words with their space and byte fallback, BOS in front, as Llama 2's and Mistral's; the tag is one token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted({c for text in (QUESTION, *SOLUTIONS) for c in text if c.isascii() and c.isprintable() and c != " "})
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "▁+", "▁-", "▁к", "▁ки", "к", "и", *letters]
    merges = [("▁", "+"), ("▁", "-"), ("▁", "к"), ("▁к", "и")]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def qwen_tokenizer() -> Any:
    tokenizer = byte_level(QWEN_SPECIALS, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = QWEN_CHAT
    return tokenizer


def llama_tokenizer() -> Any:
    """It puts a BOS before any text, as Llama 3's does, and the chat template has one of its own."""
    from tokenizers import processors

    begin = LLAMA_SPECIALS[0]
    tokenizer = byte_level(LLAMA_SPECIALS, bos_token=begin, eos_token="<|eot_id|>")
    single = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, 0)])
    tokenizer.backend_tokenizer.post_processor = single
    tokenizer.chat_template = LLAMA_CHAT
    return tokenizer


def body(family: str, vocabulary: int, **settings: Any) -> Any:
    """A random decoder without an LM head, as transformers makes it, norms and biases unlike."""
    config = getattr(transformers, f"{family}Config")(**SHAPE | {"vocab_size": vocabulary} | settings)
    torch.manual_seed(0)
    model = getattr(transformers, f"{family}Model")(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 1:
                weight.add_(torch.randn_like(weight), alpha=0.2)
    return model.eval()


def mlp(width: int, labels: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, labels))


def save(folder: Path, model: Any, tokenizer: Any, architecture: str, **heads: nn.Module) -> Any:
    """``model`` under ``model.``, each head under its name, as the published classes save themselves.

    Returns the tokenizer as transformers reads it from there: for some types of model it is not the one that was saved.
    """
    tensors: dict[str, Tensor] = {f"model.{name}": weight for name, weight in model.state_dict().items()}
    for prefix, head in heads.items():
        head.requires_grad_(False)
        tensors |= {f"{prefix.replace('__', '.')}.{name}": weight for name, weight in head.state_dict().items()}
    tokenizer.save_pretrained(folder)
    model.config.architectures = [architecture]
    model.config.save_pretrained(folder)
    save_file({name: weight.contiguous() for name, weight in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    return transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def states(model: Any, ids: list[int]) -> Tensor:
    """[tokens, width] the normed last hidden states, all computed anew."""
    return model(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[0]
