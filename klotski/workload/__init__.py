"""Prompts in, results out."""

from klotski.workload.batching import cut_batches, in_batch_order
from klotski.workload.prompts import Encoder, Limits, RoughTokenizer, load_requests
from klotski.workload.results import result_line

__all__ = ["Encoder", "Limits", "RoughTokenizer", "cut_batches", "in_batch_order", "load_requests", "result_line"]
