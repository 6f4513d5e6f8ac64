"""Turns examples into token ids and targets, and those into batches."""
