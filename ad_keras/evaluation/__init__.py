"""Evaluation of encoders and dreams: pure functions of NumPy arrays and a seed."""
