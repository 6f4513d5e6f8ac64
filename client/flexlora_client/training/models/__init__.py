"""Loads the base model, puts slices into it, and tells what of it a run can train."""

import logging

# Before PEFT imports bitsandbytes: it reports a kernel that it lacks, and casts that are meant (float32 to float16 before an
# 8-bit product), once a layer.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
