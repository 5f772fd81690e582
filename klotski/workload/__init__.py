"""Prompts in, results out."""

from klotski.workload.batching import cut_batches
from klotski.workload.prompts import Encoder, load_requests
from klotski.workload.results import result_line

__all__ = ["Encoder", "cut_batches", "load_requests", "result_line"]
