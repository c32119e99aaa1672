"""Models on disk and on the Hugging Face Hub: files, checkpoints, cards, pushing."""
