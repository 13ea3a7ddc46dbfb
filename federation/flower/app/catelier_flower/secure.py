"""Secure aggregation by Flower's SecAgg+: the server sees the mean of contributions, and no single one.

Clients add masks that cancel out in the sum. That hides contributions from a server that follows the protocol. It does
not from one that makes up clients, since nobody vouches for the keys of masks that the server relays.

The mean has uniform weights: every client counts once, so that nothing is told of it and nothing is lost to rounding.
"""

import json

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS
from flwr.common.secure_aggregation.secaggplus_constants import Key as ProtocolKey
from flwr.common.secure_aggregation.secaggplus_constants import Stage
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as WorkflowKey

from catelier_flower import wire

# The name under which the mean is given to the program.
MEAN = "mean"
# Two clients would know each other's contribution from the mean.
LEAST_CLIENTS = 3
# Values of a contribution lie within; Flower would cut larger ones without a word.
LARGEST = 8.0
# Part of the clients that can undo masks together, more than half.
THRESHOLD = 0.67
# What of a contribution is told in the clear: names, shapes, alphas.
ABOUT = "about"


def train(message: Message, context: Context, answer) -> Message:
    """A client's part in each stage of the protocol; `answer` turns a round into a contribution."""
    configs = message.content.get(RECORD_KEY_CONFIGS)
    if not isinstance(configs, ConfigRecord):
        raise wire.Refused("this site takes part only under secure aggregation")
    _refuse_tricks(configs)
    rounds = RecordDict({key: record for key, record in message.content.items() if key != RECORD_KEY_CONFIGS})
    if rounds and configs.get(ProtocolKey.STAGE) != Stage.COLLECT_MASKED_VECTORS:
        raise wire.Refused("this stage of secure aggregation has no place for other records")

    def fit(message: Message, _context: Context) -> Message:
        return Message(compat.fitres_to_recorddict(_result(answer(rounds)), keep_input=True), reply_to=message)

    return secaggplus_mod(message, context, fit)


def _refuse_tricks(configs: ConfigRecord) -> None:
    """Refuses settings with which a server could undo both kinds of masks of one client."""
    stage = configs.get(ProtocolKey.STAGE)
    if stage == Stage.SETUP:
        shares, threshold = (configs.get(key) for key in (ProtocolKey.SHARE_NUMBER, ProtocolKey.THRESHOLD))
        if not (type(shares) is int and type(threshold) is int and shares >= LEAST_CLIENTS and 2 * threshold > shares):
            raise wire.Refused("masks could be undone by less than half of the clients")
        if configs.get(ProtocolKey.CLIPPING_RANGE) != LARGEST:
            raise wire.Refused(f"values are cut at another limit than {LARGEST}")
    if stage == Stage.UNMASK:
        lists = (configs.get(key) for key in (ProtocolKey.ACTIVE_NODE_ID_LIST, ProtocolKey.DEAD_NODE_ID_LIST))
        active, dead = (nodes if isinstance(nodes, list) else [None, None] for nodes in lists)
        if len(set(active) | set(dead)) < len(active) + len(dead):
            raise wire.Refused("a client cannot both have sent and have dropped out")


def _result(content: RecordDict) -> FitRes:
    """A contribution as the protocol wants it: unnamed arrays."""
    entries, tensors = wire.read(wire.unpack_contribution(content), wire.CONTRIBUTION)
    about = {"tensors": {}, "alphas": {}, "entries": {key: entries.get(key, "") for key in ("base", "round")}}
    arrays = []
    for name, (element, shape, data) in sorted(tensors.items()):
        if element == "F64":
            about["alphas"][name] = data.hex()
            continue
        if element != "F32":
            raise ValueError(f"`{name}` is {element}, and secure aggregation is for F32")
        values = np.frombuffer(data, "<f4").reshape(shape)
        if not np.all(np.abs(values) <= LARGEST):
            raise ValueError(f"`{name}` has values above {LARGEST}, the limit of secure aggregation")
        about["tensors"][name] = shape
        arrays.append(values)
    told = {ABOUT: json.dumps(about, sort_keys=True)}
    return FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), 1, told)


class Workflow(SecAggPlusWorkflow):
    """The protocol with messages of a round in it."""

    def __init__(self, round_content: RecordDict, timeout: float) -> None:
        super().__init__(1.0, THRESHOLD, max_weight=1.0, clipping_range=LARGEST, timeout=timeout)
        self.round_content = round_content

    def setup_stage(self, grid, context, state) -> bool:
        is_done = super().setup_stage(grid, context, state)
        state.nid_to_fitins = {node: RecordDict(dict(self.round_content)) for node in state.nid_to_fitins}
        return is_done


class _Node:
    def __init__(self, node_id: int) -> None:
        self.node_id = node_id


class _Selection:
    """The nodes of a round, in the place of Flower's strategy and of its list of clients; it keeps the results."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes, self.results = nodes, []

    def configure_fit(self, _round, _parameters, _manager):
        return [(_Node(node), FitIns(Parameters([], ""), {})) for node in self.nodes]

    def num_available(self) -> int:
        return len(self.nodes)

    def aggregate_fit(self, _round, results, _failures):
        self.results = [result for _, result in results]
        return None, {}


def ask(grid, context: Context, nodes: list[int], number: int, round_content: RecordDict, timeout: float):
    """Plays the protocol, and returns the file of the mean and the number of clients in it; none if it was given up."""
    if len(nodes) < LEAST_CLIENTS:
        raise wire.Refused(f"secure aggregation needs {LEAST_CLIENTS} clients, and there are {len(nodes)}")
    selection = _Selection(nodes)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: number})
    context.state.array_records[MAIN_PARAMS_RECORD] = ArrayRecord()
    legacy = LegacyContext(context, strategy=selection, client_manager=selection)
    Workflow(round_content, timeout)(grid, legacy)
    if not selection.results:
        return None, 0
    return _mean(selection.results, number), len(selection.results)


def _mean(results: list[FitRes], number: int) -> bytes:
    """The file of a contribution with the mean of all."""
    told = {result.metrics.get(ABOUT) for result in results}
    if len(told) != 1:
        raise wire.Refused("clients sent contributions of different shapes, alphas or bases")
    about = json.loads(told.pop())
    if about["entries"]["round"] != str(number):
        raise wire.Refused(f"the mean is for round {about['entries']['round']!r:.80}")
    tensors = {name: ("F64", [], bytes.fromhex(data)) for name, data in about["alphas"].items()}
    means = parameters_to_ndarrays(results[0].parameters)
    for (name, shape), mean in zip(sorted(about["tensors"].items()), means, strict=True):
        tensors[name] = ("F32", shape, mean.astype("<f4").tobytes())
    entries = {"base": about["entries"]["base"], "client": MEAN, "round": str(number), "weight": str(len(results))}
    return wire.new_contribution(tensors, entries)
