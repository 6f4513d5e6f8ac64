"""What a comparison of methods rests on: chosen rates, runs that are kept, intervals; and its table as a small file."""
