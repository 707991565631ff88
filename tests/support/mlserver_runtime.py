"""MLServer's side of the bench: a runtime of the same model; MLServer imports it in its own environment."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse
from safetensors.torch import load_file
from torchvision.models import shufflenet_v2_x0_5


class Runtime(MLModel):  # type: ignore[misc]
    """The model of `SYNCD_BENCH_WEIGHTS`."""

    async def load(self) -> bool:
        torch.set_num_threads(1)
        self._module = shufflenet_v2_x0_5(num_classes=10).eval()
        self._module.load_state_dict(load_file(os.environ["SYNCD_BENCH_WEIGHTS"]))
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        values: Any = NumpyCodec.decode_input(payload.inputs[0])
        with torch.no_grad():
            output = self._module(torch.from_numpy(np.asarray(values, dtype=np.float32))).numpy()
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output(name="output", payload=output)]
        )
