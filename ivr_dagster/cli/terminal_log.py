"""The logger of runs in the terminal."""

import logging

import dagster as dg

from ivr_dagster.resources.progress import finish_asset


@dg.logger(config_schema={"log_level": str}, description="Messages of assets, for a terminal.")
def terminal_logger(context: dg.InitLoggerContext) -> logging.Logger:
    """Messages of assets on standard error; Dagster's events, which include tracebacks, only at INFO and below.

    The command reports errors once, at its end.
    """
    level = logging.getLevelName(context.logger_config["log_level"])
    logger = logging.Logger("ivr", logging.DEBUG)
    logger.addFilter(_finish_asset)
    handler = logging.StreamHandler()
    handler.setLevel(level)
    handler.setFormatter(_TerminalFormatter())
    if level > logging.INFO:
        handler.addFilter(lambda record: getattr(record, "dagster_meta", {}).get("dagster_event") is None)
    logger.addHandler(handler)
    return logger


def _finish_asset(record: logging.LogRecord) -> bool:
    """Advance progress bars; passes all records."""
    event = getattr(record, "dagster_meta", {}).get("dagster_event")
    if event is not None and event.event_type == dg.DagsterEventType.ASSET_MATERIALIZATION:
        finish_asset()
    return True


class _TerminalFormatter(logging.Formatter):
    """`level: step: message`."""

    def format(self, record: logging.LogRecord) -> str:
        meta = getattr(record, "dagster_meta", {})
        message = meta.get("orig_message") or record.getMessage()
        return ": ".join(part for part in (record.levelname.lower(), meta.get("step_key"), message) if part)
