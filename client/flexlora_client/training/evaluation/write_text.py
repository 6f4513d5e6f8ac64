"""Text that a model with its adapter writes for people: token by token, greedily or sampled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers import TextStreamer

from flexlora_client.errors import DataError
from flexlora_client.training.data.examples import Chat, Prompted, Turn
from flexlora_client.training.encoding.encoder import Encoder
from flexlora_client.training.evaluation.greedy_answers import greedy, is_encoder_decoder
from flexlora_client.training.models.load_model import NO_LIMIT_TOKENS, LoadedModel
from flexlora_shared.messages.runs import RunSpec


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_tokens: int = 256
    temperature: float = 0.0  # 0: the likeliest token every time
    top_p: float = 1.0  # sampled from the likeliest tokens that together have this probability
    seed: int = 0


@dataclass(frozen=True)
class Writer:
    """A loaded model, ready to write."""

    loaded: LoadedModel
    spec: RunSpec  # whose prompt format is used
    sampling: Sampling

    def complete(self, prompt: str, on_text: Callable[[str], None]) -> str:
        """The continuation of a prompt in the run's prompt format; `on_text` gets it piece by piece.

        Raises: DataError, where the prompt is too long for the model.
        """
        ids = self._encoder.question(Prompted(prompt, "")).ids
        if len(ids) > self._room:
            raise DataError(f"the prompt has {len(ids)} tokens, the model takes {self._room}; shorten it.")
        return self._write(ids, on_text)

    def reply(self, turns: Sequence[Turn], on_text: Callable[[str], None]) -> tuple[str, int]:
        """The assistant's next turn after a conversation that ends with the user's; and how many early turns were left out.

        What does not fit loses its first exchanges, never a leading system turn. Raises: DataError, where nothing fits.
        """
        system = list(turns[:1]) if turns[0].role == "system" else []
        rest = list(turns[len(system) :])
        for left_out in range(0, len(rest), 2):
            ids = self._encoder.question(Chat((*system, *rest[left_out:], Turn("assistant", "")))).ids
            if len(ids) <= self._room:
                return self._write(ids, on_text), left_out
        raise DataError(f"the message is too long: the model takes {self._room} tokens; shorten it.")

    @property
    def _encoder(self) -> Encoder:
        # with no bound of its own: what does not fit is refused here, or left out with a word
        return Encoder.of(self.spec, self.loaded.preprocessor, NO_LIMIT_TOKENS)

    @property
    def _room(self) -> int:
        """Most tokens of a prompt: a decoder keeps a quarter of its positions for what is written, or what is asked for."""
        positions = self.loaded.positions
        if is_encoder_decoder(self.loaded):
            return positions
        return positions - max(1, min(self.sampling.max_tokens, positions // 4))

    def _write(self, ids: Sequence[int], on_text: Callable[[str], None]) -> str:
        chosen: dict[str, object] = {}
        if self.sampling.temperature > 0:
            chosen = {
                "do_sample": True,
                "temperature": self.sampling.temperature,
                "top_p": self.sampling.top_p,
                "top_k": 0,
            }
        apart, inputs = is_encoder_decoder(self.loaded), torch.tensor([list(ids)], device=self.loaded.device)
        new = self.sampling.max_tokens if apart else min(self.sampling.max_tokens, self.loaded.positions - len(ids))
        devices = [self.loaded.device] if self.loaded.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad(), self.loaded.precision():
            torch.manual_seed(self.sampling.seed)
            made = self.loaded.model.generate(  # type: ignore[no-untyped-call]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=greedy(self.loaded, new, **chosen),
                streamer=_Streamer(self.loaded, on_text),
            )
        return str(self.loaded.tokenizer.decode(made[0, 0 if apart else len(ids) :], skip_special_tokens=True))


class _Streamer(TextStreamer):
    """Hands whole words on as they are written."""

    def __init__(self, loaded: LoadedModel, on_text: Callable[[str], None]) -> None:
        super().__init__(loaded.tokenizer, skip_prompt=not is_encoder_decoder(loaded), skip_special_tokens=True)
        self._on_text = on_text

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Called by TextStreamer."""
        if text:
            self._on_text(text)
