"""Prompts in, results out."""

from klotski.workload.batching import cut_batches, in_batch_order
from klotski.workload.prompts import Encoder, load_requests
from klotski.workload.results import result_line

__all__ = ["Encoder", "cut_batches", "in_batch_order", "load_requests", "result_line"]
