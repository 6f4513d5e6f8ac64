"""Reads the participant's files and turns their rows into examples."""
