"""Whoever should know of a failed run is told: in the daemon's log and, where an address is set, by a message to it.

The address, which may hold a secret, stands in the environment alone: settings are shown in the UI and kept with runs.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import dagster as dg

ADDRESS = "IVR_ALERT_URL"
POST_SECONDS = 10
# of a message, which chat programs cut off
LONGEST = 1_500


def failure_text(job: str, run_id: str, steps: list[tuple[str, str]], message: str) -> str:
    """What to say of a failed run: job, run, and each failed step with the last of its causes.

    Args:
        job: the job's name.
        run_id: the run's id.
        steps: (step, why it failed).
        message: why the run failed, where no step did.
    """
    told = "; ".join(f"{step}: {' '.join(why.split())}" for step, why in steps) or message
    return f"ivr_dagster: run {run_id[:8]} of {job} failed. {told}"[:LONGEST]


def post(url: str, text: str) -> str:
    """Post `{"text": text}`, as Slack, Mattermost and the like take it; what went wrong, empty where nothing did."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.username is not None:
            return f"{ADDRESS} is no http:// or https:// address without a user's name"
        request = urllib.request.Request(  # noqa: S310 (the scheme was looked at)
            url, data=json.dumps({"text": text}).encode(), headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=POST_SECONDS):  # noqa: S310
            return ""
    except urllib.error.URLError as error:
        return f"the alert could not be posted ({error.reason})"
    except (OSError, ValueError, http.client.HTTPException) as error:  # their texts may quote the address
        return f"the alert could not be posted ({type(error).__name__})"


@dg.run_failure_sensor(
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Tells of failed runs in the daemon's log and, where `IVR_ALERT_URL` is set, by a message to it.",
)
def tell_of_failed_runs(context: dg.RunFailureSensorContext) -> None:
    """Log a failed run, and post it."""
    steps = []
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        steps.append((event.step_key or "", error.message if error else event.message or ""))
    run = context.dagster_run
    text = failure_text(run.job_name, run.run_id, steps, context.failure_event.message or "")
    context.log.error(text)
    address = os.environ.get(ADDRESS, "")
    fault = post(address, text) if address else ""
    if fault:
        context.log.error(fault)
