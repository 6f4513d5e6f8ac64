"""Aggregation of LoRA updates: tensors in, tensors out; no files, no database, no logging.

Run it with `torch.set_num_threads(1)`: then the same updates in the same order give the same bytes, in any
thread of any process on the same kind of machine.
"""
