"""The versions that the bytes of an aggregation may depend on, as a round's record tells them."""

from importlib.metadata import version

import torch

from flexlora_shared.plugins import FILTER_GROUP, STRATEGY_GROUP, plugin_versions


def software(device: str) -> dict[str, str]:
    """The versions of this process by name, those of packages with strategies and filters too; its device and instructions."""
    plugins = dict(plugin.rsplit(" ", 1) for plugin in plugin_versions(STRATEGY_GROUP, FILTER_GROUP))
    return {
        **plugins,
        **{name: version(name) for name in ("flexlora", "numpy", "safetensors")},
        "torch": torch.__version__,
        "device": device,
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
