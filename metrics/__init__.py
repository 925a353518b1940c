"""Metrics that are right for Bengali by construction. Importing this package imports no torch.

    >>> from bnbench.metrics import ROUGE, evaluate_pairs
    >>> print(ROUGE().score(["আমি ভালো আছি।"], ["আমি ভালো আছি ।"]))
    ROUGE 100.00 [100.00, 100.00] ROUGE|norm:bn1|tok:bn1|stem:no|n:1|bnbench:0.9

What is not in `__all__` may change.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bnbench.metrics.bertscore import BERTScore
    from bnbench.metrics.bleu import BLEU
    from bnbench.metrics.chrf import ChrF, ChrFPlusPlus
    from bnbench.metrics.combined import Combined, CombinedScore, combine, combined_result
    from bnbench.metrics.core import MeanMetric, Metric, Result, Texts, paired_test, statistics, table_of
    from bnbench.metrics.degeneration import Degeneration, Diversity
    from bnbench.metrics.empathy.keyword import KeywordEmpathy
    from bnbench.metrics.empathy.semantic import SemanticEmpathy
    from bnbench.metrics.evaluation import evaluate_pairs, evaluate_stream
    from bnbench.metrics.exceptions import BnbenchError, InputError, MissingExtraError, UsageError
    from bnbench.metrics.normalization import Normalizer, flags, normalize
    from bnbench.metrics.original import original_scores
    from bnbench.metrics.perplexity import Perplexity
    from bnbench.metrics.registry import Registry, default_metrics, get_metric, metric_names
    from bnbench.metrics.rouge import ROUGE
    from bnbench.metrics.significance import Interval, PairedResult, bootstrap, holm, paired_tests, rank_ranges
    from bnbench.metrics.tokenization import BengaliTokenizer, split_sentences, tokenize

__all__ = [
    "BLEU", "ROUGE", "BERTScore", "BengaliTokenizer", "BnbenchError", "ChrF", "ChrFPlusPlus", "Combined",
    "CombinedScore", "Degeneration", "Diversity", "InputError", "Interval", "KeywordEmpathy", "MeanMetric", "Metric",
    "MissingExtraError", "Normalizer", "PairedResult", "Perplexity", "Registry", "Result", "SemanticEmpathy", "Texts",
    "UsageError", "bootstrap", "combine", "combined_result", "default_metrics", "evaluate_pairs", "evaluate_stream",
    "flags", "get_metric", "holm", "metric_names", "normalize", "original_scores", "paired_test", "paired_tests",
    "rank_ranges", "split_sentences", "statistics", "table_of", "tokenize",
]  # fmt: skip

# Looked through for a name on its first use, light ones first: importing one metric does not pay for the others.
_MODULES = [
    "exceptions", "normalization", "tokenization", "significance", "core", "registry", "evaluation", "rouge", "bleu",
    "chrf", "degeneration", "perplexity", "original", "combined", "bertscore", "empathy.keyword", "empathy.semantic",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        found = vars(importlib.import_module(f"bnbench.metrics.{module}"))
        if name in found:
            globals()[name] = found[name]
            return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
