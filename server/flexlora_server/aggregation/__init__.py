"""Aggregation of LoRA updates: tensors in, tensors out; no files, no database, no logging.

Run it with `torch.set_num_threads(1)`: then the same updates in the same order give the same bytes, in any
thread of any process on the same kind of machine.
"""

from flexlora_server.aggregation.fedavg import FedAvg
from flexlora_server.aggregation.ffa import FrozenA
from flexlora_server.aggregation.flexlora import FlexLora
from flexlora_server.aggregation.flora import Flora
from flexlora_server.aggregation.hetlora import HetLora
from flexlora_server.aggregation.residual import ResidualFlexLora
from flexlora_server.aggregation.strategy import register

register(FlexLora())
register(ResidualFlexLora())
register(FedAvg())
register(FrozenA())
register(HetLora())
register(Flora())
