"""Writes int8.json: a matrix W, and Q and max |W| of each row by the 8-bit quantization of bitsandbytes.

pip install torch bitsandbytes && python tests/golden/make_int8.py
"""

import json
from pathlib import Path

import bitsandbytes
import torch
from bitsandbytes.functional import int8_vectorwise_quant

torch.manual_seed(0)
W = torch.randn(11, 24)
W[3] = 0  # a row of zeros
W[5, 7] = 9.0  # an outlier
W[7] = torch.arange(24) - 11.5  # a row of exact halves
W[7, 0] = 127.0
Q, absmax, _ = int8_vectorwise_quant(W)
golden = {"version": bitsandbytes.__version__, "W": W.tolist(), "Q": Q.tolist(), "absmax": absmax.tolist()}
(Path(__file__).parent / "int8.json").write_text(json.dumps(golden) + "\n")
