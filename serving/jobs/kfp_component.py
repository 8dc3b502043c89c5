"""A step of Kubeflow Pipelines that has a file answered as one batch, and a pipeline of that step.

    python -m serving.jobs.kfp_component batch-inference.yaml

It is a container component: the image is the gateway's, with no kfp in it, and nothing is
installed when it runs. The run's id is the batch's name, so a step that is tried again goes on with
its batch.
"""

import sys
from typing import Final

from kfp import compiler, dsl, kubernetes

IMAGE: Final = "headrace:0.1.0"
SECRET: Final = "headrace-batch-key"  # its key `api-key` is the gateway's
_KEY_FOLDER: Final = "/etc/headrace/key"


@dsl.container_component
def batch_inference(
    requests: str, answers: str, endpoint: str, completion_window: str, run: str
) -> dsl.ContainerSpec:
    """`requests` and `answers` are URLs; lines that fail are beside the answers, and fail it."""
    return dsl.ContainerSpec(
        image=IMAGE,
        command=["headrace", "batch", "run"],
        args=[
            requests,
            "--output",
            answers,
            "--endpoint",
            endpoint,
            "--completion-window",
            completion_window,
            "--name",
            run,
            "--api-key-file",
            f"{_KEY_FOLDER}/api-key",
        ],
    )


@dsl.pipeline(name="headrace-batch-inference")
def batch_pipeline(
    requests: str,
    answers: str,
    endpoint: str = "http://headrace.models.svc:8000",
    completion_window: str = "24h",
) -> None:
    """A file of requests becomes a file of answers."""
    step = batch_inference(
        requests=requests,
        answers=answers,
        endpoint=endpoint,
        completion_window=completion_window,
        run=dsl.PIPELINE_JOB_ID_PLACEHOLDER,
    )
    step.set_caching_options(enable_caching=False)
    step.set_retry(num_retries=3, backoff_duration="30s", backoff_factor=2)
    step.set_cpu_request("100m").set_memory_request("512Mi").set_memory_limit("512Mi")
    kubernetes.use_secret_as_volume(step, secret_name=SECRET, mount_path=_KEY_FOLDER)


if __name__ == "__main__":
    compiler.Compiler().compile(batch_pipeline, sys.argv[1])
