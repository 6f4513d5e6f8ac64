"""Norms of the participants' changes and the angles between them, from small Gram matrices."""
