"""A training loop that needs no model and makes the same update of a slice every time; one participant's waits at a gate."""

import hashlib

from safetensors.torch import load_file, save_file
from torch import Generator, randn

from flexlora_client.training.contract import ADAPTER_FILE, Job, Outcome
from tests.system.endurance.gates import wait_at_gate


class Paced:
    """Adds noise drawn from the participant's id and the round."""

    def train(self, job: Job) -> Outcome:
        """An update like a trained one."""
        seed = int.from_bytes(hashlib.sha256(f"{job.participant} {job.round}".encode()).digest()[:6])
        generator = Generator().manual_seed(seed)
        slice_ = sorted(load_file(job.adapter / ADAPTER_FILE).items())
        trained = {key: tensor + 0.01 * randn(*tensor.shape, generator=generator) for key, tensor in slice_}
        wait_at_gate(job.round)
        save_file(trained, job.output / ADAPTER_FILE)
        job.progress(1, 1, 0.5)
        return Outcome(job.output / ADAPTER_FILE, len(job.train), {"train_loss": 0.5})
