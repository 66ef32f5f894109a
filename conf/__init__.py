"""Hydra config groups, as package data. A module only because Hydra resolves ``pkg://forethought.conf`` through a package."""
