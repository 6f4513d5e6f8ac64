"""Measures memory and step times on the real model, and chooses the largest rank that fits both memory and deadline."""
