"""An exported adapter computes the same in PEFT and in programs that read less of it, or something says that it will not."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexlora_client.errors import BadInput
from flexlora_client.export.forms import portable, with_gguf
from flexlora_client.export.limits import adapter_notes
from flexlora_client.training.models.slice_files import read_slice
from tests.client.export.conftest import CASES, Served, logits_of
from tests.support import readers
from tests.support.tiny_models import load_peft

SLOW = set(CASES) - {"rslora", "classification-head"}
EVERY_CASE = [pytest.param(name, id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in CASES]
each_case = pytest.mark.parametrize("served", EVERY_CASE, indirect=True)
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")


def assert_same(served: Served, model: object) -> None:
    torch.testing.assert_close(logits_of(model), served.logits, rtol=1e-5, atol=1e-5)  # type: ignore[arg-type]


@each_case
def test_the_portable_form_loads_everywhere(served: Served) -> None:
    changed = (logits_of(served.model()) - served.logits).abs().max()
    assert changed > 0.01, "what the adapter does shows in the logits"
    form = portable(served.folder, served.spec)
    config = json.loads((served.folder / "adapter_config.json").read_bytes())
    assert (config["lora_alpha"], type(config["lora_alpha"])) == (config["r"], int)
    assert (config["rank_pattern"], config["alpha_pattern"], config["use_rslora"]) == ({}, {}, False)
    assert_same(served, load_peft(served.base, served.spec, served.folder))
    read_slice(served.folder, served.spec)  # `generate` and `chat` do
    if served.spec.extra:
        assert "vLLM refuses" in form.notes[0]
        with pytest.raises(readers.Refused):
            readers.vllm(served.model(), served.folder)
        with pytest.raises(readers.Refused):
            readers.ollama(served.model(), served.folder)
        return
    assert form.notes == ()
    for read in (readers.vllm, readers.sglang):
        model = served.model()
        read(model, served.folder)
        assert_same(served, model)


@each_case
def test_the_gguf_form_loads_in_llama_cpp_and_so_in_ollama(served: Served) -> None:
    pytest.importorskip("gguf")
    if served.spec.extra or served.spec.modules[-1].name == "lm_head":
        with pytest.raises(BadInput, match="use --merge"):
            with_gguf(served.folder, served.spec, None)
        return
    with_gguf(served.folder, served.spec, None)
    model = served.model()
    readers.llama_cpp(model, served.folder / "adapter.gguf")
    assert_same(served, model)


@pytest.mark.slow
@pytest.mark.parametrize("served", ["fractional-alpha"], indirect=True)
def test_ollama_imports_a_folder_without_queries_and_keys(served: Served, tmp_path: Path) -> None:
    with pytest.raises(readers.Refused, match="lora_alpha"):
        readers.ollama(served.model(), served.folder)
    portable(served.folder, served.spec)
    reordered, model = served.model(), served.model()
    readers.ollama(reordered, served.folder)
    assert (logits_of(reordered) - served.logits).abs().max() > 1e-3, (
        "its import of q_proj and k_proj is not to be used"
    )
    spec = served.spec.model_copy(
        update={"modules": tuple(m for m in served.spec.modules if not m.name.endswith(("q_proj", "k_proj")))}
    )
    rest = _restricted(served.folder, tmp_path / "rest", {module.name for module in spec.modules})
    readers.ollama(model, rest)
    torch.testing.assert_close(logits_of(model), logits_of(load_peft(served.base, spec, rest)), rtol=1e-5, atol=1e-5)


def _restricted(folder: Path, to: Path, modules: set[str]) -> Path:
    """The adapter of these modules alone."""
    shutil.copytree(folder, to)
    tensors = load_file(folder / "adapter_model.safetensors")
    kept = {key: t for key, t in tensors.items() if any(f".{name}.lora_" in f".{key}" for name in modules)}
    save_file(kept, to / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_bytes())
    (to / "adapter_config.json").write_text(json.dumps(config | {"target_modules": sorted(modules)}))
    return to


@pytest.mark.parametrize("served", ["rslora", pytest.param("patterns", marks=pytest.mark.slow)], indirect=True)
def test_what_others_make_of_the_exact_form_is_said(served: Served) -> None:
    config = json.loads((served.folder / "adapter_config.json").read_bytes())
    told = " ".join(adapter_notes(config, served.spec))
    model = served.model()
    readers.vllm(model, served.folder)
    assert (logits_of(model) - served.logits).abs().max() > 1e-3
    assert "vLLM gives all modules one scale" in told
    with pytest.raises(readers.Refused):
        readers.sglang(model, served.folder)
    assert "SGLang refuses it" in told
    assert ("rsLoRA" in told) == config["use_rslora"]
    assert "lora_alpha is no integer" in told
