"""Measurements on real input and under load; `scripts/bench` runs them. They print what they measured and end with JSON."""

import logging

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of a kernel that it lacks, as PEFT imports it
