"""Quantized checkpoints described as what their weights decode to; what has no exact decoding is refused by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from raymerge.checkpoint.bitsandbytes import decode_bitsandbytes
from raymerge.checkpoint.decoding import Decoding
from raymerge.checkpoint.float8 import decode_block_float8, decode_compressed_tensors
from raymerge.checkpoint.mxfp4 import decode_mxfp4
from raymerge.checkpoint.nouns import Checkpoint
from raymerge.checkpoint.quantization import quantization_problem, quantization_settings, without_quantization
from raymerge.errors import CheckpointError

_METHODS: Mapping[str, Callable[[Decoding], None]] = {
    "fp8": decode_block_float8,
    "compressed-tensors": decode_compressed_tensors,
    "bitsandbytes": decode_bitsandbytes,
    "mxfp4": decode_mxfp4,
}


def decoded(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint with every quantized weight as a tensor of values, decoded while it is read.

    Raises CheckpointError where weights are quantized in a way that has no exact decoding here, or their parts do not
    fit together.
    """
    settings = quantization_settings(checkpoint.config)
    decode = _METHODS.get(str(settings.get("quant_method"))) if settings is not None else None
    if settings is None or decode is None:
        problem = quantization_problem(checkpoint)
        if problem is not None:
            raise CheckpointError(problem)
        return checkpoint
    decoding = Decoding.of(checkpoint, settings)
    decode(decoding)
    if decoding.problems:
        raise CheckpointError(*decoding.problems)
    made = decoding.result(without_quantization(checkpoint.config))
    problem = quantization_problem(made, checkpoint.config)
    if problem is not None:
        raise CheckpointError(problem)
    return made
