"""The ways to the leading singular triplets of a stack, each one file; `decompose` chooses."""
