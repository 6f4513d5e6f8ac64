"""The coordinator and the agents of the product in virtual time: no second implementation of anything."""
