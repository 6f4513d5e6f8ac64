"""What an exported adapter asks of the programs that are to load it, in sentences for the card and the terminal."""

from collections.abc import Mapping
from typing import Any

from flexlora_shared.messages.runs import RunSpec
from flexlora_shared.run_checks import warnings_of_ranks


def adapter_notes(config: Mapping[str, Any], spec: RunSpec) -> tuple[str, ...]:
    """A sentence for each thing in a PEFT folder of this `adapter_config.json` that a serving program does not take."""
    found = []
    if spec.extra:
        names = ", ".join(sorted({tensor.name for tensor in spec.extra})[:4])
        more = " and more" if len(spec.extra) > 4 else ""
        found.append(
            f"{names}{more} were trained in full: PEFT loads them, vLLM refuses an adapter that has them, SGLang leaves them "
            "out, and GGUF adapters cannot hold them; --merge writes them into the model."
        )
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        found.append(
            "Ranks or scales differ between modules: PEFT reads that; vLLM gives all modules one scale, llama.cpp ignores the "
            "alphas of single modules, SGLang refuses it."
        )
    if config.get("use_rslora"):
        found.append("The scale is rsLoRA's: PEFT and vLLM read that, SGLang and llama.cpp scale wrongly.")
    if not isinstance(config["lora_alpha"], int):
        found.append("lora_alpha is no integer in the file: Ollama refuses that.")
    return (*found, *warnings_of_ranks({config["r"], *(config.get("rank_pattern") or {}).values()}))
