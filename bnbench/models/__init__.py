"""What answers a prompt: candidates, the backends that run them, and how each candidate is asked."""

from bnbench.models.backend import Backend, BackendOptions, Reply, get_backend
from bnbench.models.candidates import Candidate, parse_candidates
from bnbench.models.decoding import Decoding
from bnbench.models.prompts import Prompt, Prompter

__all__ = [
    "Backend", "BackendOptions", "Candidate", "Decoding", "Prompt", "Prompter", "Reply", "get_backend",
    "parse_candidates",
]  # fmt: skip
