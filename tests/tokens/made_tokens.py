"""Tokenizers, templates and conversations made here, so that no test needs a download."""

from __future__ import annotations

import json
import random
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from burnish.records import Example, Message, Where
from burnish.tokens.encode import Encoding
from burnish.tokens.template import TEMPLATES, Template
from burnish.tokens.tokenizer import Tokenizer as Ours

CONTROLS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<s>", "</s>", "<unk>", "<bos>"),
]
CORPUS = [
    "The quick brown fox jumps over the lazy dog. user assistant system model\n\nHello, how are you?\n",
    "What is the capital of France? Paris is the capital of France.\n1 + 1 = 2; 3,141 and 0.5\n",
    "Où est la gare? Straße, naïve café. こんにちは世界 Привет мир 🙂🙃 ### Input: ### Answer:\n",
] * 20


def save(folder: Path, backend: Tokenizer, **config: object) -> Path:
    """A model folder that both Burnish and transformers read."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


@cache
def _bytes() -> str:
    """Byte-level BPE as examples/pretrain/gather.py makes it."""
    made = Tokenizer(models.BPE())
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=600, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(CORPUS, trainer)
    return str(made.to_str())


def byte_level(folder: Path, bos: str = "", **config: object) -> Path:
    """Byte-level BPE; with `bos` the model's texts begin with it."""
    made = Tokenizer.from_str(_bytes())
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, made.token_to_id(bos))]
        )
        config["bos_token"] = bos
    return save(folder, made, **{"eos_token": "<|endoftext|>", **config})


@cache
def _pieces() -> str:
    """Sentencepiece's form: a mark for blanks, Prepend, byte fallback, newlines on their own."""
    made = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split("▁", "merged_with_next")]
    )
    names = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=names, limit_alphabet=40, show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    made.pre_tokenizer = None
    told = json.loads(made.to_str())
    told["added_tokens"] = told["added_tokens"][:3]
    return json.dumps(told)


def pieces(folder: Path, bos: bool = True, modern: str = "", **config: object) -> Path:
    """Llama-like; `modern` "first" or "always" puts the word mark by Metaspace and not by Prepend."""
    told = json.loads(_pieces())
    if modern:
        told["normalizer"] = None
        told["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": modern, "split": False}
    made = Tokenizer.from_str(json.dumps(told))
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    if bos:
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
        )
    return save(folder, made, **{"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **config})


def word_pieces(folder: Path) -> Path:
    """BERT-like."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    )
    made.decoder = decoders.WordPiece()
    ids = [(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ids
    )
    config = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return save(folder, made, **config)


def chatml(word: str = "message.content") -> str:
    return (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + " + word + " + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )


CHATS = {
    "chatml": chatml(),
    "chatml-generation": (
        "{% for message in messages %}{% if message.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
        "{% generation %}{{ message.content }}{% endgeneration %}{{ '<|im_end|>\n' }}{% else %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama-2": (
        "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set told = messages[0].content %}"
        "{% else %}{% set turns = messages %}{% set told = '' %}{% endif %}"
        "{% for message in turns %}{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if loop.index0 == 0 and told %}{% set content = '<<SYS>>\n' + told + '\n<</SYS>>\n\n' + message.content %}"
        "{% else %}{% set content = message.content %}{% endif %}"
        "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama-3": (
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n'"
        " + message.content | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
        "{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
        "{% set turns = messages[1:] %}{% else %}{% set first = '' %}{% set turns = messages %}{% endif %}"
        "{% for message in turns %}{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') + message.content | trim"
        " + '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{%- if messages[0].role == 'system' %}{%- set told = messages[0].content %}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}{%- for message in turns %}"
        "{%- if message.role == 'user' %}{%- if loop.first and told is defined %}"
        "{{- '[INST]' + told + '\n\n' + message.content + '[/INST]' }}{%- else %}"
        "{{- '[INST]' + message.content + '[/INST]' }}{%- endif %}{%- else %}"
        "{{- message.content + eos_token }}{%- endif %}{%- endfor %}"
    ),
    "qwen3": (
        "{%- set ns = namespace(last=messages | length - 1, open=true) %}{%- for message in messages[::-1] %}"
        "{%- if ns.open and message.role == 'user' %}{%- set ns.open = false %}"
        "{%- set ns.last = messages | length - 1 - loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for message in messages %}{%- set content = message.content %}{%- if message.role != 'assistant' %}"
        "{{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{%- else %}"
        "{%- set thought = '' %}{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}{{- '<|im_start|>assistant\n<think>\n' + "
        "thought.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}{%- else %}"
        "{{- '<|im_start|>assistant\n' + content }}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    "zephyr": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + eos_token + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}
TRIMS = ("llama-2", "llama-3", "gemma")
BOS = {"llama-3": "<|begin_of_text|>", "gemma": "<bos>", "llama-2": "<s>", "mistral": "<s>"}
OWN = {name: (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8") for name in ("plain", "raw", "spaced")}


def template(name: str) -> Template:
    """A chat template of this file, or Burnish's plain or raw."""
    return Template(name, OWN[name]) if name in OWN else Template("chat", CHATS[name])


def tokenizer_for(name: str, folder: Path) -> Ours:
    """Byte-level BPE with the control tokens of a template, its BOS, and an end of text that fits."""
    ends = {"llama-2": "</s>", "mistral": "</s>", "zephyr": "</s>"}
    chat = {"chat_template": CHATS[name]} if name in CHATS else {}
    return Ours.load(byte_level(folder, BOS.get(name, ""), eos_token=ends.get(name, "<|endoftext|>"), **chat))


def encoding(tokenizer: Ours, told: Template, **changes: object) -> Encoding:
    given = {"kind": "decoder", "target": "answers", "max_length": 100_000, **changes}
    return Encoding(tokenizer, told, **given)  # type: ignore[arg-type]


WORDS = [
    *("Paris", "is", "the capital", "of France.", "user", "assistant", "system", "### Answer:", "model", "\n\n"),
    *("café", "日本語", "🙂", "e\u0301", "1 + 1 = 2", "a", "<b>", "{{ x }}", "\t", "\\n", "[", "</", "Привет"),
]


def conversations(count: int = 30, blanks: bool = True, seed: int = 0) -> list[list[Message]]:
    """1 to 4 turns each way, with or without a system turn; some contents begin or end with blanks."""
    draw = random.Random(seed)

    def content() -> str:
        text = " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, 9))).strip() or "x"
        if blanks and draw.random() < 0.5:
            text = draw.choice(["\n", "", " ", "\n\n"]) + text + draw.choice(["\n", "", " ", "\n\n"])
        return text

    made = []
    for i in range(count):
        turns = [Message("system", content())] if i % 2 else []
        for _ in range(draw.randint(1, 4)):
            turns += [Message("user", content()), Message("assistant", content())]
        made.append(turns)
    return made


def example(messages: list[Message], line: int = 1) -> Example:
    return Example("conversation", Where("chat.jsonl", line), tuple(messages))


def document(text: str, line: int = 1) -> Example:
    return Example("document", Where("text.jsonl", line), text=text)
