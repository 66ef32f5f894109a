"""Forethought: better reasoning and faster decoding at inference time, without retraining the model.

Public names are listed once, in ``__init__.pyi``, and loaded on first use: importing this package imports neither torch nor hydra.
"""
