"""The least that answers binary V2 with Starlette: `python -m tests.support.bare_handler PORT WEIGHTS`.

What a server costs is what it adds to this: no limits, no errors, no versions, no other encodings, one model. It
answers JSON too, read and written as plainly as can be.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from torchvision.models import shufflenet_v2_x0_5


def main() -> None:
    """Serve until killed."""
    torch.set_num_threads(1)
    module = shufflenet_v2_x0_5(num_classes=10).eval()
    module.load_state_dict(load_file(sys.argv[2]))

    def answer(body: bytes, length: int) -> tuple[bytes, dict[str, str]]:
        entry = json.loads(body[:length])["inputs"][0]
        if "data" in entry:
            values = torch.tensor(entry["data"], dtype=torch.float32)
        else:
            values = torch.from_numpy(np.frombuffer(bytearray(body[length:]), np.float32))
        with torch.no_grad():
            output = module(values.reshape(entry["shape"]))
        told = {"name": "output", "datatype": "FP32", "shape": list(output.shape)}
        if "data" in entry:
            told["data"] = output.flatten().tolist()
            return json.dumps({"model_name": "bench", "outputs": [told]}).encode(), {}
        told["parameters"] = {"binary_data_size": output.nbytes}
        text = json.dumps({"model_name": "bench", "outputs": [told]}).encode()
        return text + output.numpy().tobytes(), {"inference-header-content-length": str(len(text))}

    async def infer(request: Request) -> Response:
        body = await request.body()
        length = int(request.headers.get("inference-header-content-length", len(body)))
        data, headers = await run_in_threadpool(answer, body, length)
        return Response(data, headers=headers)

    async def ready(_: Request) -> Response:
        return Response()

    routes = [
        Route("/v2/models/bench/infer", infer, methods=["POST"]),
        Route("/v2/health/ready", ready),
    ]
    uvicorn.run(Starlette(routes=routes), port=int(sys.argv[1]), log_level="error")


if __name__ == "__main__":
    main()
