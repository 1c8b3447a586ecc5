"""Writes int8.json: a matrix, and what bitsandbytes makes of it in 8 bits, by row (Q, and the largest |W| of each row).

pip install torch bitsandbytes && python tests/golden/make_int8.py
"""

import json
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import int8_vectorwise_quant

torch.manual_seed(0)
W = torch.randn(11, 24)
W[3] = 0  # a row without anything
W[5, 7] = 9.0  # and one with an outlier
W[7] = torch.arange(24) - 11.5  # and one of halves
W[7, 0] = 127.0
Q, absmax, _ = int8_vectorwise_quant(W)
golden = {"version": bitsandbytes.__version__, "W": W.tolist(), "Q": Q.tolist(), "absmax": absmax.tolist()}
(Path(__file__).parent / "int8.json").write_text(json.dumps(golden) + "\n")
