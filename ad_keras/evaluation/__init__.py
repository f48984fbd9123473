"""Evaluation of encoders and dreams: the measures, applied to runs and exports."""
