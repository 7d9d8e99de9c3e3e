"""Notifications about failed runs: in the daemon's log and, if `IVR_ALERT_URL` is set, posted to that address.

The address may contain a secret, so it is read from the environment only: the UI shows settings and stores them.
"""

import http.client
import json
import os
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import dagster as dg

URL_VARIABLE = "IVR_ALERT_URL"
POST_SECONDS = 10
MAX_CHARACTERS = 1_500  # chat programs cut longer messages


def failure_message(job: str, run_id: str, steps: list[tuple[str, str]], reason: str) -> str:
    """A one-line message about a failed run.

    Args:
        job: the job's name.
        run_id: the run's id.
        steps: failed steps, each with its root cause.
        reason: why the run failed, if no step did.
    """
    causes = "; ".join(f"{step}: {' '.join(cause.split())}" for step, cause in steps) or reason
    return f"ivr_dagster: run {run_id[:8]} of {job} failed. {causes}"[:MAX_CHARACTERS]


def post(url: str, text: str) -> str:
    """Post `{"text": text}`, the format of Slack and Mattermost; returns an error without the address, or ""."""
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or parts.username is not None:
            return f"{URL_VARIABLE} is not an http:// or https:// address without a user name"
        request = urllib.request.Request(  # noqa: S310 (the scheme is checked)
            url, data=json.dumps({"text": text}).encode(), headers={"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=POST_SECONDS):  # noqa: S310
            return ""
    except urllib.error.URLError as error:
        return f"the alert could not be posted ({error.reason})"
    except (OSError, ValueError, http.client.HTTPException) as error:  # their messages may quote the address
        return f"the alert could not be posted ({type(error).__name__})"


@dg.run_failure_sensor(
    name="tell_of_failed_runs",  # Dagster stores whether the sensor is on by its name
    default_status=dg.DefaultSensorStatus.RUNNING,
    minimum_interval_seconds=15,
    description="Logs failed runs in the daemon's log and posts them to `IVR_ALERT_URL`, if set.",
)
def notify_on_failure(context: dg.RunFailureSensorContext) -> None:
    """Log a failed run with the root cause of each failed step, and post it."""
    steps = []
    for event in context.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        steps.append((event.step_key or "", error.message if error else event.message or ""))
    run = context.dagster_run
    message = failure_message(run.job_name, run.run_id, steps, context.failure_event.message or "")
    context.log.error(message)
    if (url := os.environ.get(URL_VARIABLE, "")) and (problem := post(url, message)):
        context.log.error(problem)
