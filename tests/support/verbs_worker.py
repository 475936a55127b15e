"""Runs jobs in this process, one after the other, on one Ray of its own.

Reads [job, flags] as JSON lines; answers each with [exit code, what the job printed]. An interrupt
ends the job that runs. Ray's thread prints to stdout between jobs too (2.60 `worker.py`
`listen_error_messages`), so answers have a file of their own.
"""

import io
import json
import os
import signal
import sys
from contextlib import redirect_stdout

from effnet_ray.cli.evaluate import evaluate_job
from effnet_ray.cli.main import main
from effnet_ray.cli.predict import predict_job
from effnet_ray.cli.serve import serve_job
from effnet_ray.runtime import session

JOBS = {"evaluate": evaluate_job, "predict": predict_job, "serve": serve_job}


def answer() -> None:
    """Serve commands until stdin ends."""
    # Tests that run in the background have it ignored, and so would this process.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    session.start_local(2, log_to_driver=False, logging_level="ERROR")
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers, redirect_stdout(sys.stderr):
        for line in sys.stdin:
            job, flags = json.loads(line)
            printed = io.StringIO()
            with redirect_stdout(printed):
                code = main(JOBS[job], flags)
            print(json.dumps([code, printed.getvalue()]), file=answers, flush=True)


if __name__ == "__main__":
    answer()
