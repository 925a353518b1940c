"""A backend: it says the message back, as one would with a server of one's own."""

from collections.abc import Sequence

from bnbench.models import Backend, Candidate, Decoding, Prompt, Reply


class Echo(Backend):
    """Answers every message with its own first words."""

    def generate(
        self, candidate: Candidate, prompts: Sequence[Prompt], items: Sequence[str], decoding: Decoding
    ) -> list[Reply]:
        """One reply a prompt."""
        words = [prompt.user.split()[: decoding.max_words] for prompt in prompts]
        return [Reply(f"আপনি বললেন, {' '.join(some)}") for some in words]
