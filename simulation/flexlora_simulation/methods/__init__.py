"""The methods that are compared: each turns an experiment into the experiments that run it."""
