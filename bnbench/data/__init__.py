"""Files, corpora and pairs: everything between a file on disk and an `Example`."""
