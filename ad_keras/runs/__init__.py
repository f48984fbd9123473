"""One training run: its flags, folder, checkpoints, callbacks, pictures and export."""
