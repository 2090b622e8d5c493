"""Gather permissively licensed text, train a tokenizer on it, and write a model folder without weights.

    python examples/pretrain/gather.py TEXTS OUT

TEXTS is a folder with one folder for each source below (see README.md for licences).  OUT receives corpus.jsonl
(one document a row), chat.jsonl (the same sources' question/answer rows), and base/ (config.json, tokenizer.json,
chat_template.jinja ...), from which `burnish train` starts with random weights.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 4096
SPECIAL = ["<|end|>", "<|pad|>", "<|unknown|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
OPINIONS = (
    "Is this review negative or positive?",
    "Is the sentiment of the text positive or negative?",
    "Classify the text as negative or positive.",
    "Answer with positive or negative: what does the customer think?",
)
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "hidden_act": "silu",
    "max_position_embeddings": 512,
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "use_cache": True,
}


def rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(encoding="utf-8") as stream:
        for line in stream:
            yield json.loads(line)


def chapters(path: Path, size: int = 6000, limit: int = 0) -> Iterator[str]:
    """Running prose in documents of whole paragraphs, about `size` characters each."""
    held: list[str] = []
    taken = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        held.append(line)
        if sum(map(len, held)) >= size:
            taken += size
            yield "\n".join(held).strip()
            held = []
        if limit and taken > limit:
            return
    yield "\n".join(held).strip()


def documents(texts: Path) -> Iterator[str]:
    """Every document of the corpus."""
    books = texts / "text-books"
    yield from chapters(books / "sherlock-holmes.txt")
    yield from chapters(books / "love-among-the-chickens.txt")
    yield from chapters(books / "pepys-diary-1660-1663.txt", limit=1_200_000)
    for name in ("story-children", "summarise-stories", "paraphrase-stories"):
        for row in rows(texts / name / "data.jsonl"):
            yield row["response"].replace("\r\n", "\n")
            if name != "story-children":
                yield row["prompt"].partition(":\n")[2].replace("\r\n", "\n")
    for row in rows(texts / "text-c4" / "data.jsonl"):
        yield row["text"]
    for row in rows(texts / "drift-speeches-by-year" / "data.jsonl"):
        yield row["text"]
    sentences: dict[str, list[str]] = {}
    for row in rows(texts / "reviews-products-aspects" / "data.jsonl"):
        sentences.setdefault(row["product"], []).append(row["text"])
    for told in sentences.values():
        for start in range(0, len(told), 12):
            yield " ".join(told[start : start + 12])


def chats(texts: Path) -> Iterator[dict[str, object]]:
    """Every question and answer."""
    for name in ("story-children", "summarise-stories", "paraphrase-stories"):
        for row in rows(texts / name / "data.jsonl"):
            yield chat(row["prompt"], row["response"])
    for row in json.loads((texts / "instruct-rasbt" / "instruction-data.json").read_text(encoding="utf-8")):
        yield chat(f"{row['instruction']}\n{row['input']}".strip(), row["output"])
    for task in rows(texts / "instruct-self-instruct" / "seed_tasks.jsonl"):
        for item in task["instances"]:  # type: ignore[union-attr]
            yield chat(f"{task['instruction']}\n{item['input']}".strip(), item["output"])  # type: ignore[index]
    for number, row in enumerate(rows(texts / "reviews-products-aspects" / "data.jsonl")):
        if row["label"] in ("positive", "negative"):
            yield chat(f"{OPINIONS[number % len(OPINIONS)]}\n\n{row['text']}", row["label"])


def chat(prompt: str, answer: str) -> dict[str, object]:
    clean = [text.replace("\r\n", "\n").strip() for text in (prompt, answer)]
    return {"messages": [{"role": "user", "content": clean[0]}, {"role": "assistant", "content": clean[1]}]}


def tokenizer(corpus: list[str]) -> Tokenizer:
    """Byte-level BPE: no text is unknown; digits one by one."""
    made = Tokenizer(models.BPE(unk_token=None))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus, trainer)
    return made


def main(texts: Path, out: Path) -> None:
    corpus = [text for text in documents(texts) if len(text) > 40]
    base = out / "base"
    base.mkdir(parents=True, exist_ok=True)
    with (out / "corpus.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in corpus)
    with (out / "chat.jsonl").open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in chats(texts))
    made = tokenizer(corpus)
    made.save(str(base / "tokenizer.json"))
    told = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|end|>",
        "pad_token": "<|pad|>",
        "unk_token": "<|unknown|>",
        "model_max_length": 512,
        "clean_up_tokenization_spaces": False,
    }
    (base / "tokenizer_config.json").write_text(json.dumps(told, indent=1) + "\n")
    (base / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [0], "pad_token_id": 1}) + "\n")
    (base / "chat_template.jinja").write_text(CHAT)
    characters = sum(map(len, corpus))
    tokens = sum(len(made.encode(text).ids) for text in corpus)
    print(f"{len(corpus)} documents, {characters:,} characters, {tokens:,} tokens, {characters / tokens:.2f} a token")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
