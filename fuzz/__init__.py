"""Hostile files by the thousand: what a model file from a stranger may do, tried and counted. `make fuzz` runs all of it."""
