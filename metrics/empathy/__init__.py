"""Empathy: by keywords, and by the nearness of meanings."""
