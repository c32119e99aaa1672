"""Saving, loading and pushing models, on disk and on the Hugging Face Hub."""
