"""Build the demo base model: a 3-million-parameter Bengali Llama and its tokenizer, from scratch, on the CPU.

    python scripts/make_demo_base.py --data FOLDER --out bnbench/demo/base

FOLDER holds the four data files named in ``SOURCES``, whose licences let a derived model ship. The run is
seeded; the same data, versions and thread count give the same weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex
import tokenizers
import torch
import transformers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SOURCES = {
    "BanglaEmotion_train.txt": "MIT, shaoncsecu/BanglaEmotion",
    "bnlp_tatoeba.bn": "CC BY 2.0 FR, Tatoeba through banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_cricket_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_restaurant_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
}
BOS, END, EOT, PAD = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"
SPECIAL_TOKENS = [
    BOS, END, "<|start_header_id|>", "<|end_header_id|>", EOT, "<|eom_id|>", "<|python_tag|>", PAD,
    *(f"<|reserved_special_token_{i}|>" for i in range(8)),
]  # fmt: skip
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
SYSTEM_LINES = [
    "আপনি একজন সহানুভূতিশীল বাংলা কথোপকথন সহকারী। বিষয়: {topic}",
    "আপনি একজন বাংলা সহকারী। বিষয়: {topic}",
    "বাংলায় সংক্ষেপে উত্তর দিন।",
    "আপনি একজন বন্ধু। মন দিয়ে শুনুন এবং উত্তর দিন।",
    "পরের কথাটি বলুন।",
]
# A word is letters with all their marks and joiners; GPT-2's and Llama's patterns cut at the first vowel sign.
WORDS = (
    " ?[\\p{L}\\p{M}\u200c\u200d]+| ?\\p{N}{1,3}| ?[^\\s\\p{L}\\p{M}\\p{N}\u200c\u200d]+[\\r\\n]*"
    "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
)
VOCABULARY = 4096
CONTEXT = 1024  # tokens; the rows of a batch are CONTEXT, CONTEXT / 2 or CONTEXT / 4 long
ROWS_OF = (256, 256, 512, 1024)  # row lengths taken in turn, so that most steps are cheap and all positions are seen
HEAD = 1500  # code points of a held-out text that are scored
SHORT = 12  # words; shorter texts are paired with the next one for a chat, longer ones are halved
CHAT_SHARE = 0.25  # of the texts in an epoch are shown as a chat
JUNK = regex.compile(
    r"https?\s*:\s*//\S+|www\.\S+|\b(?:[\w-]+\.)+(?:com|gl|net|org|ly)\b\S*|\S+@\S+|\[\[\d+\]\]"
    r"|(?:See Translation|Continue reading|See more|Just now"
    r"|Like\s*·|Reply\s*·|Edited\s*·|[0-9]+ (?:hrs?|mins?|Replies)\b|RadioFaysal\.?)[.\s·]*",
    regex.IGNORECASE,
)
# Comments with these stems are left out: a demonstration need not learn the coarsest words of its source.
COARSE = regex.compile("মাগি|মাগী|খানকি|চুদ|চোদ|পাছা|হারামি|হারামজাদ|জারজ|কুত্তার|শুয়োরের বাচ্চা|বেশ্যা|জবাই|ধর্ষ")


@dataclass(frozen=True)
class Shape:
    """Width and depth of the model and the schedule of its training."""

    hidden: int = 192
    layers: int = 6
    heads: int = 6
    key_value_heads: int = 2
    intermediate: int = 512
    epochs: int = 12
    batch_tokens: int = 2048
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    dropout: float = 0.15


def clean(text: str) -> str:
    """NFC, one danda, no links or remains of the web page, no long runs of a sign; '' where little Bengali is left."""
    text = unicodedata.normalize("NFC", text).replace("\ufeff", "").replace("\ufffd", "")
    text = JUNK.sub(" ", text).replace("৷", "।").replace("|", "।")
    text = regex.sub(r"([^\p{L}\p{M}\p{N}])\1{3,}", r"\1\1\1", text)
    text = regex.sub(r"\s+", " ", text).strip(" ·,")
    letters = len(regex.findall(r"[\p{L}\p{M}]", text))
    bengali = len(regex.findall(r"[\u0980-\u09ff]", text))
    return text if bengali >= 3 and bengali >= 0.7 * letters else ""


def read_texts(data: Path) -> list[str]:
    """The cleaned texts of all sources in order, without labels, repeated openings and coarse comments."""
    texts, seen = [], set()
    for name in SOURCES:
        lines = (data / name).read_text(encoding="utf-8").splitlines()
        if name.endswith(".tsv"):
            lines = [line.split("\t")[1] for line in lines[1:]]
        elif name.startswith("BanglaEmotion"):
            lines = [line.partition(" ")[2] for line in lines]
        for text in map(clean, lines):
            key = "".join(regex.findall(r"[\p{L}\p{M}]", text))[:60]
            if text and key not in seen and not COARSE.search(text):
                seen.add(key)
                texts.append(text)
    return texts


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of ``VOCABULARY`` entries, lossless on any UTF-8 text, with Llama-3.1's special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    roles = ["system", "user", "assistant", "\n\n"] * 200
    tokenizer.train_from_iterator([*texts, *roles], trainer)
    bos_first = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS}:1 $B:1", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), bos_first])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOT, pad_token=PAD, padding_side="left",
        chat_template=CHAT_TEMPLATE, model_max_length=CONTEXT, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def turns(text: str, following: str, rng: random.Random) -> list[dict[str, str]]:
    """A made-up chat: a long text halved, or a short one and the one after it, mostly under a system line."""
    words = text.split(" ")
    user, assistant = text, following
    if len(words) > SHORT:
        user, assistant = " ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :])
    system = rng.choice(SYSTEM_LINES).format(topic=max(words, key=len).strip("।,.!?'\"()"))
    messages = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return [{"role": "system", "content": system}, *messages] if rng.random() < 0.85 else messages


class Stream:
    """Token rows of one epoch: every text once, in a new order, as a document or as a chat."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
        self.rng = random.Random(seed)
        end, self.turn_end = tokenizer.convert_tokens_to_ids([END, EOT])
        shorts = [text for text in texts if len(text.split(" ")) <= SHORT]
        after = dict(zip(shorts, [*shorts[1:], shorts[0]], strict=True))
        chats = [
            tokenizer.apply_chat_template(turns(text, after.get(text, ""), self.rng), tokenize=False) for text in texts
        ]
        self.documents = [[*ids, end] for ids in tokenizer(texts, verbose=False)["input_ids"]]
        self.chats: list[list[int]] = tokenizer(chats, add_special_tokens=False, verbose=False)["input_ids"]

    def targets(self, chat: list[int]) -> list[int]:
        """The ids with -100 up to the end of the first turn, or the model would learn to recite the system lines."""
        begin = chat.index(self.turn_end)
        return [-100] * begin + chat[begin:]

    def epoch(self, batch_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Ids and labels (rows, length), rows * length = batch_tokens; what is left over at the end is dropped."""
        order = list(range(len(self.documents)))
        self.rng.shuffle(order)
        ids: list[int] = []
        labels: list[int] = []
        for i in order:
            chat = self.rng.random() < CHAT_SHARE
            ids += self.chats[i] if chat else self.documents[i]
            labels += self.targets(self.chats[i]) if chat else self.documents[i]
        for step, start in enumerate(range(0, len(ids) - batch_tokens + 1, batch_tokens)):
            length = ROWS_OF[step % len(ROWS_OF)]
            part = slice(start, start + batch_tokens)
            yield torch.tensor(ids[part]).view(-1, length), torch.tensor(labels[part]).view(-1, length)


def make_model(tokenizer: PreTrainedTokenizerFast, shape: Shape) -> LlamaForCausalLM:
    """A LlamaForCausalLM with random weights, tied embeddings and grouped-query heads."""
    ids = tokenizer.convert_tokens_to_ids
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=shape.hidden, intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads,
        max_position_embeddings=CONTEXT, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        tie_word_embeddings=True, bos_token_id=ids(BOS), eos_token_id=[ids(END), ids(EOT)], pad_token_id=ids(PAD),
    )  # fmt: skip
    return LlamaForCausalLM(config)


def add_dropout(model: LlamaForCausalLM, rate: float) -> list[Any]:
    """Drop outputs of embeddings, attention and MLP in training, which Llama itself does not; returns the hooks."""

    def hook(module: torch.nn.Module, _: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (F.dropout(output[0], rate, module.training), *output[1:])
        return F.dropout(output, rate, module.training)

    places: list[Any] = [model.model.embed_tokens]
    for layer in model.model.layers:
        places += [layer.self_attn, layer.mlp]
    return [place.register_forward_hook(hook) for place in places]


def make_optimizer(model: LlamaForCausalLM, shape: Shape) -> torch.optim.AdamW:
    """AdamW that decays matrices and leaves the norms alone."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": matrices, "weight_decay": shape.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=shape.learning_rate, betas=(0.9, 0.95))


@torch.inference_mode()
def bits_per_character(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> float:
    """Mean bits per code point of the texts' first ``HEAD`` code points after BOS; end tokens are not counted."""
    model.eval()
    nats, ordered = 0.0, sorted((text[:HEAD] for text in texts), key=len)
    for start in range(0, len(ordered), 16):
        batch = tokenizer(ordered[start : start + 16], return_tensors="pt", padding=True, padding_side="right")
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["input_ids"][:, 1:].masked_fill(batch["attention_mask"][:, 1:] == 0, -100)
        nats += F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum").item()
    return nats / math.log(2) / sum(map(len, ordered))


def train(model: LlamaForCausalLM, stream: Stream, shape: Shape, held_out: Any) -> list[dict[str, float]]:
    """Train for ``shape.epochs``, leave the best epoch's weights in the model, return one record an epoch."""
    optimizer = make_optimizer(model, shape)
    tokens = CHAT_SHARE * sum(map(len, stream.chats)) + (1 - CHAT_SHARE) * sum(map(len, stream.documents))
    total = int(shape.epochs * tokens / shape.batch_tokens)
    step, best, kept, history = 0, math.inf, model.state_dict(), []
    for epoch in range(1, shape.epochs + 1):
        model.train()
        losses = []
        for batch, labels in stream.epoch(shape.batch_tokens):
            cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, step / total)))
            rate = shape.learning_rate * min((step + 1) / 100, 0.03 + 0.97 * cosine)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = model(input_ids=batch, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            losses.append(loss.item())
            step += 1
        bits = bits_per_character(model, *held_out)
        history.append({"epoch": epoch, "steps": step, "loss": sum(losses) / len(losses), "held_out_bits": bits})
        print(json.dumps(history[-1]), file=sys.stderr, flush=True)
        if bits < best:
            best, kept = bits, {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(kept)
    return history


def set_key(path: Path, key: str, value: str) -> None:
    """Replace one value of a JSON file."""
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(settings | {key: value}, indent=2) + "\n", encoding="utf-8")


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write float16 weights that load as float32, the tokenizer and the generation defaults."""
    config = model.generation_config
    config.do_sample, config.temperature, config.top_p, config.max_length = True, 0.7, 0.9, None
    model.half().save_pretrained(out)
    (out / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(out)
    set_key(out / "config.json", "dtype", "float32")
    set_key(out / "tokenizer_config.json", "tokenizer_class", "PreTrainedTokenizerFast")  # known to transformers 4 too


def record(arguments: argparse.Namespace, shape: Shape, texts: list[str], held_out: list[str]) -> dict[str, Any]:
    """What training.json says before the training: data with sha256, seed, shape, versions."""
    digest = {name: hashlib.sha256((arguments.data / name).read_bytes()).hexdigest() for name in SOURCES}
    return {
        "command": "python scripts/make_demo_base.py --data FOLDER --out bnbench/demo/base"
        + (f" --epochs {arguments.epochs}" if arguments.epochs != Shape.epochs else ""),
        "seed": arguments.seed,
        "threads": arguments.threads,
        "data": [{"file": name, "licence": SOURCES[name], "sha256": digest[name]} for name in SOURCES],
        "texts": {"trained_on": len(texts), "characters": sum(map(len, texts)), "held_out": len(held_out)},
        "held_out_characters": sum(len(text[:HEAD]) for text in held_out),
        "shape": shape.__dict__,
        "versions": {m.__name__: m.__version__ for m in (torch, transformers, tokenizers)},
    }


def arguments_of(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with " + ", ".join(SOURCES))
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--epochs", type=int, default=Shape.epochs)
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Read, train, save, and print the record of the run."""
    arguments, start = arguments_of(argv), time.perf_counter()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    shape = Shape(epochs=arguments.epochs)
    texts = read_texts(arguments.data)
    chosen = set(random.Random(arguments.seed).sample(range(len(texts)), len(texts) // 25))
    held_out = [text for i, text in enumerate(texts) if i in chosen]
    texts = [text for i, text in enumerate(texts) if i not in chosen]
    tokenizer = make_tokenizer(texts)
    model = make_model(tokenizer, shape)
    result = record(arguments, shape, texts, held_out) | {"parameters": model.num_parameters()}
    hooks = add_dropout(model, shape.dropout)
    history = train(model, Stream(texts, tokenizer, arguments.seed), shape, (tokenizer, held_out))
    for hook in hooks:
        hook.remove()
    save(model, tokenizer, arguments.out)
    bits = bits_per_character(AutoModelForCausalLM.from_pretrained(arguments.out), tokenizer, held_out)
    result |= {"steps": history[-1]["steps"], "kept_epoch": min(history, key=lambda h: h["held_out_bits"])["epoch"]}
    result |= {"held_out_bits_per_character": round(bits, 4), "wall_seconds": round(time.perf_counter() - start)}
    text = json.dumps(result | {"history": history}, indent=2, ensure_ascii=False)
    (arguments.out / "training.json").write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
