"""The embedded demo: conversations, a tiny base model and an adapter trained on them."""
