"""Adapter files: what an upload must hold, the global update as stored, the slices cut from it, PEFT's configuration."""
